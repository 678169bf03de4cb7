"""`orch pods ...`: the inventory. What talks with a pod beyond its key is in `podswork`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import podscheck, podsenv, podswork
from orchestrator.cli.podswork import PodName
from orchestrator.cli.shared import Json, emit, hint, home, say
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.inventory.add import Added
    from orchestrator.inventory.trust import Trust

Fingerprints = Annotated[
    list[str] | None,
    typer.Option("--fingerprint", metavar="SHA256:...", help="Pin only this key, without a question; repeatable."),
]
TARGET_HELP = "user@host:port, an alias of ~/.ssh/config, or the ssh line of a provider's page."
AS_GIVEN = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


def build() -> typer.Typer:
    """The sub-commands of `orch pods`."""
    app = typer.Typer(help="The machines that orch knows.", rich_markup_mode=None)
    app.callback(invoke_without_command=True)(_root)
    app.command("add", context_settings=AS_GIVEN)(add)
    commands: dict[str, Callable[..., None]] = {
        "import": import_, "list": list_, "check": podscheck.check, "forget": forget, "repin": repin,
        "ssh": podswork.ssh, "exec": podswork.exec_, "push": podswork.push, "pull": podswork.pull,
        "bootstrap": podsenv.bootstrap, "gc": podsenv.gc,
    }  # fmt: skip
    for name, command in commands.items():
        app.command(name)(command)
    return app


def _root(ctx: typer.Context) -> None:
    """The machines that orch knows: add, look at and use them."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called.")],
    target: Annotated[list[str], typer.Argument(metavar="TARGET...", help=TARGET_HELP)],
    identity: Annotated[str | None, typer.Option("--identity", metavar="FILE", help="The private key for it.")] = None,
    root: Annotated[str | None, typer.Option("--root", metavar="DIR", help="ORCH_HOME there.")] = None,
    python: Annotated[str | None, typer.Option("--python", metavar="PATH", help="The Python to use there.")] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST", help="How other pods reach it, when by another address.")
    ] = None,
    fingerprints: Fingerprints = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Fine when it is there with this target already.")
    ] = False,
    json: Json = False,
) -> None:
    """Take a machine into the inventory: show its key, pin it when you say yes, and look whether it lets us in."""
    from orchestrator.inventory.add import add as add_pod
    from orchestrator.inventory.add import spec_of
    from pods.sshline import parse_line

    line = parse_line(target)
    for note in line.notes:
        hint(f"note: {note}")
    spec = spec_of(line.ssh, identity or line.identity, root=root, python=python, address=address)
    options = {"--identity": spec.identity, "--root": root, "--python": python, "--address": address}
    words = [w for option, value in options.items() if value for w in (option, value)]
    trust = _trust(fingerprints, ["orch", "pods", "add", name, line.ssh, *words])
    _tell_added(add_pod(home(), name, spec, trust, if_missing=if_missing), json=json)


def import_(
    patterns: Annotated[list[str] | None, typer.Argument(metavar="PATTERN...", help="Names or globs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what there is; ask no machine.")] = False,
    fingerprints: Fingerprints = None,
    json: Json = False,
) -> None:
    """Take hosts of ~/.ssh/config into the inventory. Keys in known_hosts are pinned without a question."""
    from dataclasses import replace

    from orchestrator.inventory.add import add as add_pod
    from orchestrator.inventory.add import spec_of
    from orchestrator.inventory.imports import candidates
    from workloads.contract.errors import OrchError

    found = candidates(home(), patterns or [])
    rows: list[dict[str, object]] = []
    worst = CliExit.OK
    if dry_run or not patterns:
        from orchestrator.runs.render import screen_width, table

        rows = [{"name": c.name, "alias": c.alias, "target": c.target, "there": c.there} for c in found]
        lines = [[c.name, c.alias, c.target, "yes" if c.there else "no"] for c in found]
        if json:
            emit({"v": 1, "hosts": rows, "imported": []})
        else:
            say(table(("POD", "ALIAS", "TARGET", "IN THE INVENTORY"), lines, width=screen_width()))
            hint("import them:  orch pods import NAME...        or all:  orch pods import '*'")
        return
    for c in found:
        if c.there:
            rows.append({"name": c.name, "alias": c.alias, "imported": False, "there": True})
            hint(f"{c.name}  is in the inventory already")
            continue
        trust = _trust(fingerprints, ["orch", "pods", "import", c.alias])
        try:
            added = add_pod(home(), c.name, spec_of(c.alias, None), replace(trust, known_is_enough=True))
        except OrchError as e:
            hint(e.render())
            worst = max(worst, e.exit_code)
            rows.append({"name": c.name, "alias": c.alias, "imported": False, "error": e.as_dict()})
            continue
        rows.append({"name": c.name, "alias": c.alias, "imported": True, "found": added.found})
        worst = max(worst, _say_added(added, quiet=json))
    if json:
        emit({"v": 1, "imported": rows})
    if worst:
        raise typer.Exit(worst)


def list_(json: Json = False) -> None:
    """The pods in the inventory. Asks none of them."""
    from orchestrator.inventory.table import pods_json, pods_table
    from pods.inventory import load_inventory

    inventory = load_inventory(home())
    if json:
        emit({"v": 1, "pods": pods_json(inventory)})
        return
    from orchestrator.runs.render import screen_width

    say(pods_table(inventory, screen_width()))


def forget(name: PodName, json: Json = False) -> None:
    """Take a pod out of the inventory. Nothing on the pod is touched; runs there go on."""
    from orchestrator.inventory.forget import forget as forget_pod

    spec, runs = forget_pod(home(), name)
    if json:
        emit({"v": 1, "pod": name, "ssh": spec.ssh, "runs": runs})
        return
    say(f"{name}  forgotten ({spec.ssh})")
    if runs:
        shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        say(f"  runs on it: {shown}", f"  they are untouched there; to see them again: orch pods add {name} {spec.ssh}")


def repin(name: PodName, fingerprints: Fingerprints = None, json: Json = False) -> None:
    """Pin the key that a pod shows now, after it was rebuilt. Shows the old and the new one and asks."""
    from orchestrator.inventory.add import repin as repin_pod
    from pods.access import find_spec

    added = repin_pod(home(), name, find_spec(home(), name), _trust(fingerprints, ["orch", "pods", "repin", name]))
    if added.created or json:
        _tell_added(added, json=json, verb="pinned")
    else:
        say(f"{name}  shows the pinned key; nothing to do")


def _trust(fingerprints: list[str] | None, command: list[str]) -> Trust:
    from orchestrator.inventory.trust import Trust, checked_fingerprints

    ask = _ask if sys.stdin.isatty() else None
    return Trust(given=checked_fingerprints(fingerprints or []), ask=ask, command=command)


def _ask(lines: list[str]) -> str:
    """The question is on stderr: stdout stays what was asked for."""
    hint("\n".join(lines))
    print("is that the machine? type yes to pin the key: ", end="", file=sys.stderr, flush=True)
    said = sys.stdin.readline()
    if not said:
        raise EOFError
    return said


def _tell_added(added: Added, *, json: bool, verb: str = "added") -> None:
    code = _say_added(added, quiet=json, verb=verb)
    if json:
        from orchestrator.inventory.table import pod_json

        trouble = None if added.trouble is None else added.trouble.as_dict()
        emit({"v": 1, "pod": pod_json(added.name, added.spec), "created": added.created, "found": added.found,
              "error": trouble})  # fmt: skip
    if code:
        raise typer.Exit(code)


def _say_added(added: Added, *, quiet: bool, verb: str = "added") -> CliExit:
    """What happened, on stdout; why the pod does not let us in, on stderr. The exit code that says it."""
    from orchestrator.inventory.table import short
    from orchestrator.runs.render import one_line

    if not quiet:
        told = verb if added.created else "is in the inventory already"
        say(f"{added.name}  {told}: {added.spec.ssh}  ({short(added.spec.host_key)})")
        say(*(f"  {one_line(line, 200)}" for line in added.found))
        if added.created and added.trouble is None:
            say(f"  next:  orch pods check {added.name}")
    if added.trouble is None:
        return CliExit.OK
    hint(added.trouble.render())
    hint(f"{added.name} is in the inventory with its key pinned; mend this, then: orch pods check {added.name}")
    return added.trouble.exit_code
