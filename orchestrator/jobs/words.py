"""What was typed, checked against what there is, and put back into words. Pure. Called by the jobs of some commands."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from workloads.contract.errors import UsageError

DEVICES = ("auto", "cuda", "cpu")
_MEANT = {"gpu": "cuda"}


def option(name: str, value: object | None) -> list[str]:
    """As it was typed; nothing for None."""
    return [] if value is None else [name, str(value)]


def check_choice(command: str, name: str, value: str | None, known: Sequence[str]) -> None:
    """UsageError, with the nearest, for a `value` of option `name` that is not known. None was not typed."""
    if value is None or value in known:
        return
    near = _MEANT.get(value) or next(iter(get_close_matches(value, known, 1, 0.4)), None)
    near = near if near in known else None
    raise UsageError(
        "E-CLI-004", f"{name} cannot be '{value}'", where=command, value=value,
        expected=f"{', '.join(known[:-1])} or {known[-1]}", did_you_mean=near, fix=f"{name} {near or known[0]}",
    )  # fmt: skip


def check_suites(command: str, suites: Sequence[str], known: Sequence[str], code: str) -> None:
    """UsageError `code`, with the right command, for the first suite that there is not."""
    for suite in suites:
        if suite in known:
            continue
        near = next(iter(get_close_matches(suite, known, 1, 0.4)), None)
        right = [near if s == suite and near else s for s in suites if s != suite or near]
        raise UsageError(
            code, f"there is no suite '{suite}'", where=command, value=suite,
            expected="one or more of " + ", ".join(known), did_you_mean=near, fix=" ".join([command, *right]),
        )  # fmt: skip
