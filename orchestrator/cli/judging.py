"""What `orch parity`, `bench` and `gpu` share: launch or open a run, wait for its end, bring its rows home, tell them.

Ctrl-C leaves the run as it is. Called by those commands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared import hint, look_at, open_source
from workloads.contract.errors import OrchError, UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.jobs.jobfile import LoadedJob
    from orchestrator.runs.source import Source
    from orchestrator.runs.waiting import Live
    from workloads.contract.rundir import RunDir


@dataclass(frozen=True)
class Kind:
    """`code`, `refusal`: what is said of a run of another kind. `files`: what is brought home from a pod.
    `command`: the verb, where it is not the kind's name. `others`: more kinds of runs that it takes."""

    name: str
    code: str
    refusal: str
    back: str
    halt: str
    files: Callable[[RunDir], Sequence[Path]]
    command: str = ""
    others: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        return f"orch {self.command or self.name}"


Tell = Callable[["Source"], int]


def judge(kind: Kind, loaded: LoadedJob, live: Live, tell: Tell, *, json: bool) -> int:
    """Launch, then as of a run that there is."""
    from orchestrator.cli.launch import prepare_run, stages, submit_run

    prepared = prepare_run(loaded, live, Path.cwd())
    try:
        for warning in prepared.plan.warnings:
            hint(f"warning: {warning}")
        source = submit_run(prepared, stages(live), json=json, quiet=True)
        live.line(f"{source.run.run_id}  submitted on pod {prepared.plan.placement.pod}")
        return _answer(kind, source, live, tell, fresh=True)
    finally:
        prepared.close()


def answer(kind: Kind, run: str, live: Live, tell: Tell) -> int:
    """Wait for the end of a run that there is, where it has not ended, and tell it; the exit code."""
    source = open_source(run)
    try:
        look_at(source)
        refuse_other_kinds(kind, source)
        return _answer(kind, source, live, tell)
    finally:
        source.close()


def refuse_anything_beside_run(kind: Kind, run: str, asked: Sequence[object]) -> None:
    """UsageError when something else was asked of a run that there is."""
    if any(asked):
        raise UsageError(
            "E-CLI-007", "--run names a run that there is: nothing else can be asked of it", where=kind.verb,
            fix=f"{kind.verb} --run {run}",
        )  # fmt: skip


def refuse_other_kinds(kind: Kind, source: Source, option: str = "--run") -> None:
    found = source.view().info.get("kind")
    if found not in (kind.name, *kind.others):
        raise UsageError(
            kind.code, f"run {source.run.run_id} {kind.refusal}: its kind is {found or 'unknown'}",
            where=option, value=source.run.run_id, expected=f"a run of kind {kind.name}", fix=kind.verb,
        )  # fmt: skip


def _answer(kind: Kind, source: Source, live: Live, tell: Tell, *, fresh: bool = False) -> int:
    from orchestrator.runs.follow import follow

    try:
        if fresh or not source.view().ended:
            follow(source, live)
        bring_home(kind, source)
    except KeyboardInterrupt:
        live.line("")
        ident = source.run.run_id
        back, halt = f"{kind.verb} --run {ident}", f"orch halt {ident}"
        hint(f"detached; run {ident} goes on\n  {back}   {kind.back}\n  {halt:<{len(back)}}   {kind.halt}")
        return CliExit.INTERRUPTED
    return tell(source)


def bring_home(kind: Kind, source: Source) -> None:
    """All rows and tables; what is here already does not travel again. Without the pod: what is here."""
    from orchestrator.runs.source import fetch
    from pods.remote.runfiles import name_in

    if not source.far:
        return
    try:
        fetch(source, "status", {name_in(source.run, path): None for path in kind.files(source.run)})
    except OrchError as e:
        hint(f"note: the rows were not all brought home: {e.what}")
