"""What is looked at on a pod every few seconds for one run: disk, /dev/shm, memory, its GPUs, the clocks.

`PodProbe.look` returns the fields of `orchestrator.health.facts.PodFacts` as plain values. Each part has a thread and a
deadline of its own: a run directory on a dead network disk says nothing about the memory. None: it could not be seen.
Called by the PodAgent; never raises, ends nothing, leaves no file behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.remote.cgroup import tightest
from pods.remote.gpueye import GpuEye, shared
from pods.remote.gpustate import GpuState
from pods.remote.kernellog import KernelLog, uuids_by_bus
from pods.remote.rankrecords import newest_attempt, record, recorded_ranks
from workloads.contract.process import boot_id
from workloads.contract.rundir import RunDir

LOOK_S = 3.0
SHM = Path("/dev/shm")
PROBE_NAME = ".writable"
LINE = b"\0" * 4096  # a block: less might fit where no heartbeat does
NOT_WRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
                          errno.ENOTDIR, errno.EIO, errno.ESTALE})  # fmt: skip
CLOCK_SLACK_S = 2.0  # between the kernel log's clock and ours


class PodProbe:
    """`gpus`: UUIDs that this run leases here. Looks from one thread."""

    def __init__(self, run: RunDir, gpus: Sequence[str], eye: GpuEye | None = None) -> None:
        self.run, self.eye = run, eye or shared()
        self.gpus = tuple(gpus)
        self._xids = Xids(run)
        self._parts = [
            Part("disk", lambda: disk(run.path)),
            Part("write", lambda: {"writable": writable(run.path)}),
            Part("shm", lambda: shm(SHM)),
            Part("memory", memory),
        ]
        self._gpu_part = Part("gpus", self._look_at_gpus)

    def look(self, now: float) -> dict[str, Any]:
        """`now`: monotonic seconds. Milliseconds, at most 3 s. A GPU that could not be asked has `present` None."""
        parts = [*self._parts, self._gpu_part] if self.gpus else self._parts
        deadline = time.monotonic() + LOOK_S
        for part in parts:
            part.begin()
        facts: dict[str, Any] = {"gpus": [{"uuid": uuid, "present": None} for uuid in self.gpus]}
        for part in parts:
            facts |= part.end(deadline)
        # CLOCK_BOOTTIME goes on while a laptop sleeps, as the wall clock does: sleep is no step of the clock
        facts["wall_minus_mono_s"] = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return facts

    def _look_at_gpus(self) -> dict[str, Any]:
        states = self.eye.look(self.gpus).states
        xids = self._xids.look(states)
        return {"gpus": [_gpu_row(states.get(uuid, GpuState(uuid)), xids.get(uuid, ())) for uuid in self.gpus]}


def _gpu_row(state: GpuState, xids: Sequence[int]) -> dict[str, Any]:
    return {
        "uuid": state.uuid, "present": state.present, "mem_used_mib": state.used_mib, "mem_total_mib": state.total_mib,
        "ecc_uncorrected": state.ecc_uncorrected, "xids": tuple(xids),
    }  # fmt: skip


@dataclass
class Part:
    """One look in a thread of its own. One that hangs is waited for once, and not begun again while it hangs."""

    name: str
    look: Callable[[], dict[str, Any]]
    _thread: threading.Thread | None = None
    _found: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._found = {}
            self._thread = threading.Thread(target=self._run, args=(self._found,), daemon=True, name=self.name)
            self._thread.start()

    def end(self, deadline: float) -> dict[str, Any]:
        """What was seen, {} when it was not seen in time. Its thread may then still write: into nobody's hands."""
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        found = {} if self._thread.is_alive() else self._found
        self._found = {}
        return found

    def _run(self, found: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # it could not be seen
            found |= self.look()


def disk(folder: Path) -> dict[str, Any]:
    """What this user may still write; blocks that are kept for root do not count."""
    st = os.statvfs(folder)
    return {"disk_free_bytes": st.f_bavail * st.f_frsize, "disk_total_bytes": st.f_blocks * st.f_frsize}


def shm(folder: Path) -> dict[str, Any]:
    st = os.statvfs(folder)
    return {"shm_free_bytes": st.f_bavail * st.f_frsize, "shm_total_bytes": st.f_blocks * st.f_frsize}


def memory() -> dict[str, Any]:
    level = tightest()
    return {} if level is None else {"mem_used_bytes": level.used_bytes, "mem_limit_bytes": level.limit_bytes}


def writable(folder: Path) -> bool | None:
    """Does it take a line? A file without a name is written, so that nothing is left whatever happens."""
    try:
        fd = _nameless(folder)
        try:
            return os.write(fd, LINE) == len(LINE)
        finally:
            os.close(fd)
    except OSError as e:
        return False if e.errno in NOT_WRITABLE else None


def _nameless(folder: Path) -> int:
    """O_TMPFILE (open(2)), or a name that is taken away at once where the file system has no such thing."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = folder / PROBE_NAME
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of a look that was killed in between
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd


class Xids:
    """XIDs of each GPU since the newest attempt began: from NVML, and from the kernel's log where it can be read."""

    def __init__(self, run: RunDir, log: KernelLog | None = None) -> None:
        self.run, self._log = run, log or KernelLog.open()
        self._attempt, self._began = -1, 0.0
        self._seen: dict[str, set[int]] = {}
        self._uuids: dict[str, str] = {}  # by place on the bus; kept, since a lost GPU has none any more

    def look(self, states: Mapping[str, GpuState]) -> dict[str, tuple[int, ...]]:
        attempt = newest_attempt(self.run)
        if attempt != self._attempt:  # a new attempt starts with none
            self._attempt, self._began, self._seen = attempt, _began(self.run, attempt), {}
        self._uuids |= uuids_by_bus() | {s.bus: s.uuid for s in states.values() if s.bus}
        for state in states.values():
            self._seen.setdefault(state.uuid, set()).update(code for when, code in state.xids if when >= self._began)
        for xid in self._log.new():
            if xid.bus in self._uuids and xid.mono_s >= self._began:
                self._seen.setdefault(self._uuids[xid.bus], set()).add(xid.code)
        return {uuid: tuple(sorted(codes)) for uuid, codes in self._seen.items()}


def _began(run: RunDir, attempt: int) -> float:
    """The monotonic second at which the first shim of an attempt was started on this machine, or now; what came before
    it is not the attempt's own. By the kernel's count of time since the boot, which no step of the clock moves."""
    boot, now = boot_id(), time.monotonic()
    rows = (record(run, attempt, rank) for rank in recorded_ranks(run, attempt))
    starts = [row.get("shim_start_time") for row in rows if row.get("boot_id") == boot]
    ticks = min((start for start in starts if type(start) is int), default=None)
    if ticks is None:
        return now - CLOCK_SLACK_S
    asleep_s = time.clock_gettime(time.CLOCK_BOOTTIME) - now
    return min(now, ticks / os.sysconf("SC_CLK_TCK") - asleep_s) - CLOCK_SLACK_S
