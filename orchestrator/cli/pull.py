"""`orch pull`: everything of a run brought home, so that it can be read when its pod is gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import Json, Run, emit, hint, home, open_source, protect, say
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.pull import Progress, Pulled
    from orchestrator.runs.source import FarSource, Source


def pull(
    run: Run,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Below DIR; default: orch's home.")] = None,
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", metavar="WHICH", help="latest, all, none, or a step.")
    ] = "latest",
    no_logs: Annotated[bool, typer.Option("--no-logs", help="Leave the logs where they are.")] = False,
    json: Json = False,
) -> None:
    """Bring a run home: logs, records, dumps and verified checkpoints. Cut off, it goes on where it was."""
    import time

    from orchestrator.runs.pull import pull as carry_out

    source = _source(open_source(run), to)
    began = time.monotonic()
    try:
        done = carry_out(source, checkpoints=checkpoints, logs=not no_logs, progress=_progress(quiet=json))
        protect(source)
    except KeyboardInterrupt:
        hint(f"\ncut off; the same command goes on where it was: orch pull {source.run.run_id}")
        raise typer.Exit(CliExit.INTERRUPTED) from None
    finally:
        source.close()
    _tell(done, time.monotonic() - began, json=json)


def _tell(done: Pulled, took_s: float, *, json: bool) -> None:
    from orchestrator.runs.render import duration

    ident = done.run.run_id
    if json:
        row: dict[str, Any] = {"run": ident, "dir": str(done.run.path), "checkpoints": list(done.steps)}
        emit({"v": 1, **row, "bytes": done.size_bytes, "seconds": round(took_s, 3)})
        return
    which = ", ".join(f"step {s} (verified)" for s in done.steps) or "none"
    say(
        f"{ident}  pulled {size(done.size_bytes)} in {duration(took_s)}",
        f"  directory   {done.run.path}",
        f"  checkpoints {which}",
    )


def _source(found: Source, to: Path | None) -> FarSource:
    """The run with the copy where it is wanted."""
    from orchestrator.runs.pull import place
    from orchestrator.runs.source import FarSource

    if isinstance(found, FarSource):
        return found if to is None else FarSource(home(), place(to, found.run.run_id), found.pod, found.far_pod)
    if to is None:
        raise UsageError(
            "E-PULL-001", f"run {found.run.run_id} lies on this machine", where=str(found.run.path),
            fix=f"orch pull {found.run.run_id} --to DIR",
        )  # fmt: skip

    def this_machine() -> Any:
        from pods.pod import LocalPod
        from pods.transport.local import LocalTransport

        return LocalPod(home(), LocalTransport())

    return FarSource(home(), place(to, found.run.run_id), found.pod, this_machine)


def _progress(*, quiet: bool) -> Progress:
    import sys
    import time

    from orchestrator.runs.waiting import Live

    live, began = Live(sys.stderr, silent=quiet), time.monotonic()

    def show(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        rate = f"{size(round(done / max(now - began, 0.001)))}/s"
        live.status(f"{what}: {size(done)}" + (f" of {size(total)}" if total else "") + f", {rate}", now)
        if total is not None and done >= total:
            live.line("")

    return show


def size(count: int) -> str:
    """Bytes for people: `812 B`, `3.4 MiB`."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
