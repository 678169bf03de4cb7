"""Following one run to its end, and waiting until a halted one has stopped.

Both are bounded readers of a run (`waiting.watch`); cutting them off changes nothing for it. Called by
`orch launch --follow` and `orch halt`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.events import read_events
from orchestrator.runs.health import outcome
from orchestrator.runs.logs import last_lines
from orchestrator.runs.mirror import floor_of
from orchestrator.runs.reading import record_of
from orchestrator.runs.render import harmless
from orchestrator.runs.source import Source, as_source, fetch
from orchestrator.runs.views import RankView, RunView, first_dead
from orchestrator.runs.waiting import Live, last_seq, watch
from pods.remote.runfiles import name_in
from workloads.contract.errors import OrchError
from workloads.contract.exitcodes import CliExit
from workloads.contract.files import try_read_json
from workloads.contract.records import HaltAck, HaltClocks
from workloads.contract.rundir import RunDir
from workloads.contract.states import RunState

DEAD_RANK_LINES = 30
MAX_STAYED = 64
MAX_HELD_CHARS = 400
VERDICT_S = 90.0  # contracts: the verdict comes within 90 s of the last kill
UNCONFIRMED_S = 15.0  # a supervisor that was killed comes back in about 2 s
EXIT_OF = {
    RunState.SUCCEEDED: CliExit.OK,
    RunState.FAILED: CliExit.RUN_FAILED,
    RunState.HALTED: CliExit.HALTED,
}


def follow(run: RunDir | Source, live: Live) -> RunView:
    """Tell what happens until the run has ended; its last view."""
    view = next(view for view in watch(run, live) if view.over)
    live.line("")
    _fetch_last(as_source(run), view)
    return view


def _fetch_last(source: Source, view: RunView) -> None:
    """Of a run on a pod: what the words about its end are made from. Without it less is said."""
    rank = first_dead(view.ranks)
    extra: dict[str, int | None] = {name_in(source.run, source.run.training_csv): None}
    if rank is not None:
        extra[name_in(source.run, source.run.rank_log(rank.rank))] = DEAD_RANK_LINES
    if source.far:
        with contextlib.suppress(OrchError):
            fetch(source, "status", extra)


def exit_code(view: RunView) -> CliExit:
    return EXIT_OF.get(RunState(view.state), CliExit.RUN_FAILED)


def last_words(view: RunView) -> list[str]:
    """Of a failed run: the last 30 log lines of the rank that ended first and badly."""
    rank = first_dead(view.ranks)
    if rank is None or view.state != RunState.FAILED:
        return []
    path = view.run.rank_log(rank.rank)
    floor = floor_of(view.run, path) if view.sight else 0
    lines = [harmless(line) for line in last_lines(path, DEAD_RANK_LINES, floor)]
    return [f"the last {len(lines)} lines of rank {rank.rank} ({rank.verdict.why}):", *(f"  | {x}" for x in lines), ""]


@dataclass(frozen=True)
class Stopped:
    """How a halt ended. `confirmed`: the supervisor has said so."""

    view: RunView
    confirmed: bool
    timed_out: bool
    acks: dict[int, HaltAck]
    waited: bool = True
    stayed: tuple[int, ...] = ()  # processes that nothing could end, as the supervisor's verdict names them
    held: tuple[str, ...] = ()  # sentences of that verdict about GPU memory that did not come back

    @property
    def words(self) -> str:
        """How it ended, in a few words."""
        if self.timed_out:
            living = [r.rank for r in self.view.ranks if not r.ended]
            return f"not seen to stop: rank {', '.join(map(str, living[:8]))}{', ...' if len(living) > 8 else ''}"
        if not self.confirmed:
            return "all ranks stopped; the supervisor will confirm" if self.waited else f"asked; {self.view.words}"
        if not self.waited:
            return f"had ended before: {self.view.state}"
        steps = sorted({ack.step for ack in self.acks.values()})
        at = f" at step {', '.join(map(str, steps))}" if steps else ""
        left = f"; pid {', '.join(map(str, self.stayed))} stayed" if self.stayed else ""
        left += f"; {'; '.join(map(harmless, self.held))}" if self.held else ""
        left = left or ", clean"
        return f"{self.view.state}{at}{left if self.view.state == RunState.HALTED else ''}"

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.view.run.run_id,
            "state": self.view.state,
            "reason": self.view.reason,
            "confirmed": self.confirmed,
            "stayed": list(self.stayed),
            "gpu_memory": list(self.held),
            "ranks": [self._rank(r) for r in self.view.ranks],
        }

    def _rank(self, rank: RankView) -> dict[str, Any]:
        ack = self.acks.get(rank.rank)
        return {
            "rank": rank.rank,
            "outcome": outcome(rank.record) if rank.ended and rank.record else None,
            "step": ack.step if ack else None,
            "checkpoint": ack.checkpoint if ack else None,
            "hash": ack.hash if ack else None,
        }

    def lines(self) -> list[str]:
        """For a person: the state, and where every rank stopped."""
        if self.timed_out:
            blind = self.view.sight is not None and self.view.sight.reachable is not True
            head = f"was not seen to stop ({self.view.words})" if blind else "has not stopped in time"
        elif self.confirmed:
            head = self.view.state if self.waited else f"had ended before: {self.view.state}"
        elif not self.waited:
            return [f"{self.view.run.run_id}  {self.view.words}; see `orch status {self.view.run.run_id}`"]
        else:
            head = "all ranks stopped; the supervisor will confirm"
        lines = [f"{self.view.run.run_id}  {head}"]
        for rank in self.view.ranks:
            row = self._rank(rank)
            told = row["outcome"] or f"{rank.health.value} ({rank.verdict.why})"
            if row["step"] is not None:
                told += f", stopped at step {row['step']}"
            if row["checkpoint"]:
                told += f", checkpoint {row['checkpoint']}"
            if row["hash"]:
                told += f", sha256 {str(row['hash'])[:16]}"
            lines.append(f"  rank {row['rank']}: {harmless(told)}")
        if self.stayed:
            lines.append(f"  these processes stayed: pid {', '.join(map(str, self.stayed))}")
        return lines + [f"  GPU memory: {harmless(words)}" for words in self.held]


def halt_limit_s(view: RunView, *, now: bool) -> float:
    """How long a halt may take by its clocks: SIGKILL and the verdict after it."""
    clocks = HaltClocks()
    if now:
        return clocks.now_kill_s + VERDICT_S
    job = view.info.get("job")
    halt = job.get("halt") if isinstance(job, dict) else None
    grace = halt.get("grace_s") if isinstance(halt, dict) else None
    term_s = float(grace) if isinstance(grace, int | float) else clocks.term_s
    return term_s + (clocks.kill_s - clocks.term_s) + VERDICT_S


def wait_stopped(run: RunDir | Source, live: Live, *, limit_s: float) -> Stopped:
    """Until the run has ended, or all its ranks have and nobody is there to say so, or `limit_s` is over."""
    deadline = time.monotonic() + limit_s
    quiet_since: float | None = None
    for view in watch(run, live, seen=last_seq(as_source(run).run)):
        now = time.monotonic()
        if view.over or now > deadline:
            late = not view.over and not _all_ended(view)
            return Stopped(view, view.over, late, _acks(view), stayed=_stayed(view), held=_held(view))
        if not _all_ended(view) or view.supervised:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        elif now - quiet_since > UNCONFIRMED_S:
            return Stopped(view, False, False, _acks(view))
    raise AssertionError("watch never ends")


def not_waited(run: RunDir | Source) -> Stopped:
    """How it stands now: for a run that had ended before, or that was only asked."""
    view = as_source(run).view()
    return Stopped(view, view.ended, False, _acks(view), waited=False, stayed=_stayed(view), held=_held(view))


def _all_ended(view: RunView) -> bool:
    return bool(view.ranks) and all(r.ended for r in view.ranks)


def _stayed(view: RunView) -> tuple[int, ...]:
    """What the verdict of this attempt's halt names; nothing without one, or where it says `clean`."""
    return tuple(p for p in _verdict(view, "stayed") if type(p) is int)[:MAX_STAYED]


def _held(view: RunView) -> tuple[str, ...]:
    return tuple(words[:MAX_HELD_CHARS] for words in _verdict(view, "gpu") if isinstance(words, str))[:MAX_STAYED]


def _verdict(view: RunView, key: str) -> list[Any]:
    if view.state != RunState.HALTED:
        return []
    verdicts = [e for e in read_events(view.run) if e.what == "verdict" and e.attempt == view.attempt]
    found = verdicts[-1].data.get(key) if verdicts else None
    return found if isinstance(found, list) else []


def _acks(view: RunView) -> dict[int, HaltAck]:
    """What the ranks of this attempt acknowledged."""
    found: dict[int, HaltAck] = {}
    for rank in (r.rank for r in view.ranks):
        row = try_read_json(view.run.halt_ack(rank))
        if row is None or row.get("attempt") != view.attempt:
            continue
        ack = record_of(HaltAck, row)
        if ack is not None:
            found[rank] = ack
    return found
