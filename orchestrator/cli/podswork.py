"""`orch pods ssh`, `exec`, `push` and `pull`: a shell, a command, files. Registered by `orchestrator.cli.pods`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods
from orchestrator.cli.shared import Json, as_the_person, emit, hint, home, say
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.inventory.execute import Outcome
    from orchestrator.inventory.progress import Progress
    from orchestrator.inventory.transfer import Moved
    from pods.pod import Pod
    from workloads.contract.config.inventory import PodSpec

PodName = Annotated[str, typer.Argument(metavar="NAME", help="A pod of the inventory.", autocompletion=complete_pods)]
PodNames = Annotated[
    list[str] | None, typer.Argument(metavar="NAME...", help="Pods of the inventory.", autocompletion=complete_pods)
]


def ssh(ctx: typer.Context, name: PodName) -> None:
    """A shell on a pod by OpenSSH, or a command after `--`. Only the pinned key is accepted."""
    from orchestrator.inventory.openssh import ssh_argv
    from pods.access import find_spec

    spec = find_spec(home(), name)
    if spec.local:
        raise UsageError("E-PODS-070", "you are on this machine", value=name, fix="orch pods ssh NAME")
    if ctx.obj == []:
        raise _no_command(f"orch pods ssh {name}")
    tty = ctx.obj is not None and sys.stdin.isatty() and sys.stdout.isatty()
    argv = ssh_argv(home(), name, spec, ctx.obj, tty=tty)
    sys.stdout.flush()
    os.execv(argv[0], argv)


def exec_(
    ctx: typer.Context,
    names: PodNames = None,
    all_pods: Annotated[bool, typer.Option("--all", help="Every pod but this machine.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="SECONDS", help="How long a pod may take.")] = "600",
    raw: Annotated[bool, typer.Option("--raw", help="Output as it is; not to a terminal.")] = False,
    json: Json = False,
) -> None:
    """Run a command on pods at once: `orch pods exec a b -- nvidia-smi -L`. The exit code is the worst one."""
    from orchestrator.cli.shared import whole
    from orchestrator.inventory.execute import execute, worst

    if not ctx.obj:
        raise _no_command("orch pods exec " + " ".join(names or ["NAME"]))
    if raw and sys.stdout.isatty():
        raise UsageError(
            "E-CLI-007", "--raw is not for a terminal: output may hold escapes", where="orch pods exec",
            fix="orch pods exec NAME --raw -- COMMAND | less",
        )  # fmt: skip
    pods = _chosen(names or [], all_pods=all_pods)
    limit_s = float(max(whole(timeout, "--timeout"), 1))

    def tell(outcome: Outcome) -> None:
        if not json:
            _tell(outcome, prefix=f"{outcome.pod} | " if len(pods) > 1 else "", raw=raw)

    outcomes = execute(home(), pods, ctx.obj, timeout_s=limit_s, tell=tell)
    if json:
        emit({"v": 1, "pods": [o.as_json() for o in outcomes]})
    if code := worst(outcomes):
        raise typer.Exit(code)


def _chosen(names: list[str], *, all_pods: bool) -> dict[str, PodSpec]:
    from pods.access import unknown_pod
    from pods.inventory import load_inventory

    if all_pods == bool(names):
        raise UsageError(
            "E-CLI-006", "name pods or give --all" + (", not both" if names else ""), where="orch pods exec",
            fix="orch pods exec --all -- uptime",
        )  # fmt: skip
    inventory = load_inventory(home())
    wrong = next((n for n in names if n not in inventory.pods), None)
    if wrong is not None:
        raise unknown_pod(home(), inventory, wrong)
    chosen = {n: inventory.pods[n] for n in names} or {n: p for n, p in inventory.pods.items() if not p.local}
    if not chosen:
        raise UsageError("E-PODS-071", "the inventory has no pod but this machine", where=str(home().inventory),
                         fix="orch pods add NAME user@host:port")  # fmt: skip
    return chosen


def _tell(outcome: Outcome, *, prefix: str, raw: bool) -> None:
    from orchestrator.runs.render import harmless

    if outcome.error is not None:
        hint("\n".join(f"{prefix}{line}" for line in outcome.error.render().split("\n")))
        return
    assert outcome.result is not None
    for text, stream in ((outcome.result.stdout, sys.stdout), (outcome.result.stderr, sys.stderr)):
        shown = text if raw else harmless(text)
        if prefix and shown:
            shown = "".join(f"{prefix}{line}\n" for line in shown.removesuffix("\n").split("\n"))
        stream.write(shown)
        stream.flush()
    if prefix and outcome.exit_code:
        hint(f"{prefix}exit code {outcome.exit_code}")


def push(
    name: PodName,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file or directory here.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where on the pod; relative to the home there.")],
    json: Json = False,
) -> None:
    """Send a file, or what is in a directory, to a pod. Again after a cut: what is there is not sent twice."""
    from orchestrator.inventory.transfer import push as send

    with _moving(name, "orch pods push", quiet=json) as (pod, progress):
        moved = send(pod, source, target, progress.total, progress.on_bytes)
    _tell_moved(moved, f"{name}:{moved.path}", json=json)


def pull(
    name: PodName,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file or directory on the pod.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Where here.")],
    json: Json = False,
) -> None:
    """Fetch a file, or what is in a directory, from a pod. Links are left out and told."""
    from orchestrator.inventory.transfer import pull as fetch

    with as_the_person(), _moving(name, "orch pods pull", quiet=json) as (pod, progress):
        moved = fetch(pod, source, target, progress.total, progress.on_bytes)
    _tell_moved(moved, moved.path, json=json)


@contextmanager
def _moving(name: str, command: str, *, quiet: bool) -> Iterator[tuple[Pod, Progress]]:
    """The pod, and a progress line; a person who ends it is told that it can go on."""
    from orchestrator.inventory.progress import Progress
    from pods.access import find_pod

    with Progress(quiet=quiet) as progress:
        pod = find_pod(home(), name)[1]
        try:
            yield pod, progress
        except KeyboardInterrupt:
            hint(f"\ncut off; the same {command} goes on where it was")
            raise
        finally:
            pod.close()


def _tell_moved(moved: Moved, where: str, *, json: bool) -> None:
    from orchestrator.inventory.transfer import summary
    from orchestrator.runs.render import one_line

    if json:
        emit({"v": 1, **moved.as_json()})
    else:
        say(
            f"{one_line(where)}  {moved.files} file{'' if moved.files == 1 else 's'}, {moved.size_bytes:,} bytes",
            *summary(moved),
        )
    if moved.odd:
        raise typer.Exit(CliExit.REMOTE)


def _no_command(where: str) -> UsageError:
    return UsageError("E-PODS-072", "no command follows `--`", where=where, fix=f"{where} -- uptime")
