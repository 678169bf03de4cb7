"""Who a process is: pid + start time + boot id + a mark in its environment. State Z counts as dead.

Everything reads /proc (proc(5)); a signal is sent only after the identity was checked, through a pidfd, so that a
reused pid is never hit. Linux only, standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "ORCH_MARK"
"""Environment variable that every process of a rank carries: `<run id>/a<attempt>/r<rank>`."""

DETACHED = "ORCH_DETACHED"
"""Environment variable of orch's own processes that outlive who started them (a keeper, Ray, shims); no rank has it."""

SWEEP_KILL_S = 10.0
SWEEP_ROUND_S = 0.05


def rank_mark(run_id: str, attempt: int, rank: int) -> str:
    return f"{run_id}/a{attempt}/r{rank}"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class ProcStat:
    pid: int
    state: str
    ppid: int
    start_time: int  # clock ticks after boot
    session: int = 0


def read_stat(pid: int) -> ProcStat | None:
    """The process's line in /proc, or None when there is no such process."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return ProcStat(pid, fields[0].decode(), int(fields[1]), int(fields[19]), int(fields[3]))


@dataclass(frozen=True)
class ProcId:
    """Identity of one process on one boot of one machine."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcId | None:
        st = read_stat(pid)
        return None if st is None or st.state in "ZX" else cls(pid, st.start_time, boot_id())

    @classmethod
    def me(cls) -> ProcId:
        st = read_stat(os.getpid())
        assert st is not None
        return cls(st.pid, st.start_time, boot_id())

    def state(self) -> str | None:
        """The /proc state letter, or None when this very process is gone (or a zombie)."""
        if self.boot_id != boot_id():
            return None
        st = read_stat(self.pid)
        if st is None or st.start_time != self.start_time or st.state in "ZX":
            return None
        return st.state

    def alive(self) -> bool:
        return self.state() is not None

    def signal(self, signum: int) -> bool:
        """Send `signum` if this very process still lives. True when it was delivered."""
        try:
            fd = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, signum)
        except (ProcessLookupError, PermissionError):  # gone, or a set-uid program that is not ours to signal
            return False
        else:
            return True
        finally:
            os.close(fd)


def environ_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; {} when it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.split(b"=", 1) for item in raw.split(b"\0") if b"=" in item)
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in pairs}


def all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def marked(value: str, variable: str = MARK) -> list[ProcId]:
    """Living processes whose environment has `variable` equal to `value` or starting with `value` + "/"."""
    needle = f"{variable}={value}".encode()
    found = []
    for pid in all_pids():
        try:
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if any(item == needle or item.startswith(needle + b"/") for item in raw.split(b"\0")):
            ident = ProcId.of(pid)
            if ident:
                found.append(ident)
    return found


def is_detached(pid: int) -> bool:
    """One of orch's own processes that is no part of the run in which it was started."""
    environ = environ_of(pid)
    return DETACHED in environ and MARK not in environ


def descendants(pid: int, without: Callable[[int], bool] | None = None) -> list[ProcId]:
    """Living children of `pid`, their children, and so on; `pid` itself is not among them, nor is one for which
    `without` holds, with all below it."""
    boot = boot_id()
    children: dict[int, list[ProcStat]] = {}
    for other in all_pids():
        st = read_stat(other)
        if st is not None:
            children.setdefault(st.ppid, []).append(st)
    found, queue = [], [pid]
    while queue:
        for st in children.pop(queue.pop(), ()):
            if without is not None and without(st.pid):
                continue
            queue.append(st.pid)
            if st.state not in "ZX":
                found.append(ProcId(st.pid, st.start_time, boot))
    return found


def sweep(
    find: Callable[[], Iterable[ProcId]],
    grace_s: float,
    *,
    kill_s: float = SWEEP_KILL_S,
    each_round: Callable[[], object] | None = None,
) -> tuple[list[int], list[int]]:
    """End whatever `find` finds, as often as it finds something: SIGTERM, after `grace_s` SIGKILL for up to `kill_s`.

    The caller itself is spared. Returns the pids that are gone, and those that stayed (state D, or not ours to signal).
    """
    seen: set[ProcId] = set()
    start = time.monotonic()
    while left := {p for p in find() if p.pid != os.getpid()}:
        age_s = time.monotonic() - start
        if age_s > grace_s + kill_s:
            break
        new = left - seen
        for ident in left if age_s >= grace_s else new:
            ident.signal(signal.SIGKILL if age_s >= grace_s else signal.SIGTERM)
        seen |= left
        if each_round:
            each_round()
        if not new or age_s < grace_s:  # while killing something that forks on, do not wait
            time.sleep(SWEEP_ROUND_S)
    return sorted(p.pid for p in seen - left), sorted(p.pid for p in left)


DUMP_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)})


GENTLE_SIGNAL = signal.SIGRTMAX - 3
"""Asks a Python for its stacks between two of its instructions (`workloads.runtime.site`). faulthandler's own handler
looks at frames that are just being made, and crashes a Python that runs: 3.12.1 died of the 10th such signal, 3.13.0
of the 515th, 3.11.7 of the 4250th. It is for those that do not answer, because they are in C."""


def dump_signal(environ: Mapping[str, str]) -> int:
    """The signal that asks a process with this environment for its stacks: ORCH_DUMP_SIGNAL (a number) or SIGUSR1.

    Only signals without a meaning of their own count: faulthandler catches SIGSEGV as well, and dies of it.
    """
    raw = environ.get("ORCH_DUMP_SIGNAL", "")
    number = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 4 else 0
    return number if number in DUMP_SIGNALS else int(signal.SIGUSR1)


def catches(pid: int, signum: int) -> bool:
    """True when the process has a handler for `signum` (SigCgt in /proc/<pid>/status)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    for line in text.splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False
