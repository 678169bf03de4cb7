"""`orch pods check`: what each pod is, what is wrong with it, and what to type against that."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.shared import Json, emit, home, say


def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Default: every pod.")] = None,
    json: Json = False,
) -> None:
    """Look at pods, all at once: GPUs, disks, memory, limits, clock. Changes nothing there.

    Exit code 1 when something a run needs is broken, 4 when a pod cannot be reached, 5 when one refuses.
    """
    from orchestrator.inventory.check import check as look
    from orchestrator.inventory.check import lines, worst
    from pods.access import LOCAL, find_spec
    from pods.inventory import load_inventory

    known = load_inventory(home()).pods
    chosen = list(dict.fromkeys(names or [n for n in known if n != LOCAL] or [LOCAL]))
    found = look(home(), {name: find_spec(home(), name) for name in chosen})
    if json:
        emit({"v": 1, "ok": all(c.exit_code == 0 for c in found), "pods": [c.as_json() for c in found]})
    else:
        for i, one in enumerate(found):
            say(*([""] if i else []), *lines(one))
    if code := worst(found):
        raise typer.Exit(code)
