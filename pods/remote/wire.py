"""Frames between an operator and the process of `pods.remote` on a pod: JSON, and bytes behind it.

A frame is two big-endian 32-bit lengths, the JSON, the bytes. Bytes are compressed where that helps (`"z": 1`). Both
sides bound what they take: a pod may lie about a length. Standard library only; used on both sides.

    request   {"op": "runs.halt", "args": {...}}                         and bytes
    answer    {"ok": true, "fields": {...}}                              and bytes
              {"ok": false, "error": {"kind", "code", "what", ...}}
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

from workloads.contract import errors
from workloads.contract.errors import OrchError, RemoteError

VERSION = 1
GREETING = "ORCH-REMOTE"
MAX_JSON_BYTES = 32 << 20
MAX_DATA_BYTES = 32 << 20
MAX_TEXT_CHARS = 4000
"""of one text of an error that a pod reports"""
_HEAD = struct.Struct(">II")
_SMALL = 512
_CODE = re.compile(r"E-[A-Z]{1,12}-[0-9]{3}")
_KINDS: dict[str, type[OrchError]] = {
    kind.__name__: kind
    for kind in (errors.UsageError, errors.SpecError, errors.RefusedError, errors.ConflictError, errors.IntegrityError)
}
_FIELDS = ("what", "where", "value", "expected", "did_you_mean", "fix")


class FrameError(ValueError):
    """Bytes that are no frame."""


def pack(message: dict[str, Any], data: bytes = b"") -> bytes:
    if len(data) > _SMALL:
        squeezed = zlib.compress(data, 1)
        if len(squeezed) < len(data) * 0.9:
            message, data = {**message, "z": len(data)}, squeezed
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MAX_JSON_BYTES or len(data) > MAX_DATA_BYTES:
        raise FrameError(f"a frame of {len(text)} + {len(data)} bytes is too large")
    return _HEAD.pack(len(text), len(data)) + text + data


def unpack(read_exactly: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """One frame. `read_exactly(n)` gives n bytes or raises. FrameError for anything that is no frame."""
    text_len, data_len = _HEAD.unpack(read_exactly(_HEAD.size))
    if text_len > MAX_JSON_BYTES or data_len > MAX_DATA_BYTES:
        raise FrameError(f"a frame of {text_len} + {data_len} bytes is too large")
    try:
        message = json.loads(read_exactly(text_len))
    except (ValueError, RecursionError) as e:
        raise FrameError(f"a frame holds no JSON: {type(e).__name__}") from e
    data = read_exactly(data_len)
    if not isinstance(message, dict):
        raise FrameError("a frame holds no object")
    size = message.pop("z", None)
    if size is not None:
        data = _inflate(data, size)
    return message, data


def _inflate(data: bytes, size: object) -> bytes:
    if type(size) is not int or not 0 <= size <= MAX_DATA_BYTES:
        raise FrameError("a frame gives no sensible size")
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(data, size + 1)
    except zlib.error as e:
        raise FrameError(f"a frame cannot be decompressed: {e}") from e
    if len(out) != size or engine.unconsumed_tail:
        raise FrameError("a frame decompresses to another size than it says")
    return out


def error_row(error: OrchError) -> dict[str, Any]:
    """An error to be raised again on the other side."""
    row = {k: getattr(error, k) for k in _FIELDS if getattr(error, k) is not None}
    row = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in row.items()}
    return {"kind": type(error).__name__, "code": error.code, **row}


def error_of(row: object, pod: str) -> OrchError:
    """The error that a pod reported. What went wrong on its machine (LocalError there) is a RemoteError here."""
    if not isinstance(row, dict):
        return RemoteError("E-POD-010", f"pod {pod} reported an error that is none")
    kind = _KINDS.get(str(row.get("kind")), RemoteError)
    told = {k: v for k, v in row.items() if k in _FIELDS and k != "what" and isinstance(v, str | int | float)}
    texts: dict[str, Any] = {
        k: v if k == "value" and not isinstance(v, str) else str(v)[:MAX_TEXT_CHARS] for k, v in told.items()
    }
    code = str(row.get("code"))
    return kind(
        code if _CODE.fullmatch(code) else "E-POD-010", str(row.get("what", "failed"))[:MAX_TEXT_CHARS], **texts
    )
