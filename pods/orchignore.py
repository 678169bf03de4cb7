"""`.orchignore`: what stays at home although git would let it travel. One pattern a line, as in .gitignore.

`*`, `?`, `[...]` and `**` as there; a pattern with a `/` inside or in front is read from the top, any other matches a
name anywhere; one that ends with `/` matches directories only; what lies below a match stays at home too. There is no
`!`. Used by `pods.snapshotscan` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from workloads.contract.errors import LocalError, SpecError
from workloads.contract.files import read_bytes_bounded

NAME = ".orchignore"
MAX_BYTES = 64 << 10
MAX_PATTERNS = 1000


def load(top: Path) -> Callable[[str], bool]:
    """Whether a relative path stays at home. SpecError for a file that cannot be meant."""
    path = top / NAME
    try:
        lines = read_bytes_bounded(path, MAX_BYTES).decode().splitlines()
    except FileNotFoundError:
        return lambda path: False
    except OSError as e:
        raise LocalError("E-CODE-020", f"{NAME} cannot be read: {e.strerror}", where=str(path)) from e
    except ValueError as e:
        raise SpecError("E-CODE-021", f"{NAME} is no small UTF-8 file", where=str(path)) from e
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        pattern = line.strip()
        if pattern.startswith("!") or len(found) > MAX_PATTERNS:
            raise SpecError(
                "E-CODE-021", f"{NAME} knows no exceptions", where=f"{path}:{number}", value=pattern, fix="remove it"
            )
        if pattern and not pattern.startswith("#"):
            found.append(_regex(pattern))
    whole = re.compile("|".join(found)) if found else None
    return lambda path: whole is not None and whole.match(path) is not None


def _regex(pattern: str) -> str:
    """Matches a path that the pattern names, or that lies below one it names."""
    folders_only = pattern.endswith("/")
    body = pattern.strip("/")
    anchored = "/" in pattern.rstrip("/")
    out = [] if anchored else ["(?:.*/)?"]
    i = 0
    while i < len(body):
        if body.startswith("**/", i):
            out.append("(?:.*/)?")
            i += 3
        elif body.startswith("**", i):
            out.append(".*")
            i += 2
        else:
            text, i = _one(body, i)
            out.append(text)
    return f"(?s:{''.join(out)}{'/' if folders_only else '(?:/|$)'})"


def _one(body: str, i: int) -> tuple[str, int]:
    """The regular expression of one wildcard, class or character, and where the next begins."""
    char = body[i]
    if char == "*":
        return "[^/]*", i + 1
    if char == "?":
        return "[^/]", i + 1
    end = body.find("]", i + 2) if char == "[" else -1
    if end > 0:
        inner = body[i + 1 : end]
        negated = inner[0] in "!^"
        inner = inner[1:] if negated else inner
        escaped = inner.replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^").replace("]", "\\]")
        if escaped and _compiles(f"[{escaped}]"):
            return f"(?!/)[{'^' if negated else ''}{escaped}]", end + 1
    if char == "\\" and i + 1 < len(body):
        return re.escape(body[i + 1]), i + 2
    return re.escape(char), i + 1


def _compiles(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
