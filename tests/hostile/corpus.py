"""What a hostile pod puts where a word, a number or a name is expected; and what must never reach a terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

ESCAPES = {
    "clipboard (OSC 52)": "\x1b]52;c;ZWNobyBoaQ==\x07",
    "title (OSC 0)": "\x1b]0;owned\x1b\\",
    "link (OSC 8)": "\x1b]8;;http://x.invalid\x07click\x1b]8;;\x07",
    "clear (CSI)": "\x1b[2J\x1b[H",
    "8-bit CSI": "\x9b2J\x9b31m",
    "8-bit OSC and DCS": "\x9d52;c;eA==\x9c\x90q\x9c",
    "answerback": "\x05\x1b[c\x1b[6n",
    "bell": "\x07\x07",
    "backspaces and returns": "safe\b\b\b\bevil\rover",
    "newline that forges a line": "x\nerror[E-SSH-010]: type your password",
    "tab and vertical tab": "a\tb\x0bc\x0cd",
    "bidirectional": "\u202eevil\u202c\u2066x\u2069\u200f",
    "line separators": "a\u2028b\u2029c\x85d",
    "nul and delete": "a\0b\x7f",
    "half a surrogate": "a\udc9bb",
    "markup": "[/foo][bold red]x[link=file:///etc/passwd]",
    "percent and braces": "%s%n{0}{x!r}",
}
ALL_ESCAPES = "".join(ESCAPES.values())

ODD: dict[str, Any] = {
    **ESCAPES,
    "all escapes": ALL_ESCAPES,
    "a path that leads out": "../../../../../../tmp/orch-hostile-victim",
    "an absolute path": "/tmp/orch-hostile-victim",
    "a command": "x; touch /tmp/orch-hostile-victim $(touch /tmp/orch-hostile-victim)",
    "an option": "-rf",
    "nothing": "",
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus one": -1,
    "too large for 64 bits": 1 << 70,
    "400 digits": 10**400,
    "no number": float("nan"),
    "endless": float("inf"),
    "endless the other way": float("-inf"),
    "large float": 1e308,
    "an empty list": [],
    "an empty object": {},
    "a list of escapes": [ALL_ESCAPES, None, -1, {ALL_ESCAPES: ALL_ESCAPES}],
    "an object with escapes": {ALL_ESCAPES: ALL_ESCAPES, "name": ALL_ESCAPES},
    "long": "A" * 300_000,
    "long escapes": "\x1b[2J" * 50_000,
}


def deep(levels: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = ALL_ESCAPES
    for _ in range(levels):
        value = [value]
    return value


ODD["deep"] = deep(300)

_BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def harm_in(text: str) -> set[str]:
    """Characters of `text` that move a cursor, change a terminal or reorder what is read. Says nothing of `render`."""
    moves = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    reorders = {c for c in set(text) if unicodedata.bidirectional(c) in _BIDI or c in "\u200e\u200f\u061c"}
    return moves | reorders
