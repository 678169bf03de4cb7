"""Halting one run or all of them: every pod is asked at once, then each run is waited for, and each says how it ended.

Everything is bounded: a pod that gives no sign of life is not waited for, a halt is given up when its clocks are over.
What could not be asked is an answer too, with the command to repeat. Called by `orch halt`.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.runs.fleet import Double, Look, doubles, far_pods, has_far_pods, sources, survey
from orchestrator.runs.follow import Stopped, halt_limit_s, not_waited, wait_stopped
from orchestrator.runs.render import duration
from orchestrator.runs.source import Source
from orchestrator.runs.views import RunView, state_of
from orchestrator.runs.waiting import Live
from workloads.contract.errors import ConflictError, OrchError, RefusedError, RemoteError, SpecError, UnreachableError
from workloads.contract.rundir import OrchHome
from workloads.contract.states import ENDED

T = TypeVar("T")
SEVERITY: tuple[type[OrchError], ...] = (RemoteError, UnreachableError, RefusedError)
"""The worst first: what was asked and lives, what could not be asked, what would not be asked; then any other."""


@dataclass(frozen=True)
class Order:
    """What is asked of every run."""

    now: bool
    why: str
    who: str
    wait: bool


@dataclass(frozen=True)
class Halted:
    """How it went with one run, or with a pod whose runs could not be asked (`run` is then `-` where none is known)."""

    run: str
    pod: str
    stopped: Stopped | None = None
    error: OrchError | None = None

    @property
    def words(self) -> str:
        if self.stopped is not None:
            return self.stopped.words
        return f"not asked: {self.error.what.split(': ', 1)[-1] if self.error else '-'}"


def worst(errors: Sequence[OrchError]) -> int:
    """The exit code of the worst of them."""
    ranked = sorted(errors, key=lambda e: next((i for i, k in enumerate(SEVERITY) if isinstance(e, k)), len(SEVERITY)))
    return int(ranked[0].exit_code)


def halt_runs(chosen: Sequence[Source], order: Order, live: Live, wake: Callable[[Source], None]) -> list[Halted]:
    """Ask all, then wait for one after the other. OrchError when there is but one and it cannot be asked.

    `wake`: have a keeper run where a run lies; it is called once a machine, for all of them at once.
    """
    views = [source.view() for source in chosen]
    refused = _ask_all([s for s, v in zip(chosen, views, strict=True) if not v.over], order)
    if len(chosen) == 1 and refused:
        raise next(iter(refused.values()))
    deadlines: dict[str, float] = {}
    for view in (v for v in views if not v.over and v.run.run_id not in refused):
        limit_s = halt_limit_s(view, now=order.now)
        deadlines[view.run.run_id] = time.monotonic() + limit_s
        _tell(view, live, limit_s, wait=order.wait)
    _at_once([(wake, s) for s in {s.pod: s for s in chosen if s.run.run_id in deadlines}.values()])
    return [_ended(source, order, live, deadlines, refused) for source in chosen]


def _ended(
    source: Source, order: Order, live: Live, deadlines: dict[str, float], refused: dict[str, OrchError]
) -> Halted:
    ident = source.run.run_id
    if ident in refused:
        return Halted(ident, source.pod, error=refused[ident])
    if ident not in deadlines or not order.wait:
        return Halted(ident, source.pod, not_waited(source))
    stopped = wait_stopped(source, live, limit_s=deadlines[ident] - time.monotonic())
    return Halted(ident, source.pod, stopped, _problem(stopped))


def _problem(stopped: Stopped) -> OrchError | None:
    """A halt that did not do what it should, with what to type."""
    view, ident = stopped.view, stopped.view.run.run_id
    where = view.sight.path if view.sight else str(view.run.path)
    if stopped.timed_out:
        return RemoteError(
            "E-HALT-001", f"run {ident} was asked to halt and has not stopped in time", where=where,
            fix=f"orch status {ident}; orch halt {ident} --now",
        )  # fmt: skip
    if stopped.stayed:
        look = f"ps -o pid,stat,wchan:32,args -p {','.join(map(str, stopped.stayed))}"
        return RemoteError(
            "E-HALT-002", f"run {ident} has halted, and SIGKILL did not end {len(stopped.stayed)} of its processes",
            where=where, value=f"pid {', '.join(map(str, stopped.stayed))}",
            fix=look if view.sight is None else f"orch pods exec {view.sight.pod} -- {look}",
        )  # fmt: skip
    if stopped.held:
        look = "nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory,name --format=csv"
        return RemoteError(
            "E-HALT-003", f"run {ident} has halted, and not all memory of its GPUs is known to be back", where=where,
            value=stopped.held[0], fix=look if view.sight is None else f"orch pods exec {view.sight.pod} -- {look}",
        )  # fmt: skip
    return None


def _ask_all(chosen: Sequence[Source], order: Order) -> dict[str, OrchError]:
    """Ask every run to halt, all pods at once; what went wrong, by run."""
    refused: dict[str, OrchError] = {}

    def ask(group: list[Source]) -> None:
        for source in group:
            try:
                source.ask("halt", run=source.run.run_id, now=order.now, why=order.why, who=order.who)
            except OrchError as e:
                refused[source.run.run_id] = e

    by_pod: dict[str, list[Source]] = {}
    for source in chosen:
        by_pod.setdefault(source.pod, []).append(source)
    _at_once([(ask, group) for group in by_pod.values()])
    return refused


def _at_once(calls: Sequence[tuple[Callable[[T], None], T]]) -> None:
    """Make all calls beside each other; each has a bound of its own."""
    threads = [threading.Thread(target=call, args=(value,), daemon=True) for call, value in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _tell(view: RunView, live: Live, limit_s: float, *, wait: bool) -> None:
    live.line(f"{view.run.run_id}  asked to halt" + (f" (at most {duration(limit_s)})" if wait else ""))


def living(home: OrchHome, again: str) -> tuple[list[Source], list[Halted]]:
    """Every run that has not ended, here and on all pods; and what could not be asked. `again`: what to type for it."""
    looks: list[Look] = []
    lost: list[Halted] = []
    try:
        looks = survey(home, far_pods(home)) if has_far_pods(home) else []
    except OrchError as e:  # an inventory that is wrong: the runs of this machine are halted all the same
        fix = f"orch pods list   (tells what is wrong in it), then orch {again}"
        what = f"no pod was asked to halt its runs: {e.what}"
        lost.append(Halted("-", "-", error=SpecError(e.code, what, where=str(home.inventory), fix=fix)))
    known = sources(home, looks)
    errors = {look.name: look.error for look in looks if look.error is not None}
    for pod, error in errors.items():
        there = [s for s in known if s.far and s.pod == pod]
        runs = [s.run.run_id for s in there if state_of(s.run) not in ENDED]
        if isinstance(error, UnreachableError) or there:  # a pod that never had what a run needs has none
            told = f"run {', '.join(runs)}" if runs else f"what runs on pod {pod}"
            problem = unasked(error, f"{told} was not asked to halt", again)
            lost += [Halted(run, pod, error=problem) for run in runs or ["-"]]
    lost += [_unseen(double) for double in doubles(home, looks) if double.told.state not in ENDED]
    reached = [s for s in known if not s.far or s.pod not in errors]
    return [s for s in reached if state_of(s.run) not in ENDED and s.run.path.is_dir()], lost


def _unseen(double: Double) -> Halted:
    """A run that lives under an id that is taken: no command can name it, but the file that halts it can be made."""
    ident, pod = double.told.run, double.look.name
    assert double.look.home is not None  # it told of the run
    file = str(double.look.home.run(ident).halt)
    error = ConflictError(
        "E-HALT-004", f"run {ident} of pod {pod} was not asked to halt: {double.words}", where=file,
        value=double.told.state, fix=shlex.join(["orch", "pods", "exec", pod, "--", "touch", file]),
    )  # fmt: skip
    return Halted(ident, pod, error=error)


def unasked(e: OrchError, what: str, again: str) -> OrchError:
    """That nothing was done, why, and what to type once there is a way to the pod."""
    look = (e.fix or "").split("   (")[0]
    fix = f"orch {again}   (once the pod answers" + (f"; what keeps it: {look})" if look else ")")
    return type(e)(e.code, f"{what}: {e.what}", where=e.where, value=e.value, expected=e.expected, fix=fix)
