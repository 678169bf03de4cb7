"""What is new in run directories of this pod since the asker last looked: one request, one answer, bounded.

Files that grow (logs, heartbeats, events) go by byte offset, others whole when they were replaced. The asker says what
it has; nothing is remembered here between two requests, so that any answer may be lost. Which files: `runfiles`.

    request   {living, newest, groups, list, budget} and as bytes JSON {run: {groups, have: {name: state}, extra}}
              state of a file that grows   [inode, guard, end, start, before]: bytes [start, end) are there, guard is
                                           the hash of the last ones; where the stretch before start ends
              state of any other           [inode, size, mtime_ns]
              extra {name: lines or null}  also this file: its last lines, or from its beginning; below 0: what comes
                                           after that which is there
    answer    {now, keeper, more, listed, runs: {run: {files, gone, observed}}} and the bytes of all files in order
              a file that grows   [name, "grow" | "jump" | "front" | "new", offset, length, inode, mtime_ns, crc32]
              any other           [name, "whole", 0, length, inode, mtime_ns, crc32]
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.keeper.client import running
from pods.keeper.runs import run_ids
from pods.remote.dispatch import Answer, Operation
from pods.remote.observe import observed
from pods.remote.runfiles import GROUPS, MAX_WHOLE_BYTES, STATUS, folders, kind_of
from workloads.contract.errors import RemoteError
from workloads.contract.files import solid_from, try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir
from workloads.contract.states import ENDED

BUDGET_BYTES = 8 << 20
MIN_BUDGET_BYTES = 64 << 10
TAIL_BYTES = 64 << 10
LINES_BYTES = 16 << 20
GUARD_BYTES = 64
MAX_FILES = 20_000
MAX_LISTED = 10_000
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
Row = list[Any]


@dataclass(frozen=True)
class _Piece:
    """Bytes that the asker lacks."""

    run: RunDir
    name: str
    how: str
    offset: int
    want: int
    inode: int


@dataclass
class _Round:
    left: int
    more: bool = False
    chunks: dict[str, list[bytes]] = field(default_factory=dict)  # by run: the files of one come one after another
    pieces: list[_Piece] = field(default_factory=list)

    def give(self, run: RunDir, data: bytes) -> None:
        self.left -= len(data)
        self.chunks.setdefault(run.run_id, []).append(data)

    def data(self, runs: Iterable[str]) -> bytes:
        """All bytes, in the order in which the answer names the runs, and each run its files."""
        return b"".join(chunk for run in runs for chunk in self.chunks.get(run, ()))


def sync(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
    """See the module. Runs that were asked for, and of the others the living and the `newest` ended ones."""
    asked = _asked(data)
    listed = _listed(home) if args.get("list") is True else []
    groups = [g for g in args.get("groups", [STATUS]) if g in GROUPS]
    for ident in _picked(listed, living=args.get("living") is True, newest=int(args.get("newest", 0))):
        asked.setdefault(ident, {"groups": groups})
    budget = int(args.get("budget", BUDGET_BYTES))
    now, this = time.time(), _Round(min(max(budget, MIN_BUDGET_BYTES), BUDGET_BYTES))
    told: dict[str, dict[str, Any]] = {}
    for ident, ask in asked.items():
        run = home.run(ident)
        if not run.path.is_dir():
            told[ident] = {"missing": True}
            continue
        told[ident] = {"observed": observed(home, run, now), **_replaced(run, ask, this)}
        _growing(run, ask, this)
    _read_pieces(this, told)
    keeper = running(home) is not None
    fields = {"now": now, "keeper": keeper, "more": this.more, "listed": listed, "runs": told}
    return Answer(fields, this.data(told))


def _asked(data: bytes) -> dict[str, dict[str, Any]]:
    asked = json.loads(data) if data else {}
    rows = asked.items() if isinstance(asked, dict) else [("", None)]
    if not all(isinstance(ask, dict) and RUN_ID_PATTERN.fullmatch(run) for run, ask in rows):
        raise RemoteError("E-MIRROR-001", "that is no request for a copy")
    return asked


def _listed(home: OrchHome) -> list[dict[str, Any]]:
    """Every run here, newest first: {run, state, created, kind, head}."""
    rows = []
    for ident in sorted(run_ids(home), key=_utc, reverse=True)[:MAX_LISTED]:
        run = home.run(ident)
        info, status = try_read_json(run.run_json) or {}, try_read_json(run.status) or {}
        rows.append(
            {
                "run": ident, "state": status.get("state", "queued"), "created": info.get("created"),
                "kind": info.get("kind"), "head": info.get("head"),
            }
        )  # fmt: skip
    return rows


def _utc(ident: str) -> tuple[str, str]:
    m = RUN_ID_PATTERN.fullmatch(ident)
    return (m["utc"] if m else "", ident)


def _picked(listed: Sequence[Mapping[str, Any]], *, living: bool, newest: int) -> list[str]:
    ended = [str(r["run"]) for r in listed if r["state"] in ENDED]
    return [str(r["run"]) for r in listed if living and r["state"] not in ENDED] + ended[: max(newest, 0)]


def names_of(run: RunDir, groups: Sequence[str]) -> list[str]:
    """Files of these groups that are there, sorted; links and foreign names are passed over."""
    found = [n for n in _walk(run.path, "", 0)]
    for folder, depth in folders(groups):
        found += _walk(run.path, folder, depth)
    return sorted(n for n in found if (kind := kind_of(n)) is not None and kind.group in groups)[:MAX_FILES]


def _walk(root: Path, below: str, depth: int) -> Iterator[str]:
    try:
        entries = list(os.scandir(root / below))
    except OSError:
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_file(follow_symlinks=False):
            yield name
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name, depth - 1)


def _wanted(run: RunDir, ask: Mapping[str, Any], *, grows: bool) -> list[str]:
    groups = [g for g in ask.get("groups", [STATUS]) if g in GROUPS]
    extra = [n for n in ask.get("extra", {}) if kind_of(n) is not None]
    names = dict.fromkeys(names_of(run, groups) + extra)
    return [n for n in names if (kind := kind_of(n)) is not None and kind.grows == grows]


def _replaced(run: RunDir, ask: Mapping[str, Any], this: _Round) -> dict[str, Any]:
    """Files that are sent whole: read at once, before any size of a growing one is looked at.

    A state that is seen is therefore never older than the log that comes with it.
    """
    have: Mapping[str, Any] = ask.get("have", {})
    names, files = _wanted(run, ask, grows=False), []
    for name in names:
        with _opened(run, name) as (fd, st):
            if fd < 0 or have.get(name) == [st.st_ino, st.st_size, st.st_mtime_ns] or st.st_size > MAX_WHOLE_BYTES:
                continue
            if st.st_size > this.left and this.chunks:
                this.more = True
                continue
            data = os.pread(fd, MAX_WHOLE_BYTES, 0)
            this.give(run, data)
            files.append([name, "whole", 0, len(data), st.st_ino, st.st_mtime_ns, zlib.crc32(data)])
    there = set(names)
    gone = [n for n in have if (kind := kind_of(n)) is not None and not kind.grows and n not in there]
    return {"files": files, "gone": [n for n in gone if not os.path.lexists(run.path / n)]}


def _growing(run: RunDir, ask: Mapping[str, Any], this: _Round) -> None:
    have: Mapping[str, Any] = ask.get("have", {})
    extra: Mapping[str, Any] = ask.get("extra", {})
    for name in _wanted(run, ask, grows=True):
        kind = kind_of(name)
        assert kind is not None
        with _opened(run, name) as (fd, st):
            if fd < 0:
                continue
            begin, floor = _range(fd, st.st_size, kind.group, name, extra)
            pieces = list(_pieces(run, name, fd, st, have.get(name), begin, floor))
            this.pieces += pieces
            this.more = this.more or any(p.how == "front" and p.offset > (floor or 0) for p in pieces)


def _range(fd: int, size: int, group: str, name: str, extra: Mapping[str, Any]) -> tuple[int, int | None]:
    """(first byte that is wanted, how far back older ones are)."""
    if name not in extra:
        return (_tail(fd, size), None) if group == STATUS else (0, 0)
    lines = extra[name]
    if lines is None:
        return 0, 0
    if int(lines) < 0:
        return 0, None
    begin = _last_lines(fd, size, int(lines))
    return begin, begin


def _pieces(
    run: RunDir, name: str, fd: int, st: os.stat_result, state: object, begin: int, floor: int | None
) -> Iterator[_Piece]:
    """What to send of one file, of which bytes from `begin` are wanted; also older ones, down to `floor`."""

    def piece(how: str, offset: int, want: int) -> _Piece:
        return _Piece(run, name, how, offset, want, st.st_ino)

    size = st.st_size
    solid = solid_from(fd, size)  # what was dropped before it (`shim.loglimit`) is never sent: it would be zeros
    begin = max(begin, solid)
    if solid and (end := _end_of(st, state)) is not None and end < solid:
        yield piece("jump", begin, size - begin)
        return
    if not _same(fd, st, state):
        yield piece("new", begin, size - begin)
        return
    assert isinstance(state, list)
    _inode, _guard, end, start, before = state
    if begin > end + TAIL_BYTES:
        yield piece("jump", begin, size - begin)
        return
    if size > end:
        yield piece("grow", end, size - end)
    low = start if floor is None else max(floor, before, solid)
    if low < start:
        yield piece("front", low, start - low)


def _end_of(st: os.stat_result, state: object) -> int | None:
    """Up to which byte the asker has this very file, as it says; its guard cannot be looked at in a hole."""
    good = isinstance(state, list) and len(state) == 5 and all(type(x) is int for x in (state[0], *state[2:]))
    return state[2] if good and isinstance(state, list) and state[0] == st.st_ino else None


def _same(fd: int, st: os.stat_result, state: object) -> bool:
    """Whether the file is the one of which the asker has bytes, and has only grown."""
    if not (isinstance(state, list) and len(state) == 5 and all(type(x) is int for x in (state[0], *state[2:]))):
        return False
    inode, guard, end, start, before = state
    if inode != st.st_ino or not 0 <= before <= start <= end <= st.st_size:
        return False
    return bool(guard == guard_of(fd, start, end))


def guard_of(fd: int, start: int, end: int) -> str:
    """Hash of the last bytes (64 at most) of [start, end): both sides know them."""
    at = max(start, end - GUARD_BYTES)
    return hashlib.sha256(os.pread(fd, end - at, at)).hexdigest()[:16]


def _tail(fd: int, size: int) -> int:
    """Where the last 64 KiB begin, at the beginning of a line."""
    at = max(0, size - TAIL_BYTES)
    return at if not at else at + os.pread(fd, TAIL_BYTES, at).find(b"\n") + 1


def _last_lines(fd: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin. Looks at the last 16 MiB at most."""
    start = max(0, size - LINES_BYTES)
    data = os.pread(fd, size - start, start)
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    if lines <= 0:
        return size
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return start
    return start + at + 1


def _read_pieces(this: _Round, told: dict[str, dict[str, Any]]) -> None:
    """Every file gets its fair share of what may still be sent; a front is sent from its end backwards."""
    waiting = sorted(this.pieces, key=lambda p: p.want)
    for i, piece in enumerate(waiting):
        share = min(piece.want, max(this.left, 0) // (len(waiting) - i))
        this.more = this.more or share < piece.want
        if not share and piece.want:
            continue
        offset = piece.offset if piece.how != "front" else piece.offset + piece.want - share
        with _opened(piece.run, piece.name) as (fd, st):
            if fd < 0 or st.st_ino != piece.inode:
                this.more = True  # replaced this very moment: the next round tells
                continue
            data = os.pread(fd, share, offset)
            if piece.how == "front" and len(data) < share:
                continue
            this.give(piece.run, data)
            row = [piece.name, piece.how, offset, len(data), st.st_ino, st.st_mtime_ns, zlib.crc32(data)]
            told[piece.run.run_id]["files"].append(row)


class _opened:
    """A regular file of a run directory, links not followed: (fd, stat), or (-1, any) when it is none."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._path, self._fd = run.path / name, -1

    def __enter__(self) -> tuple[int, os.stat_result]:
        try:
            self._fd = os.open(self._path, _FLAGS)
            st = os.fstat(self._fd)
        except OSError:
            return -1, os.stat_result(range(10))
        return (self._fd if stat.S_ISREG(st.st_mode) else -1), st

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


OPERATIONS: Mapping[str, Operation] = {"sync": sync}
