"""Keeping the secrets of a run out of what is shown of it.

`redactor(values)` gives a function from text to text that writes `[secret HF_TOKEN]` where a value stood, as it is or
in a form that programs print it in. Applied to whole lines *before* they are cut, wrapped or made harmless: a value cut
in two is no longer found. What a program encrypts, spells backwards or prints letter by letter is not found either.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus

from workloads.contract.errors import OrchError
from workloads.contract.rundir import RunDir
from workloads.contract.secretfile import read_secrets

Redactor = Callable[[str], str]
MIN_CHARS = 8  # shorter values would hide ordinary words; the launch refuses them


def secrets_of(run: RunDir) -> dict[str, str]:
    """The secrets of a run in a directory on this machine; {} where they cannot be read."""
    try:
        return read_secrets(run)
    except (OSError, ValueError):
        return {}


def redactor(values: Mapping[str, str]) -> Redactor:
    """Hides every value of `{name: value}`; gives text back as it is when there are none."""
    names: dict[str, str] = {}
    for name in sorted(values):
        for form in forms(values[name]):
            names.setdefault(form, name)
    if not names:
        return lambda text: text
    patterns = tuple(names)

    def redact(text: str) -> str:
        spans = [span for p in patterns if p in text for span in _spans(text, p, names[p])]
        return _without(text, spans) if spans else text

    return redact


def redact_error(error: OrchError, redact: Redactor) -> OrchError:
    """`error` with every text of it redacted, in place."""
    for key in ("what", "where", "value", "expected", "did_you_mean", "fix"):
        text = getattr(error, key)
        if text is not None and not isinstance(text, bool | int | float):
            setattr(error, key, redact(str(text)))
    return error


def forms(value: str) -> frozenset[str]:
    """The value, each longer line of it, and how these look quoted for URL, JSON, Python, HTML, hex and base64."""
    lines = {line.strip() for line in value.splitlines()}
    plain = {text for text in (value, value.strip(), *lines) if len(text) >= MIN_CHARS}
    return frozenset(form for text in plain for form in _encoded(text) if len(form) >= MIN_CHARS)


def _encoded(text: str) -> set[str]:
    raw = text.encode("utf-8", "surrogateescape")
    found = {text, html.escape(text), html.escape(text, quote=False), raw.hex(), raw.hex().upper()}
    found |= {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    found |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1], repr(raw)[2:-1]}
    found.add(text.encode("unicode_escape").decode("ascii"))
    for shift in range(3):
        found |= _base64(raw, shift)
    return found


def _base64(raw: bytes, shift: int) -> set[str]:
    """What of its base64 stays the same whatever stands before (`shift` bytes modulo 3) and behind it."""
    text = base64.b64encode(b"\0" * shift + raw).decode()
    first = (0, 2, 3)[shift]
    last = len(text) - (0, 3, 2)[(shift + len(raw)) % 3]
    return {text[first:last], text[first:last].translate(str.maketrans("+/", "-_"))}


def _spans(text: str, pattern: str, name: str) -> list[tuple[int, int, str]]:
    found = []
    at = text.find(pattern)
    while at >= 0:
        found.append((at, at + len(pattern), name))
        at = text.find(pattern, at + len(pattern))
    return found


def _without(text: str, spans: list[tuple[int, int, str]]) -> str:
    """Spans may overlap: what they cover together is replaced once."""
    out: list[str] = []
    end = 0
    for start, stop, name in sorted(spans, key=lambda s: (s[0], -s[1])):
        if start >= end:
            out += [text[end:start], f"[secret {name}]"]
        end = max(end, stop)
    return "".join([*out, text[end:]])
