"""One thing that the facts of a pod say, and how bad it is.

`fail`: a run there would not work, or a part of the machine is broken. `warn`: it works, something is weaker than it
should be. `note`: worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["fail", "warn", "note"]
ORDER: tuple[Level, ...] = ("fail", "warn", "note")
GIB_MIB = 1024


@dataclass(frozen=True)
class Finding:
    level: Level
    name: str
    text: str
    fix: str | None = None


def failed(findings: Iterable[Finding]) -> bool:
    return any(f.level == "fail" for f in findings)


def size(mib: float) -> str:
    """`64 MiB`, `79 GiB`, `1.5 TiB`."""
    if mib < GIB_MIB:
        return f"{mib:.0f} MiB"
    gib = mib / 1024
    return (f"{gib:.1f} GiB" if gib < 10 else f"{gib:.0f} GiB") if gib < 1024 else f"{gib / 1024:.1f} TiB"
