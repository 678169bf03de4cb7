"""How an attempt ended: rank records in, one outcome with one sentence out. Pure.

Rules (contracts, "Rank exit"): all 0 is success; 77, 76 and a command that cannot be started fail at once, and so does
78 beside a verdict of this attempt (without one it is the program's own); a leased device goes back to the queue; 75, a
signal and a lost shim are worth a restart; the program's own non-zero is worth one only when a step was gained since
the last start. With `.HALT` there is never a restart.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.supervisor.illness import Ill
from orchestrator.supervisor.seen import RankSeen
from workloads.contract.errors import escape
from workloads.contract.exitcodes import RankExit
from workloads.contract.health import Rung
from workloads.contract.records import RankRecord, RunVerdict

TOGETHER_S = 10.0  # deaths this close may be one cause and its echo
OURS = frozenset({"halt-term", "halt-kill", "stopped"})
EXIT_WORDS: dict[int, str] = {
    RankExit.DONE: "ended well",
    RankExit.CHECKPOINTED: "stopped after a checkpoint (exit code 75)",
    RankExit.STALE_EPOCH: "stopped because a newer attempt owns the run (exit code 76)",
    RankExit.REFUSED: "refused its configuration or checkpoint (exit code 77)",
}
GO, NO_GO = "go", "no-go"


class Ended(StrEnum):
    SUCCEEDED = "succeeded"
    HALTED = "halted"
    RESTART = "restart"  # whatever the steps say
    RESTART_IF_GAINED = "restart-if-gained"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    how: Ended
    why: str


def sentence(seen: RankSeen) -> str:
    """`rank 1 was killed by signal 9 (out of memory) at step 412`."""
    at = f" at step {seen.step}" if seen.step is not None else ""
    return f"rank {seen.rank} {_ending(seen.finished)}{at}" + (f": {seen.said}" if seen.said else "")


def _ending(record: RankRecord | None) -> str:
    if record is None:
        return "was never started"
    if record.cause == "spawn-failed" or (record.pid is None and record.cause != "lease-busy"):
        return f"could not be started: {escape(record.error or 'no reason was recorded', 300)}"
    if record.cause == "lease-busy":
        return f"found its device in use: {escape(record.error or '', 300)}"
    if record.cause == "shim-lost":
        return f"was lost with its shim ({escape(record.error, 200)})" if record.error else "was lost with its shim"
    if record.signal is not None:
        return f"was killed by signal {record.signal} ({_signal_words(record)})"
    if record.exit_code is None:
        return "ended and left no exit code"
    return EXIT_WORDS.get(record.exit_code, f"ended with exit code {record.exit_code}")


def _signal_words(record: RankRecord) -> str:
    if record.oom:
        return "out of memory"
    try:
        name = signal.Signals(record.signal or 0).name
    except ValueError:
        name = "unknown"
    return f"{name}, sent by orch" if record.cause in OURS else name


def is_bad(record: RankRecord | None) -> bool:
    """True when this ending brings the attempt down."""
    return record is not None and record.exit_code != RankExit.DONE


def first_bad(ranks: Sequence[RankSeen]) -> RankSeen | None:
    """The rank to name: the cause rather than its echo.

    Ranks that orch ended are never the cause. Among deaths within 10 s of each other one from outside (a signal, a
    lost shim) goes before an exit code and before SIGABRT: peers of a killed rank raise, or abort in a collective.
    """
    bad = [r for r in ranks if r.finished is not None and is_bad(r.finished) and r.finished.cause not in OURS]
    if not bad:
        return next((r for r in ranks if is_bad(r.finished)), None)
    earliest = min(_when(r) for r in bad)
    near = [r for r in bad if _when(r) <= earliest + TOGETHER_S]
    return min(near, key=lambda r: (not _from_outside(r.finished), _when(r), r.rank))


def _when(seen: RankSeen) -> float:
    record = seen.finished
    assert record is not None
    return record.ended if record.ended is not None else record.ts


def _from_outside(record: RankRecord | None) -> bool:
    return record is not None and (
        record.oom or record.cause == "shim-lost" or record.signal not in (None, signal.SIGABRT)
    )


def fall_words(ranks: Sequence[RankSeen], fallen: RankSeen) -> str:
    """`sentence`; of a rank that ran out of memory also how much it had, and who is ended with it."""
    record, words = fallen.finished, sentence(fallen)
    if record is None or not record.oom:
        return words
    held = f", having held up to {record.max_rss_mib:.0f} MiB" if record.max_rss_mib is not None else ""
    peers = ", ".join(str(r.rank) for r in ranks if r.rank != fallen.rank)
    return words + held + (f"; ended with it: rank {peers}" if peers else "")


def judge(
    ranks: Sequence[RankSeen],
    *,
    halt: str | None,
    verdict: RunVerdict | None = None,
    ending: Ill | None = None,
) -> Outcome:
    """What to do now that every rank is over. `halt`: the latched request, if any; `verdict`: of this attempt;
    `ending`: the finding because of which orch ended the ranks."""
    codes = {r.rank: r.finished.exit_code for r in ranks if r.finished is not None}
    for code in (RankExit.REFUSED, RankExit.STALE_EPOCH):
        for seen in ranks:
            if codes.get(seen.rank) == code:
                return Outcome(Ended.FAILED, sentence(seen))
    if verdict is not None and verdict.verdict == NO_GO and RankExit.NO_GO in codes.values():
        return Outcome(Ended.FAILED, _answer(verdict))
    for seen in ranks:
        if seen.finished is None or (seen.finished.pid is None and seen.finished.cause != "lease-busy"):
            return Outcome(Ended.HALTED if halt else Ended.FAILED, _with_halt(halt, sentence(seen)))
    first = first_bad(ranks)
    if first is None:
        n = len(ranks)
        if verdict is not None and verdict.verdict == GO:
            return Outcome(Ended.SUCCEEDED, _answer(verdict))
        return Outcome(Ended.SUCCEEDED, f"all {n} ranks ended well" if n > 1 else "the rank ended well")
    if halt:
        return _judge_halt(ranks, halt)
    if ending is not None:
        return Outcome(Ended.FAILED if ending.rung == Rung.GIVE_UP else Ended.RESTART, ending.why)
    return _judge_death(ranks, first)


def _answer(verdict: RunVerdict) -> str:
    return f"{verdict.verdict}: {escape(verdict.why, 300)}"


def first_fallen(ranks: Sequence[RankSeen]) -> RankSeen | None:
    """While halting: the rank that died of something else. 75 and what orch ended are no death."""
    return first_bad([r for r in ranks if r.finished is not None and not _halted_well(r.finished)])


def _halted_well(record: RankRecord) -> bool:
    return record.exit_code == RankExit.CHECKPOINTED or record.cause in OURS


def _judge_halt(ranks: Sequence[RankSeen], halt: str) -> Outcome:
    """With `.HALT`: an error of the program's own is a failure, everything else is a halt; what the peers of a rank
    that was killed raise is its echo."""
    fallen = first_fallen(ranks)
    if fallen is None:
        return Outcome(Ended.HALTED, halt)
    record = fallen.finished
    if record is not None and record.cause == "exited":
        return Outcome(Ended.FAILED, f"{sentence(fallen)} while halting ({halt})")
    return Outcome(Ended.HALTED, _with_halt(halt, sentence(fallen)))


def _with_halt(halt: str | None, detail: str) -> str:
    if halt is None:
        return detail
    return f"{halt}; {detail}" if detail else halt


def _judge_death(ranks: Sequence[RankSeen], first: RankSeen) -> Outcome:
    busy = next((r for r in ranks if r.finished and r.finished.cause == "lease-busy"), None)
    if busy is not None:
        return Outcome(Ended.BUSY, sentence(busy))
    record = first.finished
    assert record is not None
    own = record.cause not in (*OURS, "shim-lost") and record.signal is None
    if own and record.exit_code != RankExit.CHECKPOINTED:
        return Outcome(Ended.RESTART_IF_GAINED, sentence(first))
    return Outcome(Ended.RESTART, sentence(first))
