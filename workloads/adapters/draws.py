"""The random numbers that the order of an epoch is drawn from, kept in a checkpoint.

A loader that shuffles draws its order when it is opened: from torch's generator, or from one of its sampler. A process
that goes on within an epoch has to draw the same one again, so each checkpoint holds the generators as they were when
the epoch began, and those of the loader as they are. Plain JSON, a file a rank. Called by
`workloads.adapters.accelerate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workloads.contract.files import atomic_write_json, try_read_json
from workloads.runtime import rng

_PARTS = ("base_dataloader", "batch_sampler", "sampler")
_DEPTH = 4


class Draws:
    """Of one rank. Loaders are opened one after the other."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._loader: Any = None
        self._began: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None

    def open(self, loader: Any, *, within: bool) -> None:
        """An epoch of `loader` begins, or goes on `within`: set the generators as they were then, and remember them."""
        kept, self._loaded = self._loaded, None
        self._loader = loader
        if kept is None:
            self._began = {"rng": rng.capture(), "own": self._own()}
            return
        for generator, state in zip(generators(loader), kept["began" if within else "now"]["own"], strict=False):
            generator.set_state(_tensor(state))
        if within:
            rng.restore(kept["began"]["rng"])
        self._began = kept["began"] if within else {"rng": rng.capture(), "own": self._own()}

    def save(self, folder: Path) -> None:
        """A file in `folder`; none before the first loader was opened. OSError."""
        if self._began is not None:
            atomic_write_json(_path(folder, self._rank), {"began": self._began, "now": {"own": self._own()}})

    def load(self, folder: Path) -> None:
        """What this rank saved; of a rank that was not there, what rank 0 did; nothing of an older checkpoint."""
        found = try_read_json(_path(folder, self._rank)) or try_read_json(_path(folder, 0))
        self._loaded = found if isinstance(found, dict) else None

    def _own(self) -> list[str]:
        return [bytes(g.get_state().tolist()).hex() for g in generators(self._loader)]


def generators(loader: Any) -> list[Any]:
    """Those of a loader and its samplers, each once, in an order that is the same in every process."""
    import torch

    found: list[Any] = []
    level, seen = [loader], set[int]()
    for _ in range(_DEPTH):
        below: list[Any] = []
        for part in level:
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            for name in ("generator", "synchronized_generator"):
                one = getattr(part, name, None)
                if isinstance(one, torch.Generator) and not any(one is g for g in found):
                    found.append(one)
            below += [getattr(part, name, None) for name in _PARTS]
        level = below
    return found


def _path(folder: Path, rank: int) -> Path:
    return folder / f"draws_rank{rank}.json"


def _tensor(text: str) -> Any:
    import torch

    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
