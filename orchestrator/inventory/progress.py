"""The line that says how far a transfer is: rewritten on a terminal, now and then elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from orchestrator.runs.render import duration, one_line
from orchestrator.runs.waiting import Live

EVERY_S = 0.2
QUIET_S = 1.0


@dataclass
class Progress:
    """`total` and `on_bytes` are handed to `orchestrator.inventory.transfer`."""

    quiet: bool = False
    size: int = 0
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    _next: float = 0.0
    _live: Live = field(default_factory=lambda: Live(out=sys.stderr))

    def __post_init__(self) -> None:
        self._live.silent = self.quiet
        self._next = self.began + QUIET_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._live.out.isatty():
            self._live.status("", time.monotonic())
            self._live._wipe()

    def total(self, size_bytes: int) -> None:
        self.size = size_bytes

    def on_bytes(self, name: str, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        rate = self.done / max(now - self.began, 0.001)
        left = duration((self.size - self.done) / rate) if rate and self.size >= self.done else "-"
        figures = f"{self.done >> 20} of {self.size >> 20} MiB | {rate / (1 << 20):.1f} MiB/s | {left} left"
        self._live.status(f"{figures} | {one_line(name, 60)}", now)
