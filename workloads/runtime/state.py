"""What a rank has to save: model and optimizer through torch.distributed.checkpoint, generators as JSON.

Knows nothing of staging, manifests or commits; `workloads.runtime.checkpoint` calls it and verifies before `read`:
DCP's own metadata is a pickle. torch is imported inside functions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workloads.contract.files import atomic_write_json, read_json
from workloads.runtime import rng
from workloads.runtime.agreement import Agreement
from workloads.runtime.shards import ShardStates

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

JOBS_OWN = ("weight_decay", "betas", "eps")
"""Settings of an optimizer's groups that the job gives: a checkpoint's do not replace them. lr is set every step."""


class Captured(Protocol):
    """The state of one moment in host memory. Good until the next one is captured."""

    def write(self, staged: Path) -> list[Path]:
        """As `RankState.write`, of that moment; may be called by another thread."""
        ...


class RankState(Protocol):
    """The part of a checkpoint that is one rank's."""

    def copy_bytes(self) -> int:
        """About what `capture` takes of this host's memory. Not collective."""
        ...

    def capture(self) -> Captured:
        """A copy that training does not change. Waits for the device; not collective."""
        ...

    def size_bytes(self) -> int:
        """About what all ranks together will write. Not collective."""
        ...

    def write(self, staged: Path) -> list[Path]:
        """Write and fsync this rank's files; which they are. Collective. OSError when the disk refuses."""
        ...

    def read(self, path: Path) -> None:
        """Take the state in from a checkpoint that verified. Collective. ValueError when it is of another shape."""
        ...


class TorchState:
    """A model and its optimizer, wrapped by DDP or sharded or neither, and this rank's random generators."""

    def __init__(
        self, rank: int, agreement: Agreement, model: torch.nn.Module, optimizer: torch.optim.Optimizer,
        shards: ShardStates | None = None,
    ) -> None:  # fmt: skip
        self._rank, self._agreement = rank, agreement
        self._shards = shards or ShardStates(rank)
        self._model, self._optimizer = model, optimizer
        self._stager: BlockingAsyncStager | None = None

    def size_bytes(self) -> int:
        from torch import Tensor
        from torch.utils._pytree import tree_leaves

        return sum(t.numel() * t.element_size() for t in tree_leaves(self._tensors()) if isinstance(t, Tensor))

    def copy_bytes(self) -> int:
        """AdamW keeps two moments beside each weight, sharded as it is."""
        from torch.distributed.tensor import DTensor

        own = (p.to_local() if isinstance(p, DTensor) else p for p in self._model.parameters())
        return sum(3 * p.numel() * p.element_size() for p in own)

    def capture(self) -> Captured:
        tensors = self._tensors()
        self._stager = self._stager or _make_stager(tensors)
        return _Copy(self, self._stager.stage(tensors), rng.capture(), self._shards.captured(), _gpu())

    def write(self, staged: Path) -> list[Path]:
        return self.write_all(staged, self._tensors(), rng.capture(), self._shards)

    def write_all(
        self, staged: Path, tensors: dict[str, Any], generators: dict[str, Any], shards: ShardStates
    ) -> list[Path]:
        """Write and fsync what is given; collective."""
        self._write_tensors(staged, tensors)
        own = self._rng_file(staged)
        atomic_write_json(own, generators)
        files = [own, *shards.write(staged), *staged.glob(f"__{self._rank}_*")]
        return [*files, staged / ".metadata"] if self._rank == 0 else files

    def read(self, path: Path) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict import set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        state = self._tensors()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "torch.distributed is unavailable": one rank without a process group
            try:
                load(state, storage_reader=FileSystemReader(path), process_group=self._agreement.group)
            except CheckpointException as e:  # a BaseException, raised on every rank whoever failed
                raise ValueError("; ".join(f"rank {r}: {exc}" for r, (exc, _) in e.failures.items())[:2000]) from e
        given = [{name: g[name] for name in JOBS_OWN if name in g} for g in self._optimizer.param_groups]
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        for group, settings in zip(self._optimizer.param_groups, given, strict=True):
            group.update(settings)
        own = self._rng_file(path)
        if own.exists():  # a world that grew: new ranks keep the state they were seeded with
            rng.restore(read_json(own))

    def _rng_file(self, folder: Path) -> Path:
        return folder / f"rng_rank{self._rank}.json"

    def _tensors(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    def _write_tensors(self, staged: Path, tensors: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(
                    tensors,
                    storage_writer=FileSystemWriter(staged, sync_files=True),
                    process_group=self._agreement.group,
                )
        except CheckpointException as e:  # a BaseException, raised on every rank whoever failed
            failures = {rank: exc for rank, (exc, _) in e.failures.items()}
            raise OSError(", ".join(f"writing on rank {r} failed: {exc}" for r, exc in failures.items())) from e
        except RuntimeError as e:
            if "inline_container" in str(e):  # torch's zip writer meets a full disk
                raise OSError(str(e).splitlines()[0]) from e
            raise


@dataclass(frozen=True)
class _Copy:
    """Tensors in buffers of the stager, which the next copy uses again."""

    state: TorchState
    tensors: dict[str, Any]
    generators: dict[str, Any]
    shards: ShardStates
    gpu: int | None

    def write(self, staged: Path) -> list[Path]:
        import torch

        if self.gpu is not None:  # a new thread begins on GPU 0, which may be another rank's
            torch.cuda.set_device(self.gpu)
        return self.state.write_all(staged, self.tensors, self.generators, self.shards)


def _gpu() -> int | None:
    """This thread's GPU, where the process uses one."""
    import torch

    used = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    return torch.cuda.current_device() if used else None


def _make_stager(tensors: dict[str, Any]) -> BlockingAsyncStager:
    """Copies into host memory that is kept for the next time; pinned where there is a GPU.

    Not DCP's DefaultStager: in torch 2.11 its second copy from a GPU ends with a KeyError.
    """
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    stager = BlockingAsyncStager(cache_staged_state_dict=True)
    if _gpu() is None:  # left to itself it pins, which needs one
        stager.state_dict_cache = BlockingAsyncStager().stage(tensors)
    return stager
