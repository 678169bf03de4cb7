"""What the commands share: their common options, where home is, and the one JSON document of `--json`.

Imported by every command module, so it imports nothing heavier than Typer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_jobs, complete_runs
from workloads.contract.errors import LocalError, UsageError, escape
from workloads.contract.rundir import OrchHome

if TYPE_CHECKING:
    from orchestrator.runs.source import Source

RUN_HELP = "A run: its id, the beginning of one, its name (the newest run), or `latest`."

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_runs)]
MaybeRun = Annotated[str | None, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_runs)]
MaybeJob = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="A recipe's name or a job file.", autocompletion=complete_jobs),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-config-change", metavar="KEY", help="What may differ from the checkpoint's config; `all`; repeatable."
    ),
]
Ranks = Annotated[list[str] | None, typer.Option("--rank", metavar="K", help="This rank alone; repeatable.")]


def home() -> OrchHome:
    """LocalError when no directory lies there, or on the way: it would look like a home without runs."""
    found = OrchHome.from_env()
    there = next(p for p in (found.path, *found.path.parents) if os.path.lexists(p))
    if not there.is_dir():
        asked = bool(os.environ.get("ORCH_HOME"))
        raise LocalError(
            "E-CLI-008", f"{'ORCH_HOME' if asked else 'the home of orch'} cannot be {found.path}", where=str(there),
            expected="a directory, or a place where one can be made",
            fix="export ORCH_HOME=~/.orch" if asked else f"mv {shlex.quote(str(there))} {shlex.quote(f'{there}.old')}",
        )  # fmt: skip
    return found


def emit(document: dict[str, Any]) -> None:
    """The one document of a command under `--json`."""
    from orchestrator.runs.render import redacted

    shown = redacted(document)
    try:
        text = json.dumps(shown, allow_nan=False, ensure_ascii=True)
    except ValueError:  # a figure of a pod that is none
        text = json.dumps(_finite(shown), allow_nan=False, ensure_ascii=True)
    print(text)


def _finite(value: Any) -> Any:
    """`value` with null for every number that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole(text: str, option: str) -> int:
    """A whole number, 0 or more. Parsed here and not by Typer, whose words for it are those of its validator."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise UsageError(
            "E-CLI-004", f"{option} cannot be '{escape(text, 40)}'", value=text, expected="a whole number, 0 or more"
        )
    return int(text)


def maybe_whole(text: str | None, option: str) -> int | None:
    """As `whole`, of an option that may be left away."""
    return None if text is None else whole(text, option)


def maybe_number(text: str | None, option: str, where: str, example: str) -> float | None:
    """A number of an option of the command `where` that may be left away. `example`: one that can be typed."""
    try:
        return None if text is None else float(text)
    except ValueError:
        raise UsageError(
            "E-CLI-004", f"{option} cannot be '{escape(text, 40)}'", where=where, value=text,
            expected="a number", fix=f"{option} {example}",
        ) from None  # fmt: skip


def say(*lines: str) -> None:
    """The answer. Made harmless once more, whatever its parts went through before."""
    from orchestrator.runs.render import harmless

    for line in lines:
        print(harmless(line))


def hint(text: str) -> None:
    """A word beside the answer: stderr, so that stdout stays what was asked for."""
    from orchestrator.runs.render import harmless

    print(harmless(text), file=sys.stderr)


_persons: list[int] = []


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Inside, what this process makes is its owner's alone: modes 0700 and 0600, parents of directories too."""
    _persons.append(os.umask(0o077))
    try:
        yield
    finally:
        os.umask(_persons.pop())


@contextlib.contextmanager
def as_the_person() -> Iterator[None]:
    """Inside `private`: files that a person asked for, outside orch's home, made as any program makes them."""
    ours = os.umask(_persons[-1] if _persons else 0o077)
    try:
        yield
    finally:
        os.umask(ours)


def operator() -> str:
    """`user@host`, as recorded with launches and requests."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def open_source(ref: str) -> Source:
    """The run that `ref` names, and its secrets hidden from all that is shown from now on. Nothing is asked yet."""
    from orchestrator.runs.source import resolve

    source = resolve(home(), ref)
    if not source.far:
        protect(source)
    return source


def protect(source: Source) -> None:
    """Hide the secrets of a run from what this command shows."""
    from orchestrator.runs.redact import redactor
    from orchestrator.runs.render import hide
    from orchestrator.runs.views import secret_names

    if source.far and not secret_names(source.run):
        return
    values = source.secrets()
    if values:
        hide(redactor(values))


def look_at(source: Source, *, cached: bool = False) -> None:
    """Ask the pod of a run how it stands, unless `cached`, and hide its secrets from what is shown.

    Where it cannot be asked, its copy is shown and that is told on stderr.
    """
    from orchestrator.runs.render import one_line
    from orchestrator.runs.source import REACH_S, FarSource, fetch
    from workloads.contract.errors import OrchError

    if not isinstance(source, FarSource):
        return
    if cached:
        protect(source)
        return
    source.reach_s = REACH_S if source.mirror.index.seen else None
    try:
        fetch(source)
    except OrchError as e:
        sight = source.view().sight
        if sight is None or not sight.seen:
            raise
        hint(f"note: {one_line(e.what)}" + (f"; fix: {one_line(e.fix)}" if e.fix else ""))
    protect(source)


def wake_where_asleep(source: Source) -> None:
    """As `wake_if_asleep`, where the run lies."""
    from workloads.contract.errors import OrchError

    if not source.far:
        wake_if_asleep()
    elif not source.is_awake():
        try:
            source.wake()
        except OrchError as e:
            hint(f"note: the keeper on pod {source.pod} could not be woken: {e.what}")


def wake_if_asleep(*, replace: bool = False) -> None:
    """Any contact starts a keeper that is missing. Trouble is told, not raised: what was asked is on disk already."""
    from pods.keeper.client import sound
    from workloads.contract.errors import OrchError

    if sound(home()) is not None and not replace:
        return
    from pods.remote import control

    try:
        control.wake(home(), own_parts, replace=replace)
    except OrchError as e:
        hint(f"note: the keeper could not be woken: {e.what}")


def own_parts() -> tuple[str, Path]:
    """Interpreter and tree of this very process, for a keeper that no run can tell."""
    from pods.tree import ensure_tree

    return sys.executable, ensure_tree(home())
