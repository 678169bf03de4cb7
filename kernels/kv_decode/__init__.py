"""Attention with a key/value cache: `api` (functions), `plan` (a decode step for graphs), `cache` (what models keep).

Imports nothing by itself: `kernels.kv_decode.api` needs torch, and Triton only when a kernel is launched.
`kernels.kv_decode.why(...)` says what would answer a call, and why. README.md has the maths, the layout, examples and
measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.kv_decode.dispatch import why as why


def __getattr__(name: str) -> Any:
    if name != "why":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kernels.kv_decode.dispatch import why

    return why
