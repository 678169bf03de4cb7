"""A memory limit for a pod, by cgroup v1 or v2, whichever this machine has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.need import LabUnavailable

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
END_S = 5.0


class MemoryLimit:
    def __init__(self, name: str, mib: int) -> None:
        v1 = V1.is_dir()
        self.path = (V1 if v1 else V2) / name
        limit = "memory.limit_in_bytes" if v1 else "memory.max"
        try:
            self.path.mkdir()
            (self.path / limit).write_text(str(mib << 20))
            if not v1:
                (self.path / "memory.oom.group").write_text("0")
        except OSError as e:
            self.close()
            raise LabUnavailable(f"no memory limit here: {e}") from e

    def around(self, argv: Sequence[str]) -> list[str]:
        """The same command, below the limit."""
        return ["sh", "-c", 'echo $$ >"$1"; shift; exec "$@"', "sh", str(self.path / "cgroup.procs"), *argv]

    @property
    def oom_kills(self) -> int:
        name = "memory.oom_control" if self.path.is_relative_to(V1) else "memory.events"
        rows = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(rows.get("oom_kill", 0))

    def close(self) -> None:
        deadline = time.monotonic() + END_S
        while self.path.is_dir():
            with suppress(OSError):
                self.path.rmdir()
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.path} still has processes")
            time.sleep(0.02)
