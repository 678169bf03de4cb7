"""Who a process is: pid + start time + boot id + a mark in its environment. State Z counts as dead.

Everything reads /proc (proc(5)); a signal is sent only after the identity was checked, through a pidfd, so that a
reused pid is never hit. Linux only, standard library only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "ORCH_MARK"
"""Environment variable that every process of a rank carries: `<run id>/a<attempt>/r<rank>`."""


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


def read_stat(pid: int) -> ProcStat | None:
    """The process's line in /proc, or None when there is no such process."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return ProcStat(pid, fields[0].decode(), int(fields[1]), int(fields[19]))


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
        except ProcessLookupError:
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
