"""`orch dump` and `orch resume`: each leaves a request in the run directory and waits for the answer.

The request is made where the run lies; the answer is read here, or from the copy of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import (
    AllowChange,
    Json,
    Ranks,
    Run,
    emit,
    hint,
    home,
    open_source,
    operator,
    protect,
    say,
    wake_if_asleep,
    wake_where_asleep,
    whole,
)
from workloads.contract.errors import ConflictError, OrchError, RemoteError, UnreachableError, UsageError, escape

if TYPE_CHECKING:
    from orchestrator.runs.source import Source
    from orchestrator.runs.views import RunView

DUMP_ANSWER_S = 10.0
RESUME_ANSWER_S = 30.0
SHOWN = 5


def tell_why(why: str) -> None:
    """A reason that is kept otherwise than it was typed is shown as it is kept."""
    from orchestrator.runs.render import one_line
    from workloads.contract.haltfile import MAX_WHY_CHARS

    kept = escape(why.strip(), MAX_WHY_CHARS)
    if kept != why.strip():
        limit = f" (at most {MAX_WHY_CHARS} characters)" if len(why) > MAX_WHY_CHARS else ""
        hint(f"note: the reason is kept as{limit}: {one_line(kept, MAX_WHY_CHARS)}")


def dump(run: Run, ranks: Ranks = None, json: Json = False) -> None:
    """The stack of every rank, without stopping any."""
    from orchestrator.runs.source import wait_ack

    chosen = [whole(k, "--rank") for k in ranks] if ranks else None
    source = asked(run, "dump")
    view = source.view()
    _refuse_dump(view, chosen)
    wake_where_asleep(source)
    request = str(source.ask("dump", run=view.run.run_id, ranks=chosen, why="orch dump", who=operator())["request"])
    ack = wait_ack(source, request, timeout_s=DUMP_ANSWER_S)
    if ack is None:
        raise RemoteError(
            "E-DUMP-003", f"no answer in {DUMP_ANSWER_S:.0f} s; the dump may still be written",
            where=str(view.run.stackdumps), fix=f"look there, or into {home().keeper_log}",
        )  # fmt: skip
    _fetch_dumps(source, ack.data.get("files"))
    if not ack.ok:
        raise RemoteError(
            "E-DUMP-004", f"the dump was refused: {ack.why}", where=str(view.run.path),
            fix=f"orch status {view.run.run_id}; ls -t {view.run.stackdumps}",
        )  # fmt: skip
    source.close()
    if json:
        told: dict[str, object] = {k: ack.data[k] for k in ("summary", "seconds") if k in ack.data}
        lists = {k: ack.data.get(k, []) for k in ("groups", "files", "notes")}
        emit({"v": 1, "run": view.run.run_id, **told, **lists})
    else:
        from orchestrator.runs.stacks import dump_lines

        say(*dump_lines(view.run, ack.data))


def _fetch_dumps(source: Source, files: object) -> None:
    """Of a run on a pod: the files that the answer names, into the copy. The answer is shown without them too."""
    from orchestrator.runs.source import fetch
    from pods.remote.runfiles import kind_of, name_in

    names = [str(f).rsplit("/", 1)[-1] for f in files] if isinstance(files, list) else []
    wanted: dict[str, int | None] = {name_in(source.run, source.run.stackdumps / n): None for n in names}
    try:
        fetch(source, "status", {n: lines for n, lines in wanted.items() if kind_of(n) is not None})
    except OrchError as e:
        hint(f"note: the dumps were not copied: {e.what}")


def _refuse_dump(view: RunView, ranks: list[int] | None) -> None:
    states = ", ".join(f"rank {r.rank} {r.health.value} ({r.verdict.why})" for r in view.ranks[:16])
    if view.ended:
        raise ConflictError(
            "E-DUMP-001", f"run {view.run.run_id} has ended ({view.state}): there is nothing to dump",
            expected=states or None, fix=f"orch logs {view.run.run_id} --errors",
        )  # fmt: skip
    foreign = [k for k in ranks or [] if k >= (view.world_size or 1)]
    if foreign:
        raise UsageError(
            "E-RUN-005", f"run {view.run.run_id} has no rank {foreign[0]}", where="--rank", value=foreign[0],
            expected=states or None, fix=f"orch status {view.run.run_id}",
        )  # fmt: skip
    if not any(r.record for r in view.ranks):
        raise ConflictError(
            "E-DUMP-002", f"run {view.run.run_id} has no rank yet: it is {view.state}", expected=view.reason or None,
            fix=f"orch status {view.run.run_id}",
        )  # fmt: skip


def resume(
    run: Run,
    code: Annotated[
        str, typer.Option("--code", metavar="run|current", help="Whose code: the run's own, or today's.")
    ] = "run",
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="STEP|NAME", help="From this one; newer ones are kept under other names."),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of its job; repeatable.")
    ] = None,
    allow: AllowChange = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the run.")] = "",
    json: Json = False,
) -> None:
    """Go on with a halted or failed run from its newest checkpoint; with `--set`, as another job."""
    if code not in ("run", "current"):
        raise UsageError(
            "E-CLI-004", f"--code cannot be {code!r}", where="orch resume", value=code, expected="run or current"
        )
    from orchestrator.jobs.start import checked_changes
    from orchestrator.runs.source import wait_ack
    from workloads.contract.jobchanges import words

    changes = checked_changes(allow or [], "--allow-config-change")
    more: dict[str, Any] = {"allow": list(changes)} if changes else {}
    if checkpoint is not None:
        more["checkpoint"] = _checkpoint_name(checkpoint)
    tell_why(why)
    source = asked(run, "resume")
    ident = source.run.run_id
    wake_where_asleep(source)  # first: a resume that is refused is still a contact
    told_changes: list[str] = []
    if sets:
        more |= _changes(source, sets, changes, more.get("checkpoint"))
        told_changes = words(more.get("changes", {})) or ["nothing: the job is like that already"]
    tree = source.push_tree() if code == "current" else None
    told = source.ask("resume", run=ident, tree=tree, why=why, who=operator(), **more)
    if code == "current" and not source.far:
        wake_if_asleep(replace=True)  # a keeper of today: what the older one runs from may be gone
    request, aside = str(told["request"]), _set_aside(told.get("aside"))
    if not json:
        say(
            f"{ident}  asked to resume" + (f" from {more['checkpoint']}" if checkpoint is not None else ""),
            *_column("changes", told_changes),
            *_aside_lines(aside),
        )
    ack = wait_ack(source, request, timeout_s=RESUME_ANSWER_S)
    source.close()
    if ack is not None and not ack.ok:
        raise ConflictError("E-RESUME-001", f"the supervisor refused: {ack.why}", where=ident)
    if json:
        named = {"checkpoint": more["checkpoint"], "set_aside": aside} if checkpoint is not None else {}
        named |= {"changes": more.get("changes", {})} if sets else {}
        emit({"v": 1, "run": ident, "request": request, "acknowledged": ack is not None, **named})
        return
    how = "resuming" if ack else f"not answered in {RESUME_ANSWER_S:.0f} s; the request stays and is carried out"
    say(f"{ident}  {how}", f"  orch status {ident}", f"  orch logs {ident} -f")


def _changes(source: Source, sets: list[str], allowed: tuple[str, ...], checkpoint: str | None) -> dict[str, Any]:
    """`changes` for the request, checked against the checkpoint that the run would go on from; {} for none.

    What needs no checkpoint to be refused is refused before one is looked at.
    """
    from orchestrator.jobs.rejob import new_job

    new = new_job(source.view(), sets)
    if not new.changes:
        return {}
    named = {} if checkpoint is None else {"checkpoint": checkpoint}
    told = source.ask("config", run=source.run.run_id, **named) if new.spec.kind == "train" else {}
    config, step = told.get("config"), told.get("step")
    if isinstance(config, dict):
        name = str(told.get("checkpoint"))
        new.refuse_unallowed(config, name, allowed)
        if isinstance(step, int) and step >= new.spec.train.steps:
            hint(f"note: {escape(name, 40)} is of step {step}: with train.steps {new.spec.train.steps} nothing is left")
    return {"changes": new.changes}


def _column(name: str, lines: list[str]) -> list[str]:
    return [f"  {name if i == 0 else '':<11} {escape(line, 300)}" for i, line in enumerate(lines)]


def _checkpoint_name(text: str) -> str:
    """`step_00000120` for that, and for `120`."""
    from workloads.contract.rundir import RunDir, step_of_checkpoint

    name = RunDir(Path()).checkpoint(int(text)).name if text.isascii() and text.isdigit() and len(text) <= 9 else text
    if step_of_checkpoint(name) is None:
        raise UsageError(
            "E-CLI-004", f"--checkpoint cannot be '{escape(text, 40)}'", where="orch resume", value=text,
            expected="a step, or the name of a checkpoint such as step_00000120", fix="--checkpoint 120",
        )  # fmt: skip
    return name


def _set_aside(names: object) -> list[str]:
    """What the pod named."""
    from workloads.contract.rundir import step_of_checkpoint

    found = names if isinstance(names, list) else []
    return [n for n in found if isinstance(n, str) and step_of_checkpoint(n) is not None]


def _aside_lines(names: list[str]) -> list[str]:
    if not names:
        return []
    told = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [f"  set aside   {told}: kept as aside_..., used no more; rows of later steps go to archives"]


def asked(ref: str, verb: str) -> Source:
    """The run that `ref` names, after its pod was asked how it stands. OrchError when it cannot be asked."""
    from orchestrator.runs.halts import unasked
    from orchestrator.runs.source import fetch

    source = open_source(ref)
    if source.far:
        try:
            fetch(source)
        except UnreachableError as e:
            raise unasked(e, f"run {source.run.run_id} was not asked to {verb}", f"{verb} {source.run.run_id}") from e
        protect(source)
    return source
