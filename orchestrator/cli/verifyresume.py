"""`orch verify-resume`: a job, short and deterministic, once unbroken and once killed and resumed: the same ledger?"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_jobs, complete_pods
from orchestrator.cli.shared import Json, emit, hint, say, whole
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.jobs.jobfile import LoadedJob
    from orchestrator.jobs.launch import Prepared
    from orchestrator.jobs.start import Asked
    from orchestrator.runs.source import Source
    from orchestrator.runs.verifyresume import Moved, Verified
    from orchestrator.runs.views import RunView
    from orchestrator.runs.waiting import Live

STEPS = 60
SAVES = 8
"""checkpoints a run: a kill costs some steps, and some are never made again"""


def verify_resume(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A recipe's name or a job file.", autocompletion=complete_jobs)
    ],
    kills: Annotated[
        str | None,
        typer.Option("--kills", metavar="N", help="How often ranks are killed; default 3, 0 with --world-sizes."),
    ] = None,
    steps: Annotated[str, typer.Option("--steps", metavar="N", help="Of each run.")] = str(STEPS),
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="S", help="Of the kills; default: a new one, which is told.")
    ] = None,
    worlds: Annotated[
        str | None,
        typer.Option("--world-sizes", metavar="N,N", help="The first one's checkpoints, gone on with by the others."),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key of the job.")] = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Where, instead of the job's pods.", autocompletion=complete_pods),
    ] = None,
    json: Json = False,
) -> None:
    """Kill ranks of a run at random steps: do its resumes compute what an unbroken run does? Exit 0: equal, 8: not."""
    from orchestrator.runs.verifyresume import DIFFERENT, EQUAL
    from orchestrator.runs.waiting import Live

    live = Live(silent=json)
    length, sizes = max(whole(steps, "--steps"), 1), [whole(w, "--world-sizes") for w in (worlds or "").split(",") if w]
    count = whole(kills, "--kills") if kills is not None else 0 if sizes else 3
    _refuse_too_little(count, sizes)
    drawn = secrets.randbelow(10**6) if seed is None else whole(seed, "--seed")
    jobs = [
        short_job(job, sets or [], [pod] if pod else [], steps=length, kills=count, world=world)
        for world in sizes or (None,)
    ]
    try:
        found = _verify(jobs, live, kills=count, steps=length, seed=drawn)
    except KeyboardInterrupt:
        live.line("")
        hint("interrupted; a run that was submitted goes on: orch runs   orch halt RUN")
        raise
    if json:
        emit(found.as_json())
    else:
        say(*found.lines())
    exits = {EQUAL: CliExit.OK, DIFFERENT: CliExit.INTEGRITY}
    raise typer.Exit(exits.get(found.verdict, CliExit.RUN_FAILED))


def _refuse_too_little(kills: int, worlds: list[int]) -> None:
    if worlds and (len(worlds) < 2 or 0 in worlds):
        raise UsageError(
            "E-CLI-004", "--world-sizes takes two numbers of ranks or more", where="--world-sizes",
            value=",".join(map(str, worlds)), expected="the first one's checkpoints are gone on with by the others",
            fix="--world-sizes 1,2",
        )  # fmt: skip
    if not kills and not worlds:
        raise UsageError(
            "E-CLI-004", "without a kill there is nothing to verify", where="--kills", value=kills, fix="--kills 3"
        )


def short_job(ref: str, sets: list[str], pods: list[str], *, steps: int, kills: int, world: int | None) -> LoadedJob:
    """JOB as it is verified: deterministic, so many steps, a checkpoint every few, as many restarts as it takes.

    What a person gives with `--set` stays, but for the number of steps, those between checkpoints and what exactness
    needs. UsageError for a job of another kind.
    """
    from orchestrator.jobs.jobfile import load_job

    plain = load_job(ref, sets=sets, pods=pods, cwd=Path.cwd())
    if plain.spec.kind != "train":
        raise UsageError(
            "E-VERIFY-004", f"a job of kind {plain.spec.kind} keeps no ledger", where="JOB", value=ref,
            expected="a job of kind train", fix="orch verify-resume tiny",
        )  # fmt: skip
    must = [f"train.steps={steps}", "train.deterministic=true", f"restart.max={kills + 3}", "restart.backoff_s=[0]"]
    must.append(f"checkpoint.every_steps={_every(steps)}")
    if world is not None:
        must += [f"resources.ranks={world}", f"checkpoint.keep={SAVES + 2}"]
    return load_job(ref, sets=["checkpoint.every_s=null", *sets, *must], pods=pods, cwd=Path.cwd())


def _every(steps: int) -> int:
    return -(-steps // SAVES)


def _verify(jobs: list[LoadedJob], live: Live, *, kills: int, steps: int, seed: int) -> Verified:
    from orchestrator.runs.follow import follow
    from orchestrator.runs.verifyresume import Verified, compare, first_kill, kill_along, plan_kills
    from workloads.contract.states import RunState

    loaded = jobs[0]
    prepared = _prepare(loaded, live)
    try:
        place = prepared.plan.placement
        plan = plan_kills(kills, steps, place.ranks, seed, first=first_kill(_every(steps))) if kills else []
        facts: dict[str, Any] = {"steps": steps, "world": place.ranks, "pod": place.pod, "seed": seed}
        facts["kills"] = tuple(plan)
        ranks, often = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((place.ranks, "rank"), (kills, "kill")))
        live.line(f"{steps} steps on {ranks} of pod {place.pod}, {often}, seed {seed}")
        unbroken = _submit(prepared, live, "unbroken")
        first: RunView = follow(unbroken, live)
        if first.state != RunState.SUCCEEDED:
            runs = (("unbroken", first.run.run_id, str(first.state)),)
            return Verified(**facts, made=(), runs=runs, again=0, difference=None)
        moved = _move(jobs[1:], live, unbroken, str(prepared.run.path), steps=steps, seed=seed)
        if not plan:
            runs = (("unbroken", first.run.run_id, str(first.state)),)
            return Verified(**facts, made=(), runs=runs, again=0, difference=None, moved=tuple(moved))
        second = _prepare(loaded, live)
        try:
            killed = _submit(second, live, "killed")
            made, last = kill_along(killed, plan, live)
            live.line("")
            return compare(unbroken, killed, (first, last), moved, made=tuple(made), **facts)
        finally:
            second.close()
    finally:
        prepared.close()


def _move(jobs: list[LoadedJob], live: Live, unbroken: Source, there: str, *, steps: int, seed: int) -> list[Moved]:
    """Each job begins with a checkpoint of the unbroken run, drawn from the seed, on its own number of ranks."""
    import random

    from orchestrator.jobs.start import Asked
    from orchestrator.runs.follow import follow
    from orchestrator.runs.verifyresume import bring_ledgers, compare_moved
    from workloads.contract.rundir import RunDir

    bring_ledgers(unbroken, 0)
    rng, every, found = random.Random(seed), _every(steps), []
    for job in jobs:
        after = every * rng.randint(1, max(1, (steps - 1) // every))
        start = Asked(str(RunDir(Path(there)).checkpoint(after)))
        prepared = _prepare(job, live, start)
        try:
            world = prepared.plan.placement.ranks
            source = _submit(prepared, live, f"run on {world} from step {after}")
            view = follow(source, live)
            found.append(compare_moved(unbroken, source, view, world=world, after=after, steps=steps))
        finally:
            prepared.close()
    return found


def _prepare(loaded: LoadedJob, live: Live, start: Asked | None = None) -> Prepared:
    from orchestrator.cli.launch import prepare_run

    return prepare_run(loaded, live, Path.cwd(), resume=start)


def _submit(prepared: Prepared, live: Live, role: str) -> Source:
    from orchestrator.cli.launch import stages, submit_run

    source = submit_run(prepared, stages(live), json=False, quiet=True)
    live.line(f"{source.run.run_id}  submitted: {role}")
    return source
