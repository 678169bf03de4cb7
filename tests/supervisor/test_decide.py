"""The decision on random histories: its promises hold whatever is seen, in whatever order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.health.facts import Act, Cleared, Finding
from orchestrator.supervisor.actions import (
    Action,
    AskDump,
    End,
    Fall,
    Found,
    Healed,
    LatchHalt,
    Leave,
    Resume,
    Spawn,
    Start,
    Stop,
    Tell,
    TellDump,
    Transition,
    WatchdogHalt,
)
from orchestrator.supervisor.decide import LIVING, decide
from orchestrator.supervisor.illness import Mark
from orchestrator.supervisor.memory import Memory
from orchestrator.supervisor.outcome import is_bad
from orchestrator.supervisor.seen import (
    Care,
    DumpSeen,
    GangSeen,
    GangState,
    Limits,
    RankPhase,
    RankSeen,
    RequestSeen,
    Seen,
)
from orchestrator.supervisor.told import dump_data, found_data, place_of
from orchestrator.supervisor.treat import DUMP_WAIT_S, STALLS, UNSEEN
from workloads.contract.haltfile import Halt
from workloads.contract.health import SHARP, Rule, Rung
from workloads.contract.records import Ack, Event, RankRecord, RunVerdict
from workloads.contract.states import ENDED, RESUMABLE, TRANSITIONS, RunState

LIMITS = Limits("train", 3, (0.0, 5.0, 30.0))
HALT = Halt(False, "enough", "me", 1.0)
NO = RunVerdict("r", 1, "no-go", "2 of 112 cells", 1.0)


def record(rank: int = 0, *, code: int | None = None, signal: int | None = None, **more: object) -> RankRecord:
    ended = None if code is None and signal is None and "error" not in more else 100.0
    base = RankRecord("r", 1, rank, "local", 1, 1, "b", ["x"], 50.0, pid=10, start_time=5)
    return replace(base, ended=ended, exit_code=code, signal=signal, **{"cause": "exited", **more})  # type: ignore[arg-type]


def rank(number: int, phase: RankPhase, rec: RankRecord | None = None, step: int | None = None) -> RankSeen:
    return RankSeen(number, "local", phase, rec, None, step, Mark("progress", step, step))


def ended(number: int, **kwargs: object) -> RankSeen:
    step = kwargs.pop("step", None)
    return rank(number, RankPhase.ENDED, record(number, **kwargs), step)  # type: ignore[arg-type]


def alive(number: int, step: int | None = None) -> RankSeen:
    return rank(number, RankPhase.ALIVE, record(number), step)


def seen(state: RunState | None, ranks: tuple[RankSeen, ...] = (), **changes: object) -> Seen:
    memory = Memory(state=state, attempt=1 if ranks else 0, closed=state not in (RunState.STARTING, RunState.RUNNING))
    memory = replace(memory, **changes.pop("memory", {}))  # type: ignore[arg-type]
    base = Seen(
        memory, LIMITS, ranks, GangSeen(GangState.READY), 100.0, over_s=1.0, busy={}, strays=() if ranks else None
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def only_transition(actions: list[Action]) -> Transition:
    moves = [a for a in actions if isinstance(a, Transition)]
    assert len(moves) == 1, actions
    return moves[0]


def fold(memory: Memory, actions: list[Action]) -> Memory:
    """The memory after the events that the engine writes for these actions."""
    for a in actions:
        if isinstance(a, Transition):
            event = Event(0, 0.0, memory.attempt, "s", "state", a.why, to=a.to.value, data=dict(a.data))
        elif isinstance(a, Start):
            event = Event(0, 0.0, a.attempt, "s", "state", "", to="starting", data={"base_step": -1})
        elif isinstance(a, LatchHalt):
            event = Event(0, 0.0, memory.attempt, "s", "halt", a.halt.why)
        elif isinstance(a, Fall):
            event = Event(0, 0.0, memory.attempt, "s", "rank-exit", a.why, data={"rank": a.rank})
        elif isinstance(a, Resume):
            event = Event(0, 0.0, memory.attempt, "s", "state", "", to="resuming", data={"request": a.request.name})
        elif (health := health_event(memory, a)) is not None:
            event = health
        else:
            continue
        memory = memory.apply(event)
    return memory


def health_event(memory: Memory, a: Action) -> Event | None:
    """What the watchdog writes for its actions."""
    if isinstance(a, Found):
        what, why, data = "health", a.act.finding.why, found_data(a)
    elif isinstance(a, Healed):
        what, why, data = "health-clear", a.why, place_of(a.ill)
    elif isinstance(a, TellDump):
        what, (why, data) = "dump", dump_data(a.due, a.ack)
    elif isinstance(a, End):
        what, why, data = "stop", a.ill.why, place_of(a.ill) | {"rung": a.ill.rung.value}
    else:
        return None
    return Event(0, 0.0, memory.attempt, "s", what, why, data={k: v for k, v in data.items() if v is not None})


RECORDS = st.builds(
    lambda code, sig, cause, err, pid: replace(
        record(), exit_code=code, signal=sig, ended=100.0, cause=cause, error=err, pid=pid
    ),
    st.sampled_from([0, 0, 0, 1, 75, 76, 77, 78, None]),
    st.sampled_from([None, None, 6, 9, 15]),
    st.sampled_from(["exited", "signalled", "spawn-failed", "lease-busy", "shim-lost", "halt-term", "stopped", None]),
    st.sampled_from([None, "no such file"]),
    st.sampled_from([10, 10, None]),
)
RANKS = st.lists(
    st.one_of(
        st.builds(lambda p, s: rank(0, p, None, s), st.sampled_from(["absent", "spawned", "unknown"]).map(RankPhase),
                  st.none()),
        st.builds(lambda s: alive(0, s), st.sampled_from([None, 0, 5])),
        st.builds(lambda p, r, s: rank(0, p, r, s), st.sampled_from(["closing", "ended"]).map(RankPhase), RECORDS,
                  st.sampled_from([None, 3])),
    ),
    min_size=2, max_size=2,
).map(lambda rs: tuple(replace(r, rank=i) for i, r in enumerate(rs)))  # fmt: skip
REQUESTS = st.lists(
    st.builds(
        RequestSeen, st.sampled_from(["a", "b"]), st.sampled_from(["halt", "resume", "dance"]),
        problem=st.sampled_from([None, None, "torn"]),
    ),
    max_size=2,
).map(tuple)  # fmt: skip
FINDINGS = st.builds(
    lambda rule, rank: Finding(rule, f"rank {rank} is ill", rank, None if rank is not None else "local"),
    st.sampled_from(
        [Rule.NO_STEP, Rule.NO_STEP, Rule.NO_BEAT, Rule.NAN, Rule.PHASE_OVER, Rule.POD_SILENT, Rule.GPU_MISSING]
    ),
    st.sampled_from([0, 1, None]),
)
ACK = Ack(True, "keeper", 1.0, "", {"groups": []})
CARE = st.builds(
    Care,
    news=st.lists(
        st.one_of(
            st.builds(Act, st.sampled_from(list(Rung)), FINDINGS, st.sampled_from([False, False, True])),
            st.builds(Act, st.sampled_from(list(Rung)), FINDINGS, st.just(False)),
            st.builds(Cleared, FINDINGS, st.just(3.0)),
        ),
        max_size=2,
    ).map(tuple),
    adopted=st.lists(FINDINGS.map(lambda f: f.key), max_size=2).map(frozenset),
    dump=st.builds(
        DumpSeen, st.booleans(), st.sampled_from([None, ACK, replace(ACK, ok=False)]), st.sampled_from([0.0, 100.0])
    ),
    due_s=st.sampled_from([0.0, 20.0]),
    blind=st.sampled_from(["", "", "", "gone"]),
    anew=st.sampled_from([False] * 9 + [True]),
)
LOOKS = st.fixed_dictionaries(
    {
        "care": st.one_of(st.just(Care()), st.just(Care()), CARE),
        "ranks": RANKS,
        "gang": st.sampled_from(list(GangState)).map(lambda g: GangSeen(g, "figures")),
        "in_state_s": st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
        "over_s": st.sampled_from([0.0, 100.0]),
        "fallen_s": st.sampled_from([0.0, 100.0]),
        "halt": st.sampled_from([None, None, None, HALT]),
        "requests": REQUESTS,
        "busy": st.sampled_from([None, {}, {}, {"GPU-1": "other"}, "nvidia-smi hangs"]),
        "strays": st.sampled_from([None, (), (), (77,)]),
        "best_step": st.sampled_from([-1, 3, 5]),
        "spawn_age_s": st.sampled_from([None, 1.0, 30.0]),
        "spawn_tries": st.sampled_from([0, 6]),
        "stopping": st.booleans(),
        "verdict": st.sampled_from([None, None, NO]),
    }
)


HISTORIES = (st.lists(LOOKS, min_size=5, max_size=25), st.sampled_from(["train", "command"]))


@settings(max_examples=50, deadline=None)
@given(*HISTORIES)
def test_promises_on_random_histories(looks: list[dict[str, object]], kind: str) -> None:
    _check_promises(looks, kind)


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(*HISTORIES)
def test_promises_on_many_random_histories(looks: list[dict[str, object]], kind: str) -> None:
    _check_promises(looks, kind)


def _check_promises(looks: list[dict[str, object]], kind: str) -> None:
    memory = Memory()
    for look in looks:
        s = seen(None)
        s = replace(s, **look, limits=replace(LIMITS, kind=kind), memory=memory)  # type: ignore[arg-type]
        if not memory.attempt:
            s = replace(s, ranks=())
        actions = decide(s)
        moves = [a for a in actions if isinstance(a, Transition | Start | Resume)]
        assert len(moves) <= 1, actions
        _check_moves(s, moves)
        assert any(isinstance(a, Leave | Resume) for a in actions) == (memory.state in ENDED)
        if any(isinstance(a, Stop) for a in actions):
            given_up = s.spawn_tries >= 6 and any(r.phase == RankPhase.ABSENT for r in s.ranks)
            told = given_up or memory.health.ending is not None
            assert told or any(is_bad(r.finished) for r in s.ranks), "stopped without a bad end that was seen"
        _check_care(s, actions)
        memory = fold(memory, actions)


SICK = st.fixed_dictionaries(
    {
        "care": CARE,
        "ranks": st.lists(
            st.sampled_from(
                [alive(0, 5)] * 20 + [alive(0, 6), rank(0, RankPhase.UNKNOWN)] * 2
                + [ended(0, signal=9), ended(0, signal=9, cause="stopped")]
            ),
            min_size=2, max_size=2,
        ).map(lambda rs: tuple(replace(r, rank=i) for i, r in enumerate(rs))),
        "halt": st.sampled_from([None] * 30 + [HALT]),
        "stopping": st.booleans(),
        "in_state_s": st.sampled_from([1.0, 1.0, 1000.0]),
    }
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(SICK, min_size=3, max_size=15))
def test_what_is_sharp_on_random_histories_of_sick_ranks(looks: list[dict[str, object]]) -> None:
    memory = Memory(RunState.RUNNING, attempt=1, closed=False)
    for look in looks:
        s = replace(seen(None), strays=(), **look, memory=memory)  # type: ignore[arg-type]
        if memory.state not in LIVING:
            return
        actions = decide(s)
        _check_moves(s, [a for a in actions if isinstance(a, Transition | Start | Resume)])
        _check_care(s, actions)
        before, memory = memory, fold(memory, actions)
        if before.health.ending is not None and before.halt is None and memory.state == RunState.RESUMING:
            assert memory.reason.startswith(before.health.ending.why)
        if memory.state == RunState.FAILED and before.health.ending is not None:
            assert before.health.ending.rung == Rung.GIVE_UP or "restarts brought" in memory.reason


def _check_care(s: Seen, actions: Sequence[Action]) -> None:
    """Nothing sharp from what was not seen, not dumped or only observed; a halt beats a restart."""
    due = s.memory.health.due
    sharp = [a for a in actions if isinstance(a, End | WatchdogHalt)]
    assert len(sharp) <= 1 and sum(isinstance(a, AskDump) for a in actions) <= 1
    assert s.memory.state in LIVING or not any(isinstance(a, Found | AskDump | End | WatchdogHalt) for a in actions)
    for act in sharp:
        assert due is not None and act.ill == due and due.rung in SHARP and not due.observed
        assert s.halt is None and s.memory.halt is None, "a halt was asked for"
        assert not s.care.blind and not s.care.anew and due.rule not in UNSEEN
        assert due.dumped or s.care.due_s >= DUMP_WAIT_S
        assert isinstance(act, WatchdogHalt) == (due.rung == Rung.HALT)
        assert not any(is_bad(r.finished) for r in s.ranks), "the rank that died is the reason"
        mine = [r for r in s.ranks if due.rank in (None, r.rank)]
        if due.rule in STALLS and due.mark is not None:
            assert all(r.mark.step == due.mark.step for r in mine), "it went on since"
        assert any(r.phase in (RankPhase.ALIVE, RankPhase.CLOSING, RankPhase.ENDED) for r in mine)


def _check_moves(s: Seen, moves: Sequence[Action]) -> None:
    memory = s.memory
    halted = s.halt is not None or memory.halt is not None
    for move in moves:
        to = {Start: RunState.STARTING, Resume: RunState.RESUMING}.get(type(move)) or move.to  # type: ignore[union-attr]
        if memory.state is None:
            assert to == RunState.QUEUED
            continue
        assert to in TRANSITIONS[memory.state], (memory.state, to)
        if memory.state in ENDED:
            assert isinstance(move, Resume) and memory.state in RESUMABLE
        if isinstance(move, Start):
            assert s.strays == () and s.busy == {} and not halted
            assert all(r.phase in (RankPhase.ENDED, RankPhase.ABSENT) for r in s.ranks)
        if to == RunState.RESUMING and not isinstance(move, Resume):
            assert not halted
        if to in ENDED and memory.state not in (RunState.QUEUED, RunState.PREPARING, RunState.RESUMING):
            left = [r for r in s.ranks if r.phase not in (RankPhase.ENDED, RankPhase.ABSENT)]
            named = memory.state == RunState.HALTING and all(f"rank {r.rank}: " in move.why for r in left)  # type: ignore[union-attr]
            assert not left or (named and not any(r.phase == RankPhase.UNKNOWN for r in left))


def test_it_is_quick() -> None:
    s = seen(RunState.RUNNING, (alive(0, 5), alive(1, 5)))
    began = time.process_time()
    for _ in range(2000):
        assert decide(s) == []
    assert time.process_time() - began < 2.0


def test_the_way_of_a_good_run() -> None:
    assert only_transition(decide(seen(None))).to == RunState.QUEUED
    assert only_transition(decide(seen(RunState.QUEUED))).to == RunState.PREPARING
    assert decide(seen(RunState.PREPARING, strays=())) == [Start(1)]
    starting = seen(RunState.STARTING, (alive(0), alive(1)))
    assert decide(starting) == []
    assert only_transition(decide(seen(RunState.STARTING, (alive(0, 1), alive(1))))).to == RunState.RUNNING
    command = replace(starting, limits=replace(LIMITS, kind="command"))
    assert only_transition(decide(command)).to == RunState.RUNNING
    done = seen(RunState.RUNNING, (ended(0, code=0), ended(1, code=0)))
    assert only_transition(decide(done)).to == RunState.SUCCEEDED


def test_a_killed_rank_brings_its_peers_down_and_the_run_back() -> None:
    killed = ended(1, signal=9, oom=True, step=412)
    actions = decide(seen(RunState.RUNNING, (alive(0, 412), killed), strays=None))
    assert [type(a) for a in actions] == [Fall, Stop]
    assert actions[1] == Stop("rank 1 was killed by signal 9 (out of memory) at step 412", 0.0, 5.0)
    stopped = ended(0, signal=9, cause="stopped")
    after = seen(RunState.RUNNING, (stopped, killed), memory={"fallen": 1, "spent": 0}, best_step=412)
    move = only_transition(decide(after))
    assert move.to == RunState.RESUMING
    assert move.why.startswith("rank 1 was killed by signal 9 (out of memory) at step 412; restarting from")
    assert move.why.endswith("(1 of 3)") and move.data == {"spent": 1, "backoff_s": 0.0}


def test_restarts_stop_when_no_step_is_gained() -> None:
    ranks = (ended(0, signal=9),)
    third = seen(RunState.RUNNING, ranks, memory={"spent": 2, "base_step": 7}, best_step=7)
    assert only_transition(decide(third)).data == {"spent": 3, "backoff_s": 30.0}
    fourth = replace(third, memory=replace(third.memory, spent=3))
    assert only_transition(decide(fourth)).to == RunState.FAILED
    gained = replace(fourth, best_step=8)
    assert only_transition(decide(gained)).data["spent"] == 1


def test_exit_codes() -> None:
    def end(code: int, **changes: object) -> Transition:
        return only_transition(decide(seen(RunState.RUNNING, (ended(0, code=code), ended(1, code=0)), **changes)))

    assert end(1).to == RunState.FAILED
    assert end(1, best_step=3).to == RunState.RESUMING
    assert end(75).to == RunState.RESUMING
    assert end(75, memory={"halt": "by me"}).to == RunState.HALTED
    assert end(76, best_step=3).to == RunState.FAILED
    assert end(77, best_step=3).to == RunState.FAILED
    assert end(1, memory={"halt": "by me"}).to == RunState.FAILED
    assert end(0, memory={"halt": "by me"}).to == RunState.SUCCEEDED


def test_an_answer_of_no_ends_the_run_and_is_its_reason() -> None:
    def end(code: int, verdict: RunVerdict | None, **changes: object) -> Transition:
        return only_transition(decide(seen(RunState.RUNNING, (ended(0, code=code),), verdict=verdict, **changes)))

    go = RunVerdict("r", 1, "go", "112 cells", 1.0)
    said_no = end(78, NO, best_step=112)
    assert (said_no.to, said_no.why) == (RunState.FAILED, "no-go: 2 of 112 cells")
    assert end(78, NO, memory={"halt": "by me"}).why == "no-go: 2 of 112 cells"
    assert (end(0, go).to, end(0, go).why) == (RunState.SUCCEEDED, "go: 112 cells")
    # without a verdict 78 is the program's own, and a verdict does not excuse a crash
    assert end(78, None, best_step=112).to == RunState.RESUMING
    assert end(78, None).why == "rank 0 ended with exit code 78" and end(78, go).to == RunState.FAILED
    assert end(1, NO, best_step=112).to == RunState.RESUMING


def test_the_cause_is_named_and_not_its_echo() -> None:
    echo = replace(ended(0, code=1), record=replace(record(0, code=1), ended=99.0))
    cause = ended(1, signal=9, cause="signalled")
    actions = decide(seen(RunState.RUNNING, (echo, cause)))
    assert actions[0] == Fall(1, "rank 1 was killed by signal 9 (SIGKILL)")
    move = only_transition(actions)
    assert move.to == RunState.RESUMING and move.why.startswith("rank 1 was killed by signal 9 (SIGKILL)")


def test_out_of_memory_is_told_as_such_with_what_it_held_and_who_goes_with_it() -> None:
    killed = ended(1, signal=9, cause="signalled", oom=True, max_rss_mib=812.4, step=412)
    fall = decide(seen(RunState.RUNNING, (alive(0, 412), killed, alive(2, 412)), strays=None))[0]
    words = "rank 1 was killed by signal 9 (out of memory) at step 412, having held up to 812 MiB"
    assert fall == Fall(1, f"{words}; ended with it: rank 0, 2")


def test_devices_that_cannot_be_looked_at_are_told_and_nothing_is_started() -> None:
    for state in (RunState.QUEUED, RunState.PREPARING):
        (told,) = decide(replace(seen(state, (), busy="nvidia-smi hangs"), strays=()))
        assert isinstance(told, Tell) and "nvidia-smi hangs" in told.reason


def test_lease_busy_goes_back_to_the_queue() -> None:
    held = replace(record(0), pid=None, ended=100.0, cause="lease-busy", error="GPU-1 is leased by run other")
    ranks = (rank(0, RankPhase.ENDED, held), ended(1, signal=9, cause="stopped"))
    move = only_transition(decide(seen(RunState.STARTING, ranks)))
    assert move.to == RunState.QUEUED and "GPU-1 is leased by run other" in move.why
    waiting = seen(RunState.QUEUED, ranks, busy={"GPU-1": "other"})
    assert decide(waiting)[0].behind == ("other",)  # type: ignore[union-attr]


def test_spawn_failure_fails_at_once_with_the_error() -> None:
    bad = replace(record(0), pid=None, ended=1.0, cause="spawn-failed", error="python3.99: command not found")
    move = only_transition(decide(seen(RunState.STARTING, (rank(0, RankPhase.ENDED, bad),))))
    assert move.to == RunState.FAILED and "python3.99: command not found" in move.why


def test_queued_and_resuming_runs_halt_at_once() -> None:
    for state in (RunState.QUEUED, RunState.PREPARING, RunState.RESUMING):
        actions = decide(seen(state, halt=HALT))
        assert isinstance(actions[0], LatchHalt)
        assert only_transition(actions).to == RunState.HALTED


def test_what_cannot_be_seen_is_left_alone() -> None:
    unknown = (rank(0, RankPhase.UNKNOWN), alive(1, 5))
    assert decide(seen(RunState.RUNNING, unknown, gang=GangSeen(GangState.UNKNOWN))) == []
    assert decide(seen(RunState.RESUMING, (ended(0, signal=9),), strays=None)) == []


def test_absent_shims_are_asked_for_again_and_given_up() -> None:
    ranks = (rank(0, RankPhase.ABSENT), alive(1))
    assert decide(seen(RunState.STARTING, ranks, spawn_age_s=2.0)) == []
    assert decide(seen(RunState.STARTING, ranks, spawn_age_s=11.0)) == [Spawn((0,))]
    gave_up = decide(seen(RunState.STARTING, ranks, spawn_age_s=11.0, spawn_tries=6))
    assert [type(a) for a in gave_up] == [Fall, Stop]
    over = (ranks[0], ended(1, signal=9, cause="stopped"))
    late = seen(RunState.STARTING, over, spawn_age_s=30.0, spawn_tries=6, memory={"fallen": 0})
    assert only_transition(decide(late)).to == RunState.FAILED


def test_resume_only_from_an_end_that_allows_it() -> None:
    ask = RequestSeen("x", "resume", "me")
    running = decide(seen(RunState.RUNNING, (alive(0, 5),), requests=(ask,)))
    assert running[0].ok is False and "running" in running[0].why  # type: ignore[union-attr]
    assert decide(seen(RunState.HALTED, requests=(ask,))) == [Resume(ask)]
    done = decide(seen(RunState.SUCCEEDED, requests=(ask,)))
    assert done[0].ok is False and isinstance(done[1], Leave)  # type: ignore[union-attr]
    again = decide(
        seen(RunState.RESUMING, requests=(ask,), memory={"resumed_by": "x"}, gang=GangSeen(GangState.UNKNOWN))
    )
    assert again[0].ok is True  # type: ignore[union-attr]
