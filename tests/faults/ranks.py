"""Cells of faults that strike a rank: it dies, in every way and at every moment; it leaves a child; it is stale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from tests.faults.book import cells
from tests.faults.stand import Stand
from tests.faults.words import BEFORE_A_STEP, IN_ATTEMPT, CannotRun, Fault, When
from workloads.contract.exitcodes import RankExit
from workloads.contract.files import read_json
from workloads.contract.process import MARK, marked

STRUCK = 1
"""The rank that a fault hits; rank 0 is its peer."""


def fallen(stand: Stand, attempt: int) -> str:
    """The sentence about the rank that brought this attempt down."""
    told = [e for e in stand.events("rank-exit") if e["attempt"] == attempt]
    assert len(told) == 1, f"attempt {attempt}: {len(told)} ranks are named, not one\n{stand.story()}"
    return str(told[0]["why"])


def says(sentence: str, *words: str) -> None:
    assert all(w in sentence for w in words), f"{sentence!r} lacks one of {words}"


def says_either(sentence: str, *words: str) -> None:
    assert any(w in sentence for w in words), f"{sentence!r} has none of {words}"


def dies(stand: Stand, when: When, strike: Callable[[int], None], words: str, *, own: bool = False) -> None:
    """The rank ends by `strike`: restarted from the newest checkpoint, or what this moment asks for instead.

    `own`: an exit code of the program's own, which is worth a restart only after a new step. Its peer may see the
    broken wire and raise before the kernel has told of the end: then either is named, within milliseconds.
    """

    def names(sentence: str) -> None:
        if own:
            says_either(sentence, words, "ended with exit code 1")
        else:
            says(sentence, f"rank {STRUCK}", words)

    attempt = stand.bring_to(when)
    strike(attempt)
    stand.control.release()
    if when is When.HALTING:
        ended = "failed" if own else "halted"
        names(stand.until_state(ended)["reason"])
    elif own and when in (*BEFORE_A_STEP, When.RESUMING):
        names(stand.until_state("failed")["reason"])
        stand.control.undo(STRUCK)
    else:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        names(fallen(stand, attempt))
    stand.bring_back()


@cells(Fault.RANK_KILLED, *IN_ATTEMPT)
def rank_killed(stand: Stand, when: When) -> None:
    def strike(attempt: int) -> None:
        stand.until(lambda: stand.rank(STRUCK, attempt), "the rank's record")
        assert stand.rank(STRUCK, attempt).signal(signal.SIGKILL)

    dies(stand, when, strike, "killed by signal 9 (SIGKILL)")


@cells(Fault.RANK_SEGFAULT, When.LOADING, When.TRAINING, When.CHECKPOINTING)
def rank_segfault(stand: Stand, when: When) -> None:
    dies(stand, when, lambda a: stand.control.do(STRUCK, "segfault", attempt=a), "killed by signal 11 (SIGSEGV)")


@cells(Fault.RANK_EXITS, When.STARTING, When.TRAINING, When.CHECKPOINTING, When.HALTING, When.RESUMING)
def rank_exits(stand: Stand, when: When) -> None:
    dies(stand, when, lambda a: stand.control.do(STRUCK, "exit", code=3, attempt=a), "ended with exit code 3", own=True)


@cells(Fault.RANK_RAISES, When.TRAINING, When.EVALUATING)
def rank_raises(stand: Stand, when: When) -> None:
    """Its peer raises too, and may do so first: whichever is named, the lines say why."""
    attempt = stand.bring_to(when)
    stand.control.do(STRUCK, "raise", attempt=attempt)
    stand.control.release()
    stand.until(lambda: stand.attempt > attempt, "the next attempt")
    says(fallen(stand, attempt), "ended with exit code 1")
    lines = next(e["data"]["lines"] for e in stand.events("rank-exit"))
    assert any("a bug of the program's own" in x or "a peer is gone" in x for x in lines), lines
    stand.bring_back()


@cells(Fault.PEERS_DIE, When.STARTING, When.TRAINING, When.CHECKPOINTING)
def peers_die(stand: Stand, when: When) -> None:
    attempt = stand.bring_to(when)
    for rank in range(stand.world):
        assert stand.rank(rank, attempt).signal(signal.SIGKILL)
    stand.control.release()
    stand.until(lambda: stand.attempt > attempt, "the next attempt")
    says(fallen(stand, attempt), "killed by signal 9")
    stand.bring_back()


@cells(Fault.RANK_OOM, When.LOADING, When.TRAINING, root=True)
def rank_oom(stand: Stand, when: When) -> None:
    from tests.lab.limits import MemoryLimit
    from tests.lab.need import LabUnavailable

    try:
        limit = MemoryLimit(f"faults-{os.getpid()}", 256)
    except LabUnavailable as e:
        raise CannotRun(str(e)) from e
    stand.at_end.append(limit.close)
    stand.ways.prefix = tuple(limit.around([]))
    dies(stand, when, lambda a: stand.control.do(STRUCK, "eat_memory", attempt=a), "out of memory")
    assert limit.oom_kills >= 1


@cells(Fault.RANK_LEAVES_CHILD, When.TRAINING, When.HALTING, When.ENDED)
def rank_leaves_child(stand: Stand, when: When) -> None:
    """Before the next attempt, and before a run has ended, what a rank left behind is gone, deaf to SIGTERM or not."""
    attempt = stand.bring_to(When.TRAINING if when is When.ENDED else when)
    before = set(marked(stand.run.run_id))
    stand.control.do(STRUCK, "leave_child", ignore_term=True, attempt=attempt)
    left = stand.until(lambda: set(marked(stand.run.run_id)) - before, "the child")
    if when is When.TRAINING:
        assert stand.rank(STRUCK).signal(signal.SIGKILL)
    stand.control.release()
    if when is When.HALTING:
        stand.until_state("halted")
        verdict = stand.events("verdict")[-1]
        assert verdict["why"] == "clean", verdict
    elif when is When.TRAINING:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
    stand.bring_back()
    assert not any(p.alive() for p in left)


@cells(Fault.CRASH_LOOP, When.STARTING, When.TRAINING)
def crash_loop(stand: Stand, when: When) -> None:
    """The same rank dies in every attempt without a new step: the run ends with the reason and its last lines."""
    if when is When.STARTING:
        stand.control.do(STRUCK, "segfault", always=True)
        stand.launch(restart={"max": 2, "backoff_s": [0]})
        attempts = 3
    else:
        stand.launch(restart={"max": 2, "backoff_s": [0]})
        stand.after_commit()
        stand.control.do(STRUCK, "segfault", always=True)
        attempts = 4  # the first death came after a new step, so its restart is free of the count
    reason = stand.until_state("failed")["reason"]
    says(reason, f"rank {STRUCK}", "SIGSEGV", "restarts brought no new step")
    assert stand.attempt in (attempts - 1, attempts), stand.attempt
    exits = stand.events("rank-exit")
    assert len(exits) == stand.attempt and all(e["data"]["rank"] == STRUCK for e in exits)
    assert 0 < len(exits[-1]["data"]["lines"]) <= 30 or not stand.log(STRUCK)
    stand.control.undo(STRUCK)
    stand.bring_back()


@cells(Fault.RANK_STALE, When.TRAINING, When.HALTING)
def rank_stale(stand: Stand, when: When) -> None:
    """A rank of attempt 1, unseen by everybody, comes to its next commit while attempt 2 owns the run."""
    stand.launch()
    stand.after_commit()
    order = read_json(stand.run.rank_order(1, 0))
    stand.rank(STRUCK).signal(signal.SIGKILL)
    stand.until_state("running", attempt=2)  # and waits at the gate
    if when is When.HALTING:
        stand.control.hold("halting")
        stand.halt()
        stand.until_at("halting", 2)
    env = {k: v for k, v in order["env"].items() if k != MARK}
    folder = stand.control.control / "stale"
    folder.mkdir()
    env |= {"WORLD_SIZE": "1", "FAULTS_CONTROL": str(folder)}
    stale = subprocess.run(
        [sys.executable, "-c", STALE], env=env, cwd=order["cwd"], capture_output=True, text=True, timeout=60
    )
    assert stale.returncode == RankExit.STALE_EPOCH, (stale.returncode, stale.stderr)
    assert "attempt 2 owns the run, this is attempt 1" in stale.stderr
    assert not list(stand.run.checkpoints.glob("*99999*"))
    stand.control.release()
    stand.bring_back()


STALE = """
import sys
from tests.faults import rank
walk = rank.Walk()
walk.state.link = b"x" * 32
try:
    walk.saver(rank.Wire(walk.env)).save(99_999, {"v": 1, "step": 99_999})
except rank.StaleEpochError as e:
    print(e, file=sys.stderr)
    sys.exit(76)
"""
