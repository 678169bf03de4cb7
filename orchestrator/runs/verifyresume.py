"""Does a run that is killed and resumed compute what an unbroken one computes? The kills, and what came of it.

The kills are drawn from a seed, so that the same command does the same again. They are carried out on the pod
(`pods.remote.killing`); who goes on from there is orch's own supervision and nothing else. Called by
`orch verify-resume`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.runs.ledgers import Difference, Row, first_difference, first_unlike, read_ledger, read_lost
from orchestrator.runs.source import Source, fetch
from orchestrator.runs.views import RunView
from orchestrator.runs.waiting import Live, watch
from pods.remote.runfiles import name_in
from workloads.contract.errors import RemoteError, UnreachableError, UsageError
from workloads.contract.states import RunState

EQUAL, DIFFERENT, UNPROVEN = "equal", "different", "unproven"
KILL_WAIT_S = 2
MOVED_REL = 1e-5
"""Another number of ranks sums in another order."""
LATEST_KILL = 0.9
"""Of the steps: later ones may all be over before a kill can hit."""
ENOUGH_STEPS = 60
"""`--steps` when nobody says."""


@dataclass(frozen=True)
class Kill:
    step: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A kill that was carried out: `step` was the newest one in the ledger then."""

    planned: int
    step: int
    attempt: int
    ranks: tuple[int, ...]


def plan_kills(kills: int, steps: int, world: int, seed: int, *, first: int = 1) -> list[Kill]:
    """By step, from `first` on: at different ones, of one rank or of all, by the draw.

    UsageError when there are too few steps.
    """
    last = max(1, int(steps * LATEST_KILL))
    room = max(0, last - first + 1)
    if not 0 < kills <= room:
        raise UsageError(
            "E-VERIFY-001", f"{kills} kills do not fit into {steps} steps", where="--kills", value=kills,
            expected=f"1 to {room}, or more --steps" if room else "more --steps",
            fix=f"--kills {min(max(kills, 1), room)}" if room else f"--steps {ENOUGH_STEPS}",
        )  # fmt: skip
    rng = random.Random(seed)
    victims = [(k,) for k in range(world)] + ([tuple(range(world))] if world > 1 else [])
    return [Kill(step, rng.choice(victims)) for step in sorted(rng.sample(range(first, last + 1), kills))]


def first_kill(every: int) -> int:
    """The first step behind which a run that saves every so many steps surely has a checkpoint: a save waits for the
    one before it, so the first one is there when steps behind the second are in the ledger."""
    return 2 * every + 1


def kill_along(source: Source, plan: Sequence[Kill], live: Live) -> tuple[list[Made], RunView]:
    """Kill ranks of a run as planned while it goes on, until it has ended; which kills were made, and its last view."""
    made: list[Made] = []
    for view in watch(source, live):
        if view.over:
            return made, view
        if len(made) == len(plan):
            continue
        done = _try(source, plan[len(made)], made[-1].attempt if made else 0)
        if done is not None:
            made.append(done)
            whom = f"rank {', '.join(map(str, done.ranks))}"
            live.line(f"  killed {whom} behind step {done.step} ({len(made)} of {len(plan)})")
    raise AssertionError("watch never ends")


def _try(source: Source, kill: Kill, after: int) -> Made | None:
    asked = {"step": kill.step, "ranks": list(kill.ranks), "after": after, "wait_s": KILL_WAIT_S}
    try:
        told = source.ask("kill", run=source.run.run_id, **asked)
    except UnreachableError:
        return None  # that is told by `watch`
    hit, step, attempt = told.get("ranks"), told.get("step"), told.get("attempt")
    if not isinstance(hit, list) or type(step) is not int or type(attempt) is not int:
        raise RemoteError("E-VERIFY-002", f"pod {source.pod} did not say whom it killed", value=repr(told)[:100])
    return Made(kill.step, step, attempt, tuple(k for k in hit if type(k) is int)) if hit else None


def bring_ledgers(source: Source, attempts: int) -> None:
    """Of a run on a pod: its ledger and what its resumes cut off."""
    if source.far:
        run = source.run
        paths = [run.ledger, *(run.archived_ledger(n) for n in range(attempts + 1))]
        fetch(source, "status", {name_in(run, path): None for path in paths})


def lost_rows(source: Source, attempts: int) -> list[Row]:
    """Steps that kills took back."""
    return [row for n in range(attempts + 1) for row in read_lost(source.run.archived_ledger(n))]


def began_with(rows: Sequence[Row], attempt: int) -> int | None:
    """The first step of the next attempt behind `attempt` that made one; None when no step was made."""
    later = [(row.attempt, row.step) for row in rows if row.attempt > attempt]
    return min(later)[1] if later else None


@dataclass(frozen=True)
class Moved:
    """A run on another number of ranks that began with a checkpoint of the unbroken one."""

    world: int
    after: int
    run: str
    state: str
    difference: Difference | None

    def words(self) -> str:
        equal = "equal batch hashes, losses within 1e-5" if self.state == RunState.SUCCEEDED else self.state
        told = equal if self.difference is None else f"step {self.difference.step}: {self.difference.what}"
        role = f"{self.world} rank{'s' * (self.world != 1)}"
        return f"  {role:<9} {self.run}  from step {self.after} on: {told}"

    def as_json(self) -> dict[str, Any]:
        told = self.difference.as_json() if self.difference else None
        return {"world_size": self.world, "after": self.after, "run": self.run, "state": self.state, "difference": told}


def compare_moved(unbroken: Source, moved: Source, view: RunView, *, world: int, after: int, steps: int) -> Moved:
    """The same batches, and the same losses but for the order of sums."""
    difference = None
    if view.state == RunState.SUCCEEDED:
        bring_ledgers(moved, view.attempt or 0)
        one, other = read_ledger(unbroken.run.ledger)[after:], read_ledger(moved.run.ledger)
        difference = first_difference(one, other, steps, after=after, rel=MOVED_REL)
    return Moved(world, after, moved.run.run_id, str(view.state), difference)


@dataclass(frozen=True)
class Verified:
    """What was done and what came of it."""

    steps: int
    world: int
    pod: str
    seed: int
    kills: tuple[Kill, ...]
    made: tuple[Made, ...]
    runs: tuple[tuple[str, str, str], ...]
    """(role, id, state) of every run"""
    again: int
    """steps that were made a second time"""
    difference: Difference | None
    moved: tuple[Moved, ...] = ()
    began: tuple[int | None, ...] = ()
    """for each kill of `made`: the step with which the run went on; None: it made none"""

    @property
    def why(self) -> str:
        """Why nothing was proven; empty when something was."""
        for role, ident, state in self.runs:
            if state != RunState.SUCCEEDED:
                return f"the {role} run {ident} is {state}"
        for move in self.moved:
            if move.state != RunState.SUCCEEDED:
                return f"the run {move.run} on {move.world} ranks is {move.state}"
        if missed := len(self.kills) - len(self.made):
            return f"{missed} of {len(self.kills)} kills came too late: the run was over"
        for kill, first in zip(self.made, self.began, strict=True):
            if first is None:
                return f"no step was made after the kill behind step {kill.step}"
            if first == 1:
                return f"no checkpoint was loaded after the kill behind step {kill.step}: the run began anew"
        return ""

    @property
    def verdict(self) -> str:
        if self.difference is not None or any(m.difference is not None for m in self.moved):
            return DIFFERENT
        return UNPROVEN if self.why else EQUAL

    def as_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "verdict": self.verdict,
            "why": self.why or None,
            "steps": self.steps,
            "world_size": self.world,
            "pod": self.pod,
            "seed": self.seed,
            "kills": [asdict(m) for m in self.made],
            "kills_asked": len(self.kills),
            "made_again": self.again,
            "runs": {role: {"run": ident, "state": state} for role, ident, state in self.runs},
            "difference": self.difference.as_json() if self.difference else None,
            "moved": [m.as_json() for m in self.moved],
        }

    def lines(self) -> list[str]:
        """For a person; the verdict last."""
        ranks = f"{self.world} rank{'s' * (self.world != 1)}"
        lines = [f"{self.steps} steps on {ranks} of pod {self.pod}, seed {self.seed}"]
        lines += [f"  {role:<9} {ident}  {state}" for role, ident, state in self.runs]
        if self.made:
            whom = (f"{m.step} ({'all' if len(m.ranks) == self.world > 1 else m.ranks[0]})" for m in self.made)
            lines.append(f"  killed behind step (rank) {', '.join(whom)}; {self.again} steps were made again")
        lines += [m.words() for m in self.moved]
        apart = [(self.runs[-1][0], self.difference), *((f"{m.world} ranks", m.difference) for m in self.moved)]
        for role, d in apart:
            if d is not None:
                pair = ((self.runs[0][0], d.one), (role, d.other))
                lines.append(f"different: step {d.step}: {d.what}")
                return [*lines, *(f"  {name:<9} {row.words() if row else '-'}" for name, row in pair)]
        if self.why:
            return [*lines, f"{UNPROVEN}: {self.why}"]
        bits = f"{self.steps} batch hashes and losses, bit for bit" if self.kills else ""
        worlds = " and ".join(str(m.world) for m in self.moved)
        moved = f"on {worlds} ranks the same batches, losses within {MOVED_REL:g}" if self.moved else ""
        return [*lines, f"equal: {'; '.join(filter(None, (bits, moved)))}"]


def compare(
    unbroken: Source, killed: Source, views: tuple[RunView, RunView], moved: Sequence[Moved] = (), **facts: Any
) -> Verified:
    """The ledgers of two runs that have ended, brought home where they lie elsewhere."""
    steps = int(facts["steps"])
    states = tuple(
        (role, view.run.run_id, str(view.state)) for role, view in zip(("unbroken", "killed"), views, strict=True)
    )
    for source, view in zip((unbroken, killed), views, strict=True):
        bring_ledgers(source, view.attempt or 0)
    final = read_ledger(killed.run.ledger)
    lost = lost_rows(killed, views[1].attempt or 0)
    difference = None
    if all(state == RunState.SUCCEEDED for _, _, state in states):
        difference = first_difference(read_ledger(unbroken.run.ledger), final, steps) or first_unlike(lost, final)
    began = tuple(began_with([*lost, *final], kill.attempt) for kill in facts["made"])
    return Verified(runs=states, again=len(lost), difference=difference, moved=tuple(moved), began=began, **facts)
