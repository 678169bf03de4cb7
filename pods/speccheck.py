"""A pydantic model's complaints about a YAML document, as blocks that a person can act on.

`check` validates, and tells every mistake at once: after a first round the wrong keys are taken out and what is left is
validated again, so that a rule over several keys is not hidden by a typo elsewhere. The words for one mistake are
`pods.specwords`. Called for job files (`orchestrator.jobs.jobfile`) and for the inventory.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from pods.speckeys import all_keys, field_default, keys_at, model_at, nearest_key
from pods.specwords import MISSING, Broken, Complaint, as_yaml, explain
from pods.yamlfile import join
from workloads.contract.errors import OrchError, SpecError, raise_all

M = TypeVar("M", bound=BaseModel)
Path: TypeAlias = tuple[str | int, ...]
MAX_ROUNDS = 3
MAX_COMPLAINTS = 100


@dataclass(frozen=True)
class Subject:
    """What is checked: `area` of the error codes (JOB), where a key path lies, and keys that come later."""

    area: str
    where: Callable[[str], str]
    later: Mapping[str, str] = field(default_factory=dict)
    """key path, or `path=value`, to what it will be for"""
    rules: Callable[[Any], Sequence[Broken]] = lambda model: ()
    """rules over several parts of the validated model"""
    line: Callable[[str], int] = lambda path: 0
    """where in the file a key path lies, to tell mistakes in that order"""


def show_path(path: Iterable[str | int]) -> str:
    shown = ""
    for part in path:
        shown = join(shown, part)
    return shown


def check(model: type[M], data: Mapping[str, Any], subject: Subject, more: Sequence[OrchError] = ()) -> M:
    """`data` as a `model`. Raises all mistakes together, those of `more` first."""
    found: list[tuple[int, OrchError]] = []
    left = copy.deepcopy(dict(data))
    pruned: list[str] = []
    checked: M | None = None
    for _ in range(MAX_ROUNDS):
        try:
            checked = validate(model, left)
        except ValidationError as e:
            complaints = _gather(e, left)
            found += [(subject.line(c.shown), _block(c, model, subject)) for c in complaints if not _echo(c, pruned)]
            pruned += [_prune(left, c) for c in complaints]
        else:
            found += [
                (subject.line(b.path), _as_option(b.error(subject.area, subject.where(b.path)), b.path))
                for b in subject.rules(checked)
                if not _mentions(f"{b.path} {b.what} {b.expected}", pruned)
            ]
            break
    raise_all([*more, *(error for _, error in sorted(found, key=lambda row: row[0]))])
    assert checked is not None
    return checked


def validate(model: type[M], data: Mapping[str, Any]) -> M:
    """Through JSON: strict models take a list for a tuple there and nowhere else."""
    return model.model_validate_json(json.dumps(data))


def _gather(error: ValidationError, data: object) -> list[Complaint]:
    """One complaint a key: the branches of a union complain each on their own."""
    found: dict[tuple[str, bool], Complaint] = {}
    for row in error.errors(include_url=False):
        path, value, on_key = _locate(row["loc"], row["type"], data)
        rule = str(row["msg"]).removeprefix("Value error, ") if row["type"] == "value_error" else None
        if rule is not None:
            path, rule = _split_rule(path, rule)
            value = _value_at(path, data)
        key = (show_path(path) + (rule or ""), on_key)
        kinds = [*(found[key].kinds if key in found else ()), (row["type"], row.get("ctx") or {})]
        found[key] = Complaint(path, show_path(path), value, tuple(kinds), on_key, rule)
    return list(found.values())[:MAX_COMPLAINTS]


def _locate(loc: Path, kind: str, data: object) -> tuple[Path, object, bool]:
    """(path, value, is it about the key): parts of `loc` that name branches of a union are left out."""
    path: Path = ()
    for part in loc:
        if _has(data, part):
            path, data = (*path, part), data[part]  # type: ignore[index]
        elif kind == "missing" and part == loc[-1]:
            return (*path, part), MISSING, False
    return path, data, bool(loc) and loc[-1] == "[key]"


def _split_rule(path: Path, rule: str) -> tuple[Path, str]:
    """A rule that names its key (`train.warmup_steps: must be ...`) is about that key."""
    name, colon, rest = rule.partition(": ")
    if colon and " " not in name:
        return tuple(name.split(".")), rest
    return path, rule


def _has(data: object, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _value_at(path: Path, data: object) -> object:
    for part in path:
        if not _has(data, part):
            return MISSING
        data = data[part]  # type: ignore[index]
    return data


def _echo(complaint: Complaint, pruned: Sequence[str]) -> bool:
    """True for a complaint that exists only because a wrong key was taken out."""
    if complaint.value is MISSING and complaint.shown in pruned:
        return True
    return complaint.rule is not None and _mentions(f"{complaint.shown} {complaint.rule}", pruned)


def _mentions(text: str, paths: Sequence[str]) -> bool:
    """True when `text` speaks of one of the key paths, by its whole path or by its last part."""
    names = {n for p in paths if p for n in (p, p.rsplit(".", 1)[-1])}
    return any(re.search(rf"(?<![\w.]){re.escape(n)}(?!\w)", text) for n in names)


def _prune(data: dict[str, Any], complaint: Complaint) -> str:
    """Take the wrong key out (of a list: the whole list) and return its path; a name that is required stays one."""
    path = complaint.path
    while path and isinstance(path[-1], int):
        path = path[:-1]
    if complaint.rule is not None and complaint.value is MISSING and len(path) > 1:
        path = path[:-1]  # a default that clashes with the rest of its section
    parent = _value_at(path[:-1], data)
    if path and isinstance(parent, dict):
        parent.pop(path[-1], None)
        if path == ("name",):
            data["name"] = "x"
    return show_path(path)


def _block(c: Complaint, model: type[BaseModel], subject: Subject) -> OrchError:
    where = subject.where(c.shown)
    later = subject.later.get(c.shown) or subject.later.get(f"{c.shown}={c.value}")
    if later and not c.rule:
        what = f"{c.shown}: {c.value}" if f"{c.shown}={c.value}" in subject.later else c.shown
        return SpecError(
            f"E-{subject.area}-005", f"{what} is not available yet ({later})", where=where, value=c.value_shown,
            fix="remove the key" if what == c.shown else "choose one that is available",
            expected=None if what == c.shown else explain(c, None).expected,
        )  # fmt: skip
    if c.kinds[0][0] == "extra_forbidden":
        return _unknown(c, model, subject, where)
    default = field_default(model, c.path)
    words = explain(c, default)
    error = SpecError(
        f"E-{subject.area}-{words.number:03d}", words.what, where=where, value=words.value,
        expected=words.expected, did_you_mean=words.did_you_mean, fix=words.fix,
    )  # fmt: skip
    inner = model_at(model, c.path) if default is MISSING or default is None else None
    if inner is not None and c.path and words.number == 6 and not isinstance(c.value, dict):
        error.expected = f"keys below it: {', '.join(inner.model_fields)}"
        error.fix = _below(c, inner, where)
    return _as_option(error, c.shown)


def _below(c: Complaint, inner: type[BaseModel], where: str) -> str:
    """The value given to a key below the one it was given to: `on_nan: {skips: 0}` for `on_nan: 0`."""
    defaults = {k: field_default(inner, (k,)) for k in inner.model_fields}
    key = next((k for k, d in defaults.items() if _could_be(c.value, d)), None)
    value, note = c.value, ""
    if key is None:
        key = next((k for k, d in defaults.items() if d not in (MISSING, None)), next(iter(defaults)))
        value, note = defaults[key], "   (the default)"
    shown = "..." if value is MISSING else as_yaml(value)
    if where.startswith("--set "):
        return f"--set {shlex.quote(f'{c.shown}.{key}={shown}')}{note}"
    return f"{c.path[-1]}: {{{key}: {shown}}}{note}"


def _could_be(value: object, default: object) -> bool:
    """Whether a key with this default may have been meant; one without is for text."""
    if isinstance(value, str):
        return default is MISSING
    return type(value) in (int, float) and type(default) is type(value)


def _as_option(error: OrchError, path: str) -> OrchError:
    """The fix of a value that came by `--set` is an option, too."""
    last = re.split(r"[.\]]", path)[-1] + ": "
    if error.fix and str(error.where).startswith("--set ") and error.fix.startswith(last):
        value, _, note = error.fix.removeprefix(last).partition("   ")
        error.fix = f"--set {shlex.quote(f'{path}={value}')}" + (f"   {note}" if note else "")
    return error


def _unknown(c: Complaint, model: type[BaseModel], subject: Subject, where: str) -> OrchError:
    siblings = [show_path((*c.path[:-1], k)) for k in keys_at(model, c.path[:-1])]
    near = nearest_key(str(c.path[-1]), siblings, all_keys(model))
    return SpecError(
        f"E-{subject.area}-004", f"{c.shown} is not a known key", where=where, value=c.value_shown,
        expected=None if near else "one of " + ", ".join(siblings), did_you_mean=near,
        fix=_rename(c, near, where) if near else "remove the key",
    )  # fmt: skip


def _rename(c: Complaint, near: str, where: str) -> str:
    if where.startswith("--set "):
        return f"--set {shlex.quote(f'{near}={c.value_shown}')}"
    return f"rename the key to {near}"
