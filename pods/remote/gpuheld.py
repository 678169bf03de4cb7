"""GPU memory that somebody holds: before a start by whom, after a halt what did not come back.

`held` names the holder of memory on cards that a run is about to use; `used` is the baseline at a start and
`not_back` what is above it later. The driver's pids are those of the machine: in a container they may be somebody
else's number, so a process is named only when it is seen to have the driver open. Called by the PodAgent; ends nothing.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pods.remote.gpueye import GpuEye
from pods.remote.gpustate import GpuProcess, GpuState
from workloads.contract.errors import escape

SMALL_MIB = 1024.0
"""What may be held without a word: contexts of monitors, a display's buffers."""
DRAIN_S = 3.0  # the driver frees what a process held a moment after it is gone
BACK_S = 10.0
LOOK_AGAIN_S = 0.25
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
MAX_NAMED = 3
MIB_A_GIB = 1024


def held(uuids: Sequence[str], eye: GpuEye, *, wait_s: float | None = None) -> dict[str, str]:
    """UUID -> `115 GiB of 141 are held by pid 4242 (python train.py, user bob)`, for cards that are not free.

    Looks again for `wait_s` (3 s) while something is held. What cannot be told is not held.
    """
    deadline = time.monotonic() + (DRAIN_S if wait_s is None else wait_s)
    while True:
        states = eye.look(uuids, smi_age_s=0.0).states
        found = {u: words for u in uuids if u in states and (words := _held_by(states[u]))}
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(LOOK_AGAIN_S)


def used(uuids: Sequence[str], eye: GpuEye) -> dict[str, float]:
    """MiB used on each card that tells it: the baseline, taken before anything of an attempt has started."""
    states = eye.look(uuids, smi_age_s=0.0).states.values()
    return {s.uuid: round(s.used_mib, 1) for s in states if s.used_mib is not None}


def gpu_memory_back(
    uuids: Sequence[str], baseline: Mapping[str, float], eye: GpuEye, *, wait_s: float = BACK_S
) -> list[str]:
    """A sentence for each card whose memory is not back near its baseline within `wait_s`; [] when all is back.

    A card without a baseline is measured from nothing. One that could not be looked at is named as that; a machine
    where nothing can tell (no library, no nvidia-smi) gives [].
    """
    deadline = time.monotonic() + wait_s
    while True:
        seen = eye.look(uuids, smi_age_s=0.0)
        if seen.blind:
            return []
        states = [seen.states.get(uuid, GpuState(uuid)) for uuid in uuids]
        left = [words for s in states if (words := _not_back(s, baseline.get(s.uuid, 0.0), seen.error))]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(LOOK_AGAIN_S)


def _not_back(state: GpuState, baseline_mib: float, error: str | None) -> str | None:
    if state.present is False:
        return f"{state.uuid} is missing"
    if state.used_mib is None:
        return f"{state.uuid}: its memory could not be looked at ({escape(error or 'not told', 120)})"
    if state.used_mib < baseline_mib + SMALL_MIB:
        return None
    who = holders(state.compute)
    return f"{state.uuid}: {_gib(state.used_mib)} GiB are still used, {_gib(baseline_mib)} before the start, held {who}"


def _held_by(state: GpuState) -> str | None:
    """A display's memory is not in the way: a card that drives one has some in use for ever."""
    if state.used_mib is None or state.total_mib is None:
        return None
    if state.used_mib - _display_mib(state) < SMALL_MIB:
        return None
    return f"{_gib(state.used_mib)} GiB of {_gib(state.total_mib)} are held {holders(state.compute)}"


def _display_mib(state: GpuState) -> float:
    computing = {p.pid for p in state.compute or ()}
    return sum(p.used_mib or 0.0 for p in state.graphics or () if p.pid not in computing)


def holders(processes: Sequence[GpuProcess] | None) -> str:
    """`by pid 4242 (python train.py, user bob) and pid 4243 (...)`, the largest first."""
    seen = [p for p in processes or () if visible(p.pid)]
    if not seen:
        return "by processes that cannot be seen from here (another container, or one that has just ended)"
    largest = sorted(seen, key=lambda p: (-(p.used_mib or 0.0), p.pid))
    named = [_process(p, alone=len(seen) == 1) for p in largest[:MAX_NAMED]]
    more = [f"{len(seen) - MAX_NAMED} more"] if len(seen) > MAX_NAMED else []
    return "by " + " and ".join(named + more)


def _process(process: GpuProcess, *, alone: bool) -> str:
    folder = Path(f"/proc/{process.pid}")
    facts = [_command(folder), f"user {_user(folder)}"]
    if not alone and process.used_mib is not None:
        facts.append(f"{_gib(process.used_mib)} GiB")
    return f"pid {process.pid} ({', '.join(facts)})"


def visible(pid: int) -> bool:
    """True when the driver's `pid` is a process that we see under the same number."""
    folder = Path(f"/proc/{pid}")
    if not folder.is_dir():
        return False
    return _sees_all_pids() or _has_driver_open(folder)


def _sees_all_pids() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _has_driver_open(folder: Path) -> bool:
    try:
        return any(str(fd.readlink()).startswith("/dev/nvidia") for fd in (folder / "fd").iterdir())
    except OSError:
        return False


def _command(folder: Path) -> str:
    """Program and first argument: enough to know it, and no place for secrets."""
    try:
        words = (folder / "cmdline").read_bytes()[:4096].split(b"\0")
        text = " ".join(w.decode(errors="replace") for w in words[:2] if w)
        return escape(text or (folder / "comm").read_text().strip(), 60)
    except OSError:
        return "a process that has just ended"


def _user(folder: Path) -> str:
    try:
        uid = folder.stat().st_uid
    except OSError:
        return "?"
    try:
        return escape(pwd.getpwuid(uid).pw_name, 32)
    except KeyError:
        return str(uid)


def _gib(mib: float) -> str:
    gib = mib / MIB_A_GIB
    return f"{gib:.0f}" if gib >= 10 else f"{gib:.1f}"
