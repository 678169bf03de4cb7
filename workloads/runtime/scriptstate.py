"""What a script of a user's own saves and loads: named objects with `state_dict`, or a folder that its trainer fills.

Both are a `RankState`, so that staging, hashes, the manifest, the fence and retention are those of the trainer's own
checkpoints. Saves are synchronous. torch is imported inside functions. Called by `workloads.runtime.scriptsaver`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from workloads.contract.files import atomic_write_json, read_json
from workloads.runtime import rng
from workloads.runtime.agreement import Agreement

FALLBACK_BYTES = 64 << 20
"""what a folder may take as long as none was written"""


class Stateful(Protocol):
    """A model, an optimizer, a schedule, a scaler: whatever torch gives the two methods."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class _Whole:
    """The parts of a `RankState` that background saves need and scripts do not have."""

    def copy_bytes(self) -> int:
        return 0

    def capture(self) -> Any:
        raise RuntimeError("a script's checkpoint is written while it waits")


class ObjectsState(_Whole):
    """`<name>.pt` an object, written by rank 0 (they are the same on every rank), and every rank's generators."""

    def __init__(self, rank: int, agreement: Agreement, objects: Mapping[str, Stateful]) -> None:
        for name, one in objects.items():
            if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
                raise TypeError(f"{name}: a {type(one).__name__} has no state_dict() and load_state_dict()")
        self._rank, self._agreement = rank, agreement
        self._objects = {name: _bare(one) for name, one in objects.items()}

    def size_bytes(self) -> int:
        from torch.utils._pytree import tree_leaves

        leaves = tree_leaves([one.state_dict() for one in self._objects.values()])
        return sum(t.numel() * t.element_size() for t in leaves if hasattr(t, "element_size"))

    def write(self, staged: Path) -> list[Path]:
        own = staged / f"rng_rank{self._rank}.json"
        atomic_write_json(own, rng.capture())
        return [own, *(self._write_object(staged, name) for name in (self._objects if self._rank == 0 else ()))]

    def read(self, path: Path) -> None:
        import torch

        for name, one in self._objects.items():
            one.load_state_dict(torch.load(path / f"{name}.pt", map_location="cpu", weights_only=True))
        own = path / f"rng_rank{self._rank}.json"
        if own.exists():  # a world that grew
            rng.restore(read_json(own))

    def _write_object(self, staged: Path, name: str) -> Path:
        import torch

        state = self._objects[name].state_dict()
        _refuse_shards(name, state)
        path = staged / f"{name}.pt"
        try:
            with path.open("wb") as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
        except RuntimeError as e:
            if "inline_container" in str(e):  # torch's zip writer meets a full disk
                raise OSError(str(e).splitlines()[0]) from e
            raise
        return path


class FolderState(_Whole):
    """A folder filled by `save(folder)` and taken in by `load(folder)`, which every rank calls: those of a trainer that
    knows how to. Plain files only, none in a folder below. Whatever `save` raises fails the checkpoint, not the run."""

    def __init__(
        self, rank: int, agreement: Agreement, save: Callable[[Path], object], load: Callable[[Path], object]
    ) -> None:
        self._rank, self._agreement, self._save, self._load = rank, agreement, save, load

    def size_bytes(self) -> int:
        return FALLBACK_BYTES

    def write(self, staged: Path) -> list[Path]:
        failed: Exception | None = None
        try:
            self._save(staged)
        except Exception as e:  # code of others: a full disk comes as safetensors' own error, for one
            failed = e
        others = self._agreement.gather(failed is not None)  # else rank 0 lists what others still write
        if failed is not None:
            raise OSError((str(failed).splitlines() or [type(failed).__name__])[0]) from failed
        if any(others) or self._rank:
            return []
        files = sorted(staged.iterdir())
        if folders := [p.name for p in files if p.is_dir()]:
            raise OSError(f"{folders[0]} is a folder, and a checkpoint holds plain files")
        for path in files:
            _fsync(path)
        return files

    def read(self, path: Path) -> None:
        self._load(path)


def _bare(one: Stateful) -> Stateful:
    """A model without the DDP around it: it must load with another number of ranks."""
    import torch

    wrapped = isinstance(one, torch.nn.parallel.DistributedDataParallel)
    return one.module if wrapped else one  # type: ignore[attr-defined]


def _refuse_shards(name: str, state: Mapping[str, Any]) -> None:
    from torch.distributed.tensor import DTensor
    from torch.utils._pytree import tree_leaves

    if any(isinstance(leaf, DTensor) for leaf in tree_leaves(state)):
        raise ValueError(
            f"{name} is sharded over ranks, and rank 0 would write its own share alone: give `run.resume_with` "
            "functions that save and load it, as torch.distributed.checkpoint does"
        )


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
