"""What must hold after every fault. One function, `check`: the sentences that do not hold, [] when all do.

Called when the run has ended and its supervisor has left. It reads the run directory as anybody could, and the ranks'
own list of what they committed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.runs import index
from tests.faults.rank import chain, ledger_row
from tests.faults.stand import EVERY, Stand, is_shim_of
from workloads.contract.files import read_json, try_read_json
from workloads.contract.manifest import committed, verify
from workloads.contract.process import all_pids, marked
from workloads.contract.rundir import RunDir
from workloads.contract.states import ENDED, TRANSITIONS, RunState

OURS = ("halt-term", "halt-kill", "stopped")
SHARP = ("kill", "restart", "give_up")
NOT_SAVED = re.compile(rb"checkpoint of step (\d+) was not saved")


def check(stand: Stand) -> list[str]:
    return [
        *one_epoch_alive(stand),
        *newest_checkpoint_verifies(stand),
        *nothing_lives(stand),
        *events_explain(stand),
        *little_is_lost(stand),
        *index_rebuilds(stand),
    ]


def one_epoch_alive(stand: Stand) -> Iterator[str]:
    yield from stand.side_by_side[:5]
    epoch = int(stand.run.epoch.read_text()) if stand.run.epoch.exists() else 0
    newest = max((int(p.name[1:]) for p in stand.run.ranks.glob("a*")), default=0)
    if epoch != newest or stand.attempt != epoch:
        yield f"epoch says {epoch}, the newest attempt directory is a{newest}, status.json says {stand.attempt}"


def newest_checkpoint_verifies(stand: Stand) -> Iterator[str]:
    commits = stand.control.commits()
    present = committed(stand.run)
    if commits and not present:
        yield f"{len(commits)} checkpoints were committed and none is left"
    for path in present:
        if problems := verify(path, run_id=stand.run.run_id):
            yield f"{path.name} does not verify: {'; '.join(problems)[:200]}"
    if len({c["step"] for c in commits}) >= 2 and len(present) < 2:
        yield "fewer than two checkpoints are kept"
    if stand.state == "succeeded":  # the last attempt cleans up behind the ones before
        yield from (f"{p.name} was left by an unfinished save" for p in stand.run.checkpoints.glob(".tmp_*"))


def nothing_lives(stand: Stand) -> Iterator[str]:
    if stand.state not in ENDED:
        yield f"the run is {stand.state}, it should have ended"
    yield from (f"pid {p.pid} with the run's mark lives" for p in marked(stand.run.run_id))
    yield from (f"a shim lives: pid {pid}" for pid in all_pids() if is_shim_of(pid, stand.run))
    if stand.supervisor.alive():
        yield "the supervisor has not left"


def events_explain(stand: Stand) -> Iterator[str]:
    """Every action has its reason before it, and no event is missing."""
    lines = stand.run.events.read_bytes().split(b"\n")
    events: list[dict[str, Any]] = stand.events()
    torn = len([line for line in lines if line]) - len(events)
    if torn > stand.torn_events:
        yield f"{torn} lines of events.jsonl are none"
    seqs = [e["seq"] for e in events]
    if seqs != list(range(len(seqs))):
        at = next((i for i, n in enumerate(seqs) if n != i), 0)
        yield f"events are not numbered without gaps: {seqs[max(0, at - 2) : at + 3]} at line {at + 1}"
    yield from _states_follow(events)
    yield from _attempts_explained(stand, events)
    yield from _requests_answered(stand)


def _states_follow(events: list[dict[str, Any]]) -> Iterator[str]:
    before: RunState | None = None
    since: list[dict[str, Any]] = []  # what was told since the last attempt began
    halted = False
    for event in events:
        halted = halted or event["what"] == "halt"
        if event["what"] != "state":
            since.append(event)
            continue
        to, frm = RunState(event["to"]), event.get("from")
        if frm != (before.value if before else None):
            yield f"event {event['seq']} goes from {frm}, the state before was {before}"
        if before is not None and to not in TRANSITIONS[before]:
            yield f"event {event['seq']}: {before} -> {to} is no transition"
        if not event.get("why"):
            yield f"event {event['seq']}: {to} without a reason"
        by_request = "request" in event.get("data", {})
        fell = [e for e in since if e["what"] in ("rank-exit", "health", "guard")]
        if to is RunState.RESUMING and not by_request and not fell:
            yield f"event {event['seq']}: restarted, and no event says which rank ended it"
        if to is RunState.FAILED and not fell:
            yield f"event {event['seq']}: failed, and no event says what ended it"
        if to in (RunState.HALTING, RunState.HALTED) and not halted:
            yield f"event {event['seq']}: {to}, and no event says who asked for it"
        if to is RunState.STARTING:
            since = []
        if by_request:
            halted = False
        before = to


def _attempts_explained(stand: Stand, events: list[dict[str, Any]]) -> Iterator[str]:
    run = stand.run
    started = [e["attempt"] for e in events if e.get("to") == "starting"]
    if sorted(set(started)) != started:
        yield f"attempts were not started once each, in order: {started}"
    on_disk = sorted(int(p.name[1:]) for p in run.ranks.glob("a*"))
    if set(on_disk) - set(started):
        yield f"attempts {on_disk} lie on disk, the events tell of {started}"
    for attempt in on_disk:
        of = [e for e in events if e["attempt"] == attempt]
        if run.stop_order(attempt).exists() and not any(_explains_a_stop(e) for e in of):
            yield f"attempt {attempt} was stopped, and no event says why"
        for path in run.attempt_dir(attempt).glob("rank*.json"):
            row = try_read_json(path)
            if row is None or "order" in path.name:
                continue
            if "ended" not in row:
                yield f"{path.parent.name}/{path.name} does not say how the rank ended"
            elif row.get("cause") in OURS and not (run.stop_order(attempt).exists() or _halt_in(of)):
                yield f"{path.parent.name}/{path.name}: ended by orch ({row['cause']}) without an order or a halt"


def _explains_a_stop(event: dict[str, Any]) -> bool:
    return event["what"] == "rank-exit" or (event["what"] == "health" and event["data"].get("rung") in SHARP)


def _halt_in(events: list[dict[str, Any]]) -> bool:
    return any(e["what"] == "halt" for e in events)


def _requests_answered(stand: Stand) -> Iterator[str]:
    for path in stand.run.requests.glob("*.json"):
        if not path.name.endswith(".ack.json") and not RunDir.ack_of(path).exists():
            yield f"the request {path.name} was never answered"


def _refused(stand: Stand) -> int:
    """Checkpoints that were due and that the disk did not take (full, away): each is an interval that may be lost."""
    path = stand.run.rank_log(0)
    return len(set(NOT_SAVED.findall(path.read_bytes()))) if path.exists() else 0


def little_is_lost(stand: Stand) -> Iterator[str]:
    """Steps 1 to the last, once each, bitwise as undisturbed; what was made again is at most one interval,
    and one more for each save that the disk refused."""
    rows = [json.loads(line) for line in stand.run.ledger.read_text().splitlines()] if stand.step() else []
    steps = [r["step"] for r in rows]
    if steps != list(range(1, len(steps) + 1)):
        at = next(i for i, n in enumerate(steps) if n != i + 1)
        yield f"the ledger has steps {steps[max(0, at - 2) : at + 3]} at line {at + 1}"
    if stand.state == "succeeded" and len(rows) != stand.steps:
        yield f"succeeded with {len(rows)} of {stand.steps} steps in the ledger"
    state = b""
    for row in rows:
        state = chain(state, row["step"])
        if row != ledger_row(row["step"], row["attempt"], stand.world, state):
            yield f"step {row['step']} of attempt {row['attempt']} is not bitwise that of an undisturbed run"
            break
    refused = _refused(stand)
    for path in stand.run.path.glob("ledger.a*.jsonl"):
        lost = _lost(path.read_bytes())
        worst = max((len(list(g)) for _, g in itertools.groupby(lost, key=lambda r: r["attempt"])), default=0)
        if worst > (stand.intervals + refused) * EVERY:
            yield f"{path.name}: {worst} steps were made again, an interval is {EVERY}; {refused} saves were refused"
    yield from _commits(stand)


def _lost(raw: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in raw.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # torn by the kill
            continue
    return rows


def _commits(stand: Stand) -> Iterator[str]:
    by_step: dict[int, int] = {}
    newest = 0
    for commit in stand.control.commits():
        step, attempt = commit["step"], commit["attempt"]
        name = stand.run.checkpoint(step).name
        if step in by_step and name not in stand.damaged:
            yield f"step {step} was committed by attempt {by_step[step]} and again by {attempt}"
        if attempt < newest:
            yield f"attempt {attempt} committed step {step} after attempt {newest} had"
        by_step[step], newest = attempt, max(newest, attempt)
    for path in committed(stand.run):
        row = read_json(RunDir.manifest(path))
        if row["attempt"] != row["epoch"]:
            yield f"{path.name} is of attempt {row['attempt']} and epoch {row['epoch']}"


def index_rebuilds(stand: Stand) -> Iterator[str]:
    said: list[str] = []
    before = index.list_runs(stand.home, said.append)
    index.rebuild(stand.home)
    after = index.list_runs(stand.home, said.append)
    if before != after or said:
        yield f"the rebuilt index differs from the stored one: {before} {after} {said}"
    if stand.run.run_id not in [row.run for row in after]:
        yield "the index does not know the run"
