"""One process's stacks: by its own faulthandler, by py-spy, or at least what /proc says. Called by `dump` alone.

A signal is sent only where the handler is known to be faulthandler on a file of ours: the process catches the signal
*and* has its ORCH_STACKDUMP open. Anything else (a shell's trap, a program without handler) would be run or killed by
it. Everything is bounded: waits, bytes, py-spy's run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import escape
from workloads.contract.files import write_all
from workloads.contract.process import ProcId, catches, dump_signal, environ_of
from workloads.contract.rundir import RunDir, utc_stamp

ANSWER_S = 1.0
POLL_S = 0.005
QUIET_S = 0.03
PY_SPY_S = 5.0
MAX_TEXT_BYTES = 256 << 10
DUMP_NAME = re.compile(r"stackdump_rank\d{1,6}_\d{8}T\d{6}Z\.txt")
STATES = {"T": "stopped", "t": "traced by a debugger", "D": "uninterruptible, in the kernel"}


@dataclass(frozen=True)
class Target:
    """One process of a rank."""

    ident: ProcId
    rank: int
    attempt: int
    is_rank: bool  # the rank process itself, not a descendant


@dataclass(frozen=True)
class Stacks:
    how: str  # faulthandler, py-spy, none
    file: Path
    text: str
    note: str = ""


@dataclass(frozen=True)
class Asker:
    """Who asks for a dump of which run, and until when py-spy may still be started (monotonic seconds)."""

    run: RunDir
    by: str
    why: str
    py_spy_until: float

    def header(self, target: Target) -> bytes:
        """A dump has no time, rank or pid of its own: this line is appended before it."""
        return (
            f"=== orch stack dump run={self.run.run_id} rank={target.rank} attempt={target.attempt}"
            f" pid={target.ident.pid} utc={utc_stamp()} by={escape(self.by, 80)} why={escape(self.why, 200)} ===\n"
        ).encode(errors="replace")


def stacks_of(asker: Asker, target: Target) -> Stacks | None:
    """The stacks of one process. None when it is gone, or a descendant that is no Python."""
    pid, state = target.ident.pid, target.ident.state()
    if state is None:
        return None
    environ = environ_of(pid)
    number, file = dump_signal(environ), own_file(asker.run, environ)
    if file is None or not (catches(pid, number) and _has_open(pid, file)):
        if not target.is_rank and not _is_python(pid):
            return None
        return _from_outside(asker, target, f"no faulthandler on {_name(number)}")
    if state in STATES:
        return _from_outside(asker, target, f"no dump: state {state} ({STATES[state]}), not signalled")
    text = _by_faulthandler(asker, target, file, number)
    if text is None:
        return _from_outside(asker, target, f"no answer to {_name(number)} within {ANSWER_S:g} s")
    return Stacks("faulthandler", file, text)


def own_file(run: RunDir, environ: dict[str, str]) -> Path | None:
    """ORCH_STACKDUMP of that environment, if it is a dump file of this run: a process may say anything there."""
    path = Path(environ.get("ORCH_STACKDUMP", ""))
    try:
        inside = path.parent.samefile(run.stackdumps)
    except OSError:
        return None
    return path if inside and DUMP_NAME.fullmatch(path.name) and not path.is_symlink() else None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _has_open(pid: int, file: Path) -> bool:
    """True when the process holds `file` open, as faulthandler does. A daemon that closed all files does not."""
    try:
        st = file.stat()
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        with contextlib.suppress(OSError):
            there = Path(f"/proc/{pid}/fd/{fd}").stat()
            if (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
                return True
    return False


def _is_python(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def _append(file: Path, data: bytes) -> int:
    """Append, and return the size of the file before. OSError when it is a link or the disk is full."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        before = os.fstat(fd).st_size
        write_all(fd, data)
        return before
    finally:
        os.close(fd)


def _by_faulthandler(asker: Asker, target: Target, file: Path, number: int) -> str | None:
    """Header, signal, wait until the file has grown and rests. None when nothing came."""
    try:
        start = _append(file, asker.header(target))
        base = file.stat().st_size
        if not target.ident.signal(number):
            return None
        end = _rest_size(file, base)
        if end == base:
            return None
        with file.open("rb") as f:
            f.seek(start)
            raw = f.read(min(end - start, MAX_TEXT_BYTES))
    except OSError:
        return None
    cut = "\n... cut here; the file has the rest\n" if end - start > MAX_TEXT_BYTES else ""
    return raw.decode(errors="replace") + cut


def _rest_size(file: Path, base: int) -> int:
    """The size after it grew beyond `base` and rested for 30 ms; `base` when it did not grow within a second."""
    size, since, start = base, time.monotonic(), time.monotonic()
    while (now := time.monotonic()) - start < ANSWER_S:
        seen = file.stat().st_size
        if seen != size:
            size, since = seen, now
        elif size > base and now - since >= QUIET_S:
            break
        time.sleep(POLL_S)
    return size


def _from_outside(asker: Asker, target: Target, reason: str) -> Stacks:
    """py-spy without stopping the process, else its state; the text goes to a dump file too."""
    text, failure = _py_spy(target.ident.pid, asker.py_spy_until)
    how = "py-spy" if text else "none"
    note = f"{reason}; stack read by py-spy" if text else f"{reason}; {failure}"
    text = text or _proc_text(target.ident.pid)
    file = asker.run.stackdump(target.rank)
    whole = asker.header(target) + f"{note}\n{text}".encode(errors="replace")
    try:
        _append(file, whole)
    except OSError as e:
        note += f"; the dump file could not be written: {e.strerror}"
    return Stacks(how, file, whole.decode(errors="replace"), note)


def _py_spy(pid: int, until: float) -> tuple[str, str]:
    """(stacks, "") or ("", why there are none)."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = shutil.which("py-spy") or (str(beside) if os.access(beside, os.X_OK) else None)
    if tool is None:
        return "", "py-spy is not installed"
    limit_s = min(PY_SPY_S, until - time.monotonic())
    if limit_s <= 0:
        return "", "no time was left for py-spy"
    try:
        got = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as e:
        return "", f"py-spy failed: {type(e).__name__}"
    if got.returncode != 0 or not got.stdout:
        words = got.stderr.decode(errors="replace").strip().split("\n")[0]
        return "", f"py-spy: {escape(words, 200) or f'exit code {got.returncode}'}"
    return got.stdout[:MAX_TEXT_BYTES].decode(errors="replace"), ""


def _proc_text(pid: int) -> str:
    """What /proc tells of a process that shows no stack."""
    rows = []
    for name in ("wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            value = Path(f"/proc/{pid}/{name}").read_text()[:4096].strip()
            if value not in ("", "0"):
                rows.append(f"{name}: {value}")
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.split(":")[0] in ("Name", "State", "Threads"):
                rows.append(line.replace("\t", " "))
    return "\n".join(rows) + "\n"
