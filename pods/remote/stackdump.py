"""One process's stacks: by its own faulthandler, by py-spy, or at least what /proc says. Called by `dump` alone.

A signal is sent only where the handler is known to be faulthandler on a file of ours: the process catches the signal
*and* has its ORCH_STACKDUMP open, some thread takes the signal, it is in no state in which it could not answer, and it
is old enough not to be between fork and exec. Anything else (a shell's trap, a program without handler) would be run or
killed by it. Everything is bounded: waits, bytes, py-spy's run.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pods.remote.boundedrun import run_bounded
from pods.remote.dumpfiles import append_dump, has_open, own_file
from pods.remote.procfacts import STATES, SignalMasks, at_length, brief, masks_of, name_of, ran_ns, state_of_main, takes
from workloads.contract.errors import escape
from workloads.contract.process import GENTLE_SIGNAL, ProcId, dump_signal, environ_of, read_stat
from workloads.contract.rundir import RunDir, utc_stamp

ANSWER_S = 1.0
HANDLING_S = 2.5  # more, where the process is seen to be at it: a machine with more work than cores
GENTLE_S = 0.15
GENTLE_RUN_NS = 50_000_000
POLL_S = 0.01
QUIET_S = 0.04
YOUNG_S = 0.3  # a process between fork and exec has its parent's handlers, and loses them
STUCK_LOOK_S = 0.2  # state D lasts for one read of a healthy disk too
PY_SPY_S = 2.5
PY_SPY_AT_ONCE = 8
MAX_TEXT_BYTES = 256 << 10
_CUT = "\n... cut here; the file has the rest\n"


@dataclass(frozen=True)
class Target:
    """One process of a rank."""

    ident: ProcId
    rank: int
    attempt: int
    is_rank: bool  # the rank process itself, not a descendant


@dataclass(frozen=True)
class Stacks:
    how: str  # faulthandler, py-spy, none; facts: a descendant that is no Python
    text: str  # header, what /proc says, stacks
    own: Path | None = None  # the process's own dump file, when `text` lies there already
    note: str = ""  # why it was not faulthandler
    state: str = ""  # of STATES, where it is one that matters
    worker: int | None = None  # its local rank, where the rank is a torchrun and this one of its workers


@dataclass(frozen=True)
class Asker:
    """Who asks for a dump of which run, and until when (monotonic seconds) a process may still be asked."""

    run: RunDir
    by: str
    why: str
    until: float
    py_spies: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(PY_SPY_AT_ONCE))

    def header(self, target: Target) -> bytes:
        """A dump has no time, rank or pid of its own: these lines are appended before it."""
        return (
            f"=== orch stack dump run={self.run.run_id} rank={target.rank} attempt={target.attempt}"
            f" pid={target.ident.pid} utc={utc_stamp()} by={escape(self.by, 80)} why={escape(self.why, 200)} ===\n"
            f"proc: {escape(name_of(target.ident.pid), 64)}, {escape(brief(target.ident.pid), 300)}\n"
        ).encode(errors="replace")

    def left_s(self, limit_s: float) -> float:
        return max(0.0, min(limit_s, self.until - time.monotonic()))


def stacks_of(asker: Asker, target: Target, answer_s: float = ANSWER_S) -> Stacks | None:
    """The stacks of one process; None when it is gone. `answer_s`: how long its faulthandler may take to begin."""
    state = _settled_state(target.ident)
    if state is None:
        return None
    # the environment lies in the memory of the process: to read it of one that is stuck in the kernel may hang
    environ = {} if state == "D" else environ_of(target.ident.pid)
    found = _asked(asker, target, environ, state, answer_s)
    return found if target.is_rank else replace(found, worker=_torchrun_worker(target.ident.pid, environ))


def _torchrun_worker(pid: int, environ: Mapping[str, str]) -> int | None:
    """LOCAL_RANK of a process that torchrun started itself; its children have the same environment."""
    raw, stat = environ.get("LOCAL_RANK", ""), read_stat(pid)
    if "TORCHELASTIC_RUN_ID" not in environ or stat is None or "TORCHELASTIC_RUN_ID" in environ_of(stat.ppid):
        return None
    return int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 6 else None


def _asked(asker: Asker, target: Target, environ: dict[str, str], state: str, answer_s: float) -> Stacks:
    pid = target.ident.pid
    number, file = dump_signal(environ), own_file(asker.run, environ)
    masks = _masks_of_ours(target.ident, number, file)
    if masks is None and not target.is_rank and not _is_python(pid):
        return Stacks("facts", asker.header(target).decode(), note=f"{name_of(pid)} (no Python): {brief(pid)}")
    if state in STATES:
        said = f"no dump: state {state} ({STATES[state]}), not signalled"
        return _from_outside(asker, target, said, state)
    if masks is None or file is None:
        return _from_outside(asker, target, f"no faulthandler on {_name(number)}")
    if not takes(pid, number, masks):
        return _from_outside(asker, target, f"it blocks {_name(number)}")
    if masks.has(masks.pending, number):
        return _from_outside(asker, target, f"{_name(number)} of an earlier dump still waits to be delivered")
    if not _main_takes(masks, GENTLE_SIGNAL) and state_of_main(pid) == "R":
        return _from_outside(asker, target, f"it computes, and {_name(number)} may crash a Python that does")
    found = _by_faulthandler(asker, target, file, number, answer_s, masks)
    return found or _from_outside(asker, target, f"no answer to {_name(number)} within {answer_s:g} s")


def _masks_of_ours(ident: ProcId, number: int, file: Path | None) -> SignalMasks | None:
    """The signal masks of a process whose handler for `number` is faulthandler on `file`; None where it is not known
    to be. A young one that seems so is looked at again: between fork and exec it has its parent's handlers."""
    for _ in range(2):
        masks = masks_of(ident.pid)
        if file is None or masks is None or not masks.has(masks.caught, number) or not has_open(ident.pid, file):
            return None
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ident.start_time / os.sysconf("SC_CLK_TCK")
        if not 0 <= age_s < YOUNG_S:
            return masks
        time.sleep(YOUNG_S - age_s)
    return masks


def _settled_state(ident: ProcId) -> str | None:
    """The state letter. D only when it stays: every read of a disk is one."""
    end = time.monotonic() + STUCK_LOOK_S
    while (state := ident.state()) == "D" and time.monotonic() < end:
        time.sleep(POLL_S)
    return state


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _is_python(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def _by_faulthandler(
    asker: Asker, target: Target, file: Path, number: int, answer_s: float, masks: SignalMasks
) -> Stacks | None:
    """Header, signal, wait until the file has grown and rests. None when nothing came.

    The gentle signal first; the hard one only to a process that had time to answer and did not, because it is in C.
    """
    pid = target.ident.pid
    try:
        header = asker.header(target)
        start = append_dump(file, header)
        end = base = start + len(header)
        if _main_takes(masks, GENTLE_SIGNAL) and target.ident.signal(GENTLE_SIGNAL):
            has_had_time = _patience(pid)
            end = _rest_size(file, base, has_had_time, lambda: False)
        if end == base:
            if not target.ident.signal(number):
                return None
            begin = time.monotonic()
            main_takes = _main_takes(masks, number)
            end = _rest_size(
                file, base, lambda: time.monotonic() - begin >= answer_s, lambda: main_takes and _handles(pid, number)
            )
        if end == base:
            return None
        with file.open("rb") as f:
            f.seek(start)
            raw = f.read(min(end - start, MAX_TEXT_BYTES))
    except OSError:
        return None
    text = raw.decode(errors="replace") + (_CUT if end - start > MAX_TEXT_BYTES else "")
    mixed = text.count("\nCurrent thread 0x") > 1
    note = "two processes answered at once: their stacks may be mixed" if mixed else ""
    return Stacks("faulthandler", text, file, note)


def _main_takes(masks: SignalMasks, number: int) -> bool:
    return masks.has(masks.caught, number) and not masks.has(masks.blocked, number)


def _patience(pid: int) -> Callable[[], bool]:
    """Whether the main thread had its chance between two instructions: it sleeps (in C, else it had woken up and
    answered), or it ran for a while since. A machine with more work than cores may keep it waiting."""
    begin, before = time.monotonic(), ran_ns(pid)

    def over() -> bool:
        waited = time.monotonic() - begin
        ran = ran_ns(pid) - before
        return waited >= GENTLE_S and (state_of_main(pid) != "R" or ran >= GENTLE_RUN_NS or waited >= HANDLING_S)

    return over


def _rest_size(file: Path, base: int, over: Callable[[], bool], busy: Callable[[], bool]) -> int:
    """The size after it grew beyond `base` and rests; `base` when it did not grow until it was `over`. Where it is seen
    to be `busy` with it, the dump has not ended."""
    size, start = base, time.monotonic()
    since = start
    while (now := time.monotonic()) - start < HANDLING_S:
        seen = file.stat().st_size
        if seen != size:
            size, since = seen, now
        elif now - since >= QUIET_S and (size > base or over()) and not busy():
            break
        time.sleep(POLL_S)
    return size


def _handles(pid: int, number: int) -> bool:
    """The main thread blocks a signal while it handles it."""
    masks = masks_of(pid)
    return masks is not None and masks.has(masks.blocked, number)


def _from_outside(asker: Asker, target: Target, reason: str, state: str = "") -> Stacks:
    """py-spy without stopping the process, and what /proc says where that shows nothing or the state is odd."""
    header = asker.header(target).decode(errors="replace")
    spied, failure = _py_spy(asker, target.ident.pid)
    note = f"{reason}; stack read by py-spy" if spied else f"{reason}; {failure}"
    facts = at_length(target.ident.pid) if state or not spied else ""
    return Stacks("py-spy" if spied else "none", f"{header}{note}\n{facts}{spied}", None, note, state)


def _py_spy(asker: Asker, pid: int) -> tuple[str, str]:
    """(stacks, "") or ("", why there are none)."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = shutil.which("py-spy") or (str(beside) if os.access(beside, os.X_OK) else None)
    if tool is None:
        return "", "py-spy is not installed"
    if not asker.py_spies.acquire(timeout=asker.left_s(PY_SPY_S)):
        return "", "no time was left for py-spy"
    try:
        limit_s = asker.left_s(PY_SPY_S)
        if limit_s <= 0:
            return "", "no time was left for py-spy"
        ran = run_bounded([tool, "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)], limit_s)
    finally:
        asker.py_spies.release()
    if ran.code == 0 and ran.out:
        return ran.out, ""
    words = ran.error.strip().split("\n")[0]
    return "", f"py-spy: {escape(words, 200) or f'exit code {ran.code}'}"
