"""What /proc says of a process that is asked for its stacks: state, what it waits for, whether a signal reaches it.

Only reads (proc(5)); what is not readable is left out. Nothing here reads a command line, which may hold a secret.
Called by `stackdump` and `dump`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

STATES = {
    "T": "stopped",
    "t": "traced by a debugger",
    "D": "uninterruptible, in the kernel",
    "Z": "dead and not yet reaped",
}
MAX_VALUE_CHARS = 4096


@dataclass(frozen=True)
class SignalMasks:
    """Of one process: what its handlers catch, what its main thread blocks, what waits to be delivered to it."""

    caught: int
    blocked: int
    pending: int

    @staticmethod
    def has(mask: int, number: int) -> bool:
        return bool(mask >> (number - 1) & 1)


def status_of(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/<pid>/status as names and values; {} when it is gone."""
    path = Path(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: " ".join(value.split()) for name, value in pairs}


def masks_of(pid: int) -> SignalMasks | None:
    """None when the process is gone."""
    row = status_of(pid)
    try:
        pending = int(row["SigPnd"], 16) | int(row["ShdPnd"], 16)
        return SignalMasks(int(row["SigCgt"], 16), int(row["SigBlk"], 16), pending)
    except (KeyError, ValueError):
        return None


def takes(pid: int, number: int, masks: SignalMasks) -> bool:
    """True when some thread would handle the signal now: the main one, or another that does not block it."""
    if not masks.has(masks.blocked, number):
        return True
    try:
        tids = [int(p.name) for p in Path(f"/proc/{pid}/task").iterdir()]
    except (OSError, ValueError):
        return False
    blocked = (status_of(pid, tid).get("SigBlk", "f" * 16) for tid in tids[:256])
    return any(not masks.has(int(mask, 16), number) for mask in blocked)


def state_of_main(pid: int) -> str:
    """The state letter of the main thread; "" when it is gone."""
    return status_of(pid, pid).get("State", "")[:1]


def ran_ns(pid: int) -> int:
    """How long the main thread has been on a CPU; 0 where the kernel does not say."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()[:64]
    return ""


def glance(pid: int) -> str:
    """State and wchan alone: readable also where the memory of the process is locked."""
    wchan = _read(pid, "wchan")
    return f"state {status_of(pid).get('State', 'unknown')}" + (f", wchan {wchan.split()[0]}" if wchan else "")


def brief(pid: int) -> str:
    """One line: `state S (sleeping), wchan futex_wait_queue, syscall 202, threads 12, 1834 MiB`."""
    row = status_of(pid)
    if not row:
        return "gone"
    facts = [f"state {row.get('State', '?')}"]
    facts += [f"{name} {value.split()[0]}" for name in ("wchan", "syscall") if (value := _read(pid, name))]
    facts.append(f"threads {row.get('Threads', '?')}")
    resident = row.get("VmRSS", "").split()
    if resident and resident[0].isdigit():
        facts.append(f"{int(resident[0]) // 1024} MiB")
    return ", ".join(facts)


def at_length(pid: int) -> str:
    """Lines for a process that shows no stack of its own: the kernel's view of it, where it is readable."""
    rows = [f"{name}: {value}" for name in ("wchan", "syscall", "stack") if (value := _read(pid, name))]
    row = status_of(pid)
    rows += [f"{name}: {row[name]}" for name in ("Name", "State", "Threads", "VmRSS") if name in row]
    return "\n".join(rows) + "\n"


def _read(pid: int, name: str) -> str:
    """ "" where it says nothing: it runs, or may not be asked."""
    with contextlib.suppress(OSError):
        value = Path(f"/proc/{pid}/{name}").read_text(errors="replace")[:MAX_VALUE_CHARS].strip()
        return "" if value in ("0", "running") else value
    return ""
