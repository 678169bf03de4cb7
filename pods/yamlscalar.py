"""What a plain (unquoted) YAML scalar means here: pure, no file, no position.

YAML 1.1 and 1.2 read some words differently, and PyYAML reads them a third way (`no` is false, `12:30` is 750,
`0777` is 511, `3e-4` is text). What every reader agrees on is taken; what they disagree about is refused with the two
ways to write it. Dates stay text. Called by `pods.yamlfile`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_INT = 1 << 53

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE_LIKE = frozenset({"yes", "on"})
_FALSE_LIKE = frozenset({"no", "off"})
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", re.ASCII)
_SPECIAL = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", re.ASCII)
_OTHER_BASE = re.compile(r"[-+]?0([0-9_]+|[oO][0-7_]+|[xX][0-9a-fA-F_]+|[bB][01_]+)", re.ASCII)


@dataclass(frozen=True)
class Surprise:
    """Why a scalar is refused, and what to write instead."""

    what: str
    fix: str


def plain(text: str) -> object:
    """None, a bool, an int, a float or the text itself; a `Surprise` when readers of YAML disagree about it."""
    if text in _NULL:
        return None
    if text in ("true", "false"):
        return text == "true"
    lower = text.lower()
    if lower in _TRUE_LIKE | _FALSE_LIKE or lower in ("true", "false"):
        word = "true" if lower in _TRUE_LIKE | {"true"} else "false"
        return Surprise(f"`{text}` is a truth value to some readers of YAML and text to others", _either(word, text))
    if lower in _SPECIAL:
        return _SPECIAL[lower]
    return _number(text)


def _number(text: str) -> object:
    if _INT.fullmatch(text):
        if len(text) > 20 or abs(int(text)) > MAX_INT:
            return Surprise(f"the number {text[:40]} is too large", f"write a number below {MAX_INT}, or quote it")
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return Surprise(f"`{text}` is octal, hexadecimal or binary to some readers of YAML", _either("a decimal", text))
    if _BASE_60.fullmatch(text):
        return Surprise(f"`{text}` is a number in base 60 to some readers of YAML", _either("a decimal", text))
    return float(text) if _FLOAT.fullmatch(text) else text


def _either(word: str, text: str) -> str:
    return f'write {word}, or "{text}" in quotes when it is text'
