"""The positions of a rank's virtual data shards in a checkpoint: `data_rank<k>.json`, beside rng_rank<k>.json.

The trainer puts what belongs to its step into `ShardStates.now` before it saves; a checkpoint without virtual shards
has no such file. A resume reads all of them, because another world size owns other shards. Standard library only.
Called by `workloads.runtime.state` and the trainer's resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json, read_json

VERSION = 1
_GLOB = "data_rank*.json"


class ShardStates:
    """One a rank. `now`: by shard number, JSON values; replaced as a whole, never changed in place."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.now: Mapping[int, Any] = {}

    def captured(self) -> ShardStates:
        """As it is now, whatever the trainer puts here later."""
        copy = ShardStates(self._rank)
        copy.now = self.now
        return copy

    def write(self, folder: Path) -> list[Path]:
        """The file it wrote, or none. OSError when the disk refuses."""
        if not self.now:
            return []
        path = folder / f"data_rank{self._rank}.json"
        atomic_write_json(path, {"v": VERSION, "shards": {str(v): state for v, state in sorted(self.now.items())}})
        return [path]


def read_shards(checkpoint: Path) -> dict[int, Any]:
    """The positions of all ranks' shards in a checkpoint that verified. ValueError when a file is not one of ours."""
    found: dict[int, Any] = {}
    for path in sorted(checkpoint.glob(_GLOB)):
        row = read_json(path)
        if row.get("v") != VERSION or not isinstance(row.get("shards"), dict):
            raise ValueError(f"{path.name} has no positions of version {VERSION}")
        found |= {int(v): state for v, state in row["shards"].items()}
    return found
