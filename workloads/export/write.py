"""A published folder out of a verified checkpoint: config.json, *.safetensors, and where it all came from.

Reads the model's tensors and leaves the optimizer's where they are; needs no process group and no GPU. The folder is
made under another name, synced and renamed: it is whole or not there. Called by `workloads.export.__main__`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads.contract.config.job import JobSpec, ModelSpec
from workloads.contract.errors import ConflictError, IntegrityError, LocalError, OrchError, SpecError
from workloads.contract.files import atomic_write_json, fsync_dir, read_json
from workloads.contract.manifest import FileEntry, entry_of, hash_file, read_manifest, verify
from workloads.contract.rundir import TRAINER_FILE, RunDir
from workloads.data.tokenizers import BYTE, load_tokenizer
from workloads.export.names import published_config, published_weights
from workloads.models.decoder import Decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARD_BYTES = 4 << 30
ORIGIN = "orch.json"


@dataclass(frozen=True)
class Exported:
    folder: Path
    run: str
    step: int
    parameters: int
    files: tuple[FileEntry, ...]


def export(checkpoint: Path, out: Path, dtype: str) -> Exported:
    """Write the folder `out`, which must not be there. OrchError when the checkpoint or the place cannot be used."""
    if os.path.lexists(out):
        raise ConflictError(
            "E-EXPORT-004", "something lies there already", where=str(out), expected="a name that is free",
            fix=f"--out {out}-2",
        )  # fmt: skip
    if problems := verify(checkpoint):
        raise IntegrityError(
            "E-EXPORT-003", f"{checkpoint.name} must not be used: {problems[0]}", where=str(checkpoint),
            expected="a checkpoint that verifies", fix="name another one: --checkpoint step_00000120",
        )  # fmt: skip
    manifest = read_manifest(checkpoint)[0]
    assert manifest is not None
    bound = read_json(checkpoint / TRAINER_FILE).get("config")
    if not isinstance(bound, dict):
        raise _scripts(checkpoint)
    spec, tokenizer = _spec_of(bound, checkpoint), str(bound.get("data.tokenizer", BYTE))
    vocab = _rows(checkpoint)
    weights = {k: v.to(DTYPES[dtype]) for k, v in published_weights(spec, _tensors(spec, vocab, checkpoint)).items()}
    named = str(DTYPES[dtype]).removeprefix("torch.")
    config = published_config(spec, vocab, seq_len=int(bound["data.seq_len"]), dtype=named, end_id=_end_of(tokenizer))
    origin = {
        "v": 1, "run": manifest.run, "step": manifest.step, "dtype": named, "tokenizer": tokenizer,
        "manifest_sha256": hash_file(RunDir.manifest(checkpoint))[1], "trained_with": dict(manifest.versions),
        "config": bound,
    }  # fmt: skip
    try:
        files = _write(out, weights, {"config.json": config, ORIGIN: origin})
    except OSError as e:
        raise LocalError("E-EXPORT-005", f"the folder cannot be written: {e}", where=str(out)) from e
    count = sum(t.numel() for t in weights.values())
    return Exported(out, manifest.run, manifest.step, count, files)


def _spec_of(bound: Mapping[str, Any], checkpoint: Path) -> ModelSpec:
    model = {k.removeprefix("model."): v for k, v in bound.items() if k.startswith("model.")}
    try:
        return JobSpec.model_validate_json(json.dumps({"name": "export", "model": model})).model
    except ValueError as e:
        raise SpecError(
            "E-EXPORT-006", f"{checkpoint.name} holds a model that this orch does not know", where=str(checkpoint),
            value=str(e).splitlines()[0], fix="export it with the orch that trained it",
        ) from e  # fmt: skip


def _rows(checkpoint: Path) -> int:
    """Of the embedding, as it was saved. The metadata is a pickle, of a checkpoint that has verified."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = FileSystemReader(checkpoint).read_metadata().state_dict_metadata.get("model.embed.weight")
    if not isinstance(saved, TensorStorageMetadata):
        raise _scripts(checkpoint)
    return int(saved.size[0])


def _scripts(checkpoint: Path) -> SpecError:
    files = sorted(p.name for p in checkpoint.iterdir() if p.suffix in (".pt", ".bin", ".safetensors"))
    return SpecError(
        "E-EXPORT-006", f"{checkpoint.name} holds no model of orch's own trainer: a script saved it",
        where=str(checkpoint), value=", ".join(files[:6]) or None, expected="a run of kind train",
        fix="load it with what wrote it: torch.load, accelerate, or transformers' from_pretrained",
    )  # fmt: skip


def _end_of(tokenizer: str) -> int | None:
    """The token that ends a document; None where the tokenizer is not to be had here."""
    try:
        return load_tokenizer(tokenizer).end_id
    except OrchError as e:
        print(f"note: config.json names no token that ends a text: {e.what}", file=sys.stderr)
        return None


def _tensors(spec: ModelSpec, vocab: int, checkpoint: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with torch.device("meta"):
        shapes = Decoder(spec, vocab).state_dict()
    state = {"model": {name: torch.empty(t.shape, dtype=t.dtype) for name, t in shapes.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is unavailable": it is not needed
        load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return state["model"]


def _write(out: Path, weights: Mapping[str, Tensor], documents: Mapping[str, Any]) -> tuple[FileEntry, ...]:
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.tmp.{os.getpid()}")
    staged.mkdir()
    try:
        shards = list(_shards(weights))
        where: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            single = len(shards) == 1
            name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file({k: t.contiguous() for k, t in shard.items()}, staged / name, metadata={"format": "pt"})
            _sync(staged / name)
            where |= dict.fromkeys(shard, name)
        if len(shards) > 1:
            size = sum(t.numel() * t.element_size() for t in weights.values())
            index = {"metadata": {"total_size": size}, "weight_map": where}
            atomic_write_json(staged / "model.safetensors.index.json", index, mode=0o644)
        for name, document in documents.items():
            atomic_write_json(staged / name, document, mode=0o644)
        files = tuple(entry_of(path) for path in sorted(staged.iterdir()))
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    fsync_dir(out.parent)
    return files


def _shards(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Parts of at most `SHARD_BYTES`, in order; a tensor is never cut."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights.items():
        bytes_of = tensor.numel() * tensor.element_size()
        if shard and size + bytes_of > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += bytes_of
    yield shard


def _sync(path: Path) -> None:
    with path.open("rb") as f:
        os.fsync(f.fileno())
