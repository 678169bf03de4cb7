"""What is looked at while the stacks are taken: the GPU table, and NCCL's flight recorder where a rank has one.

Both run in threads of their own and have their own bounds: a driver that hangs, or a recorder that waits for the
interpreter of a hung rank, costs a note and no stack. A recorder's trace is a pickle: it is copied as bytes, and
nothing here or on the operator's side ever loads one. Called by `dump`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pods.remote.boundedrun import run_bounded
from pods.remote.dumpfiles import keep
from workloads.contract.files import atomic_write, read_bytes_bounded
from workloads.contract.rundir import RunDir, utc_stamp

GPU_TABLE_S = 5.0
RECORDER_S = 8.0
"""Torch looks at its pipe once a second, and the first trace of a process took 4 s on an H200 (torch 2.11). The stacks
are on disk meanwhile; who ends a run behind its dump waits 10 s for the answer."""
REST_S = 0.15  # a trace that has not grown for so long is whole
POLL_S = 0.02
MAX_TRACE_BYTES = 32 << 20
MAX_PIPES = 256


@dataclass
class Beside:
    """Two threads and what they found. `collect` waits for them until `until`, not longer."""

    until: float
    threads: list[threading.Thread] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def collect(self) -> tuple[list[str], list[str]]:
        """(names of files, notes)."""
        late = []
        for thread in self.threads:
            thread.join(max(0.0, self.until - time.monotonic()))
            if thread.is_alive():
                late.append(f"{thread.name} has not answered yet")
        return list(self.files), [*self.notes, *late]


def start(run: RunDir, attempt: int, now: float, until: float) -> Beside:
    """Ask both. `now`: Unix seconds, names the files; `until`: monotonic seconds, where no recorder is asked."""
    side = Beside(until)
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        side.threads.append(threading.Thread(target=_gpu_table, args=(side, run, tool, now), name="nvidia-smi"))
    asked = _ask_recorders(run, attempt)
    if asked:
        side.until = max(until, time.monotonic() + RECORDER_S)
        side.threads.append(
            threading.Thread(target=_fetch_traces, args=(side, run, asked, now), name="the NCCL flight recorder")
        )
    for thread in side.threads:
        thread.daemon = True
        thread.start()
    return side


def _gpu_table(side: Beside, run: RunDir, tool: str, now: float) -> None:
    ran = run_bounded([tool], GPU_TABLE_S)
    if ran.code is None or not ran.out:
        side.notes.append(f"nvidia-smi: {ran.error.strip()[:200] or f'exit code {ran.code}, no table'}")
        return
    file = run.stackdumps / f"nvidia_smi_{utc_stamp(now)}.txt"
    failed = keep(file, ran.out)
    if failed:
        side.notes.append(failed)
    else:
        side.files.append(file.name)


@dataclass(frozen=True)
class _Asked:
    rank: int
    trace: Path
    stamp: tuple[int, int]  # mtime and size before it was asked


def _ask_recorders(run: RunDir, attempt: int) -> list[_Asked]:
    """Write a byte into every pipe of this attempt that somebody reads; torch then writes the trace."""
    stem = Path(run.nccl_pipe_stem(attempt))
    pattern = re.compile(re.escape(stem.name) + r"(\d{1,6})\.pipe")
    try:
        names = sorted(os.listdir(stem.parent))[:MAX_PIPES]
    except OSError:
        return []
    asked = []
    for name in names:
        m = pattern.fullmatch(name)
        if m:
            trace = Path(f"{run.nccl_trace_stem(attempt)}{m[1]}")
            stamp = _stamp(trace)
            if _write_byte(stem.parent / name):
                asked.append(_Asked(int(m[1]), trace, stamp))
    return asked


def _write_byte(pipe: Path) -> bool:
    """False when nobody reads it (ENXIO), or it is no FIFO."""
    try:
        fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.write(fd, b"1") == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _stamp(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        st = path.lstat()
        return st.st_mtime_ns, st.st_size
    return 0, 0


def _fetch_traces(side: Beside, run: RunDir, asked: list[_Asked], now: float) -> None:
    """Copy each trace when it is whole: torch writes the next one into the same file."""
    end = side.until - 0.2
    last = {a.rank: (a.stamp, time.monotonic()) for a in asked}
    waiting = {a.rank: a for a in asked}
    while waiting and time.monotonic() < end:
        for rank, item in list(waiting.items()):
            stamp, since = last[rank]
            seen = _stamp(item.trace)
            if seen != stamp:
                last[rank] = (seen, time.monotonic())
            elif seen != item.stamp and seen[1] and time.monotonic() - since >= REST_S:
                _copy(side, run, item, now)
                del waiting[rank]
        time.sleep(POLL_S)
    if side.files and any(name.endswith(".pickle") for name in side.files):
        side.notes.append("NCCL flight records are pickles: read them on the pod with `torchfrtrace`, nowhere else")
    if waiting:
        ranks = ", ".join(map(str, sorted(waiting)[:16]))
        side.notes.append(f"the NCCL flight recorder of rank {ranks} gave nothing within {RECORDER_S:g} s")


def _copy(side: Beside, run: RunDir, item: _Asked, now: float) -> None:
    file = run.stackdumps / f"nccl_rank{item.rank}_{utc_stamp(now)}.pickle"
    try:
        atomic_write(file, read_bytes_bounded(item.trace, MAX_TRACE_BYTES), durable=False)
    except (OSError, ValueError) as e:
        side.notes.append(f"the NCCL flight record of rank {item.rank} was not copied: {e}")
    else:
        side.files.append(file.name)
