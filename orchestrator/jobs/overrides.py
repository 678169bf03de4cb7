"""`--set train.steps=200`: one key of a job changed from the command line. Pure.

The value is read as YAML (`200`, `3e-4`, `[a, b]`, `"text"`); the last of two for one key wins. Whether the key exists
and the value fits is for the job's check, which then points at the option instead of at a line.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pods.yamlfile import parse_yaml
from workloads.contract.errors import ErrorGroup, OrchError, UsageError, raise_all

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*){0,15}")


@dataclass(frozen=True)
class Override:
    path: tuple[str, ...]
    value: object
    text: str  # as typed
    option: str = "--set"

    @property
    def shown(self) -> str:
        return ".".join(self.path)

    @property
    def where(self) -> str:
        return f"{self.option} {self.text}".rstrip()


def parse_overrides(sets: Sequence[str]) -> tuple[list[Override], list[OrchError]]:
    """Every `K=V`, in order, and what is wrong with the others."""
    found: list[Override] = []
    errors: list[OrchError] = []
    for text in sets:
        try:
            found.append(_parse(text))
        except OrchError as e:
            errors.append(e)
    return found, errors


def _parse(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UsageError(
            "E-SET-001", "--set takes KEY=VALUE" if not equals else f"{key!r} is not a key", where=f"--set {text}",
            expected="dotted keys of the job file, for example train.steps=200", fix="--set train.steps=200",
        )  # fmt: skip
    try:
        data = parse_yaml(value, f"--set {text}").data
    except OrchError as e:
        first = e.errors[0] if isinstance(e, ErrorGroup) else e
        raise UsageError(
            "E-SET-002", f"the value of {key} cannot be read: {first.what}", where=f"--set {text}", value=value,
            fix=first.fix or f"quote it: --set '{key}=\"...\"'",
        ) from e  # fmt: skip
    if _is_cut(value, data):
        raise UsageError(
            "E-SET-004", "what follows ` #` would be lost as a comment", where=f"--set {text}", value=value,
            fix=f"--set {shlex.quote(key + '=' + json.dumps(value))}",
        )  # fmt: skip
    return Override(tuple(key.split(".")), data, text)


def _is_cut(value: str, data: object) -> bool:
    """Whether YAML took the end of `value` for a comment."""
    before, comment, _ = f" {value}".partition(" #")
    try:
        return bool(comment) and parse_yaml(before, "").data == data
    except OrchError:  # it is within quotes
        return False


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of `data` with every override in it. UsageError when a key lies below one that is no mapping."""
    result = copy.deepcopy(dict(data))
    errors: list[OrchError] = []
    for override in overrides:
        inner = result
        for depth, part in enumerate(override.path[:-1]):
            below = inner.get(part)
            if below is None:
                below = inner[part] = {}
            if not isinstance(below, dict):
                errors.append(_no_keys_below(override, ".".join(override.path[: depth + 1])))
                break
            inner = below
        else:
            inner[override.path[-1]] = copy.deepcopy(override.value)
    raise_all(errors)
    return result


def one_more(
    data: Mapping[str, Any], overrides: Sequence[Override], path: tuple[str, ...], value: str, option: str
) -> list[Override]:
    """`option` adds `value` to the list at `path`, as the other overrides leave it; none when it is no list or has it.

    What is no list is for the job's check.
    """
    try:
        now: Any = apply_overrides(data, overrides)
    except OrchError:  # told where they are put in
        now = data
    for part in path:
        now = now.get(part) if isinstance(now, Mapping) else None
    now = [] if now is None else now
    return [Override(path, [*now, value], "", option)] if isinstance(now, list) and value not in now else []


def _no_keys_below(override: Override, parent: str) -> UsageError:
    return UsageError(
        "E-SET-003", f"{parent} has no keys below it", where=override.where, value=override.shown,
        fix=f"--set {parent}=...",
    )  # fmt: skip


def origin(path: str, overrides: Sequence[Override]) -> str | None:
    """Which option gave the value at `path`, if one did."""
    for override in reversed(overrides):
        if path == override.shown or path.startswith((override.shown + ".", override.shown + "[")):
            return override.where
    return None


def maker(path: str, overrides: Sequence[Override]) -> str | None:
    """Which option made the mapping at `path` by giving a key below it, if one did."""
    return next((o.where for o in reversed(overrides) if o.shown.startswith(path + ".")), None)
