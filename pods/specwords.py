"""The words for one wrong key of a YAML file: what is wrong, what is expected, one fix that can be typed.

Pure: a `Complaint` in, `Words` out. Pydantic's own sentences are never shown. Called by `pods.speccheck`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from workloads.contract.errors import SpecError

MISSING: Any = object()
"""There is no such value."""

NAME_IN_WORDS = "a small letter, then at most 38 small letters, digits or hyphens"
_PATTERNS = {
    "^[a-z][a-z0-9-]{0,38}$": NAME_IN_WORDS,
    "^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and underscores, not beginning with a digit",
}
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text",
    "list": "a list", "tuple": "a list", "dict": "a mapping (`key: value` lines)",
    "model": "a mapping (`key: value` lines)", "finite_number": "a finite number",
}  # fmt: skip


@dataclass(frozen=True)
class Complaint:
    path: tuple[str | int, ...]
    shown: str
    value: object
    kinds: tuple[tuple[str, Mapping[str, Any]], ...]  # pydantic's error types and their contexts
    on_key: bool = False
    rule: str | None = None  # a sentence of ours, from a validator

    @property
    def value_shown(self) -> str | None:
        return None if self.value is MISSING else as_yaml(self.value)


@dataclass(frozen=True)
class Broken:
    """A rule over several parts of a document that does not hold; `path` is the key to point at."""

    path: str
    what: str
    expected: str | None = None
    fix: str | None = None
    value: object = None

    def error(self, area: str, where: str) -> SpecError:
        value = None if self.value is None else as_yaml(self.value)
        return SpecError(
            f"E-{area}-008", self.what, where=where, value=value, expected=self.expected, fix=self.fix
        )  # fmt: skip


@dataclass(frozen=True)
class Words:
    number: int  # of the error code
    what: str
    value: str | None = None
    expected: str | None = None
    did_you_mean: str | None = None
    fix: str | None = None


def as_yaml(value: object) -> str:
    """A value as one would type it, on one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/.][\w/.-]*", value):
        return value
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_yaml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def slug(text: str, default: str = "run") -> str:
    """The nearest allowed name: `Bad Name; rm` becomes `bad-name-rm`."""
    low = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    low = low if re.match("[a-z]", low) else f"{default}-{low}".rstrip("-")
    return low[:39].rstrip("-")


def explain(c: Complaint, default: object) -> Words:
    """The block's content for anything but an unknown key."""
    if c.rule is not None:
        value = c.value_shown or (None if default in (MISSING, None) else f"{as_yaml(default)} (the default)")
        return Words(8, f"{c.shown} {c.rule}".strip(), value, fix=_rule_fix(c))
    if c.kinds[0][0] == "missing":
        return _missing(c)
    if c.kinds[0][0] == "string_pattern_mismatch":
        return _pattern(c)
    expected = " or ".join(dict.fromkeys(_expected(kind, ctx) for kind, ctx in c.kinds))
    impossible = any(kind.startswith(("greater", "less", "finite", "too_", "string_too")) for kind, _ in c.kinds)
    what = f"{c.shown or 'the file'} {'is out of bounds' if impossible else 'has the wrong type'}"
    if all(kind == "literal_error" for kind, _ in c.kinds):
        what = f"{c.shown} cannot be {as_yaml(c.value)}"
    near = _near_word(c)
    return Words(7 if impossible else 6, what, c.value_shown, expected, near, _fix(c, default, near))


def _expected(kind: str, ctx: Mapping[str, Any]) -> str:
    bounds = {"greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "above"),
              "less_than_equal": ("le", "at most"), "less_than": ("lt", "below")}  # fmt: skip
    if kind in bounds:
        key, words = bounds[kind]
        return f"{words} {ctx[key]:g}"
    if kind == "literal_error":
        return str(ctx["expected"]).replace("'", "")
    if kind == "too_short":
        return f"at least {ctx['min_length']} {'entry' if ctx['min_length'] == 1 else 'entries'}"
    if kind == "string_too_short":
        return "text that is not empty" if ctx["min_length"] == 1 else f"at least {ctx['min_length']} letters"
    if kind == "string_too_long":
        return f"at most {ctx['max_length']} letters"
    if kind == "too_long":
        return f"at most {ctx['max_length']} entries"
    return _TYPES.get(kind.removesuffix("_type"), kind.replace("_", " "))


def _missing(c: Complaint) -> Words:
    if isinstance(c.path[-1], int):
        return Words(3, f"{c.shown} is missing: the list is too short", fix="write every entry of the list")
    return Words(3, f"{c.shown} is missing", fix=f"add `{c.path[-1]}: ...`" if c.shown != "name" else "name: my-run")


def _pattern(c: Complaint) -> Words:
    _, ctx = c.kinds[0]
    expected = _PATTERNS.get(ctx["pattern"], f"text like {ctx['pattern']}")
    wrong = str(c.path[-1]) if c.on_key else str(c.value)
    if expected != NAME_IN_WORDS:
        return Words(9, f"{c.shown}: the key is not a name of a variable", wrong, expected, fix="rename it")
    near = slug(wrong)
    fix = f"rename it to {near}" if c.on_key else _assign(c, near)
    return Words(9, f"{c.shown} is not a name", as_yaml(wrong), expected, near, fix)


def _near_word(c: Complaint) -> str | None:
    words = [w for kind, ctx in c.kinds if kind == "literal_error" for w in re.findall("'([^']*)'", ctx["expected"])]
    close = get_close_matches(str(c.value).lower(), words, n=1, cutoff=0.5)
    return close[0] if close else None


def _fix(c: Complaint, default: object, near: str | None) -> str | None:
    if near is not None:
        return _assign(c, near)
    wanted = {kind.removesuffix("_type") for kind, _ in c.kinds}
    if isinstance(c.value, str) and wanted & {"int", "float"} and re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", c.value):
        return f"{_assign(c, c.value)}   (without quotes)"
    if "string" in wanted and not isinstance(c.value, list | dict | None):
        return f"{_assign(c, json.dumps(as_yaml(c.value)))}   (text needs quotes here)"
    if wanted & {"list", "tuple"} and isinstance(c.value, str | int | float) and not isinstance(default, tuple):
        return _assign(c, f"[{as_yaml(c.value)}]")
    if default is MISSING or default is None:
        return "correct it" if default is MISSING else "correct it, or remove the key"
    return f"{_assign(c, as_yaml(default))}   (the default)"


def _rule_fix(c: Complaint) -> str:
    if c.value is not MISSING:
        return "change it, or what it depends on"
    return f"give `{c.path[-1]}`, or change what it depends on"


def _assign(c: Complaint, value: str) -> str:
    last = c.path[-1] if c.path else ""
    return f"{last}: {value}" if isinstance(last, str) else f"write {value}"
