"""Reading `.HALT`: the one place that says what counts as a request to halt, and what it says.

A regular file owned by our effective user or by root counts, whatever it holds: orch's own JSON, another watchdog's
plain text, or nothing. A symlink, FIFO, directory or somebody else's file does not; it is a `HaltProblem`, to be told
once. Never follows a link, never blocks, never writes. Standard library only; called by the supervisor.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import Any

from workloads.contract.errors import escape
from workloads.contract.files import read_tail
from workloads.contract.rundir import RunDir

MAX_HALT_BYTES = 64 << 10
MAX_WHY_CHARS = 300
MAX_TS_S = 1e12  # not beyond what a clock can show; neither NaN nor an int of 400 digits is below it


@dataclass(frozen=True)
class Halt:
    """What `.HALT` says. `why` and `who` are one harmless line each; `ts` is Unix seconds."""

    now: bool
    why: str
    who: str
    ts: float


@dataclass(frozen=True)
class HaltProblem:
    """Something named `.HALT` lies there and is not obeyed."""

    text: str


def read_halt(run: RunDir) -> Halt | HaltProblem | None:
    """The request, why it does not count, or None when there is none."""
    try:
        st = run.halt.lstat()
    except FileNotFoundError:
        return None
    except OSError as e:
        return HaltProblem(f"{run.halt.name} cannot be looked at: {e.strerror}")
    problem = _problem(st)
    if problem:
        return HaltProblem(f"{run.halt.name} is {problem}; it is not obeyed")
    try:
        # what counts is that it exists: a reader that fails must not lose the request
        raw = _read_head(run)
    except (OSError, ValueError):
        raw = b""
    return _parse(raw, st.st_mtime, anomaly_text(run))


def _problem(st: os.stat_result) -> str | None:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    for is_kind, words in kinds:
        if is_kind(st.st_mode):
            return words
    if not stat.S_ISREG(st.st_mode):
        return "no regular file"
    if st.st_uid not in (os.geteuid(), 0):
        return f"owned by another user (uid {st.st_uid})"
    return None


def _read_head(run: RunDir) -> bytes:
    fd = os.open(run.halt, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, MAX_HALT_BYTES)
    finally:
        os.close(fd)


def anomaly_text(run: RunDir) -> str:
    """What `.anomaly_type` says, as it was written; "" when there is none."""
    try:
        return read_tail(run.anomaly_type, 200).decode(errors="replace").strip()
    except OSError:
        return ""


def _parse(raw: bytes, mtime: float, anomaly: str) -> Halt:
    text = raw.decode(errors="replace").strip()
    row = _object(text)
    why = row.get("why") if row else text
    ts = row.get("ts") if row else None
    words = escape(why.strip(), MAX_WHY_CHARS) if isinstance(why, str) else ""
    if anomaly and anomaly not in words:
        words = f"{words} ({escape(anomaly)})" if words else escape(anomaly)
    who = row.get("who") if row else None
    return Halt(
        now=row.get("now") is True if row else False,
        why=words,
        who=escape(who, 80) if isinstance(who, str) and who else "a file",
        ts=float(ts) if isinstance(ts, int | float) and abs(ts) < MAX_TS_S else mtime,
    )


def _object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
