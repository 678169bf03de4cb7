"""Whether a line of text names a KV cache policy: the operator's side refuses a wrong one before a pod is asked.

The grammar alone: what it means is `kernels.decoupled.policy`, which imports nothing of ours and which this side does
not import. tests/decode/test_kvpolicy.py holds the two to each other. Called by `DecodeSpec`.
"""

from __future__ import annotations

import difflib
import re

EXAMPLE = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"
FORMATS = ("q4_0@32", "q8_0@32", "fp16")
_ITEMS = {key: re.compile(rf"\s*{key}\s*=\s*(?:{'|'.join(FORMATS)})\s*") for key in ("ksem", "kgeo", "v")}
_ITEMS["resid"] = re.compile(r"\s*resid\s*=\s*[0-9]{1,9}\s*")


def mistake(text: str) -> str | None:
    """The first item of `text` that is none, or the key that is missing or given twice; None for a right policy."""
    left = dict(_ITEMS)
    for item in text.split(","):
        key = item.partition("=")[0].strip()
        if key not in _ITEMS:
            return f"{item.strip()!r} is none of ksem=, kgeo=, v=, resid="
        if key not in left:
            return f"{key} is given twice"
        if not left.pop(key).fullmatch(item):
            return f"{item.strip()!r} is not {'a number of tokens' if key == 'resid' else _formats(item)}"
    return f"without {', '.join(left)}" if left else None


def _formats(item: str) -> str:
    near = difflib.get_close_matches(item.partition("=")[2].strip().lower(), FORMATS, n=1, cutoff=0.4)
    return " or ".join(FORMATS) + (f" (did you mean {near[0]!r}?)" if near else "")
