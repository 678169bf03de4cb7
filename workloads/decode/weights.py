"""The model that a decode run generates with: random, of a run's checkpoint, or of a folder as published.

A checkpoint is read only after every byte of it verified against its manifest. Nothing is downloaded. Called by
`workloads.decode.__main__`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from workloads.contract.config.job import ModelSpec, padded_vocab
from workloads.contract.errors import IntegrityError, LocalError, SpecError
from workloads.contract.files import read_json, try_read_json
from workloads.contract.manifest import newest_verified, verify
from workloads.contract.rundir import RUN_ID_PATTERN, TRAINER_FILE, OrchHome, RunDir
from workloads.data.tokenizers import BYTE, load_tokenizer
from workloads.decode.config import DecodeConfig
from workloads.decode.place import Place
from workloads.decode.tokens import BYTE_VOCAB, ByteTokenizer, Tokenizer, TrainedTokenizer, published_tokenizer
from workloads.models.decoder import Decoder
from workloads.models.pretrained import CONFIG, decoder_from_pretrained


@dataclass(frozen=True)
class Loaded:
    """`eos`: tokens that end a reply; `origin`: what the weights are, in a form that names them for good."""

    model: Decoder
    tokenizer: Tokenizer
    eos: tuple[int, ...]
    origin: dict[str, Any]


def load_model(config: DecodeConfig, place: Place, home: Path) -> Loaded:
    """The model on the place's device, in the number format asked for. OrchError when there is none to be had.

    `home`: $ORCH_HOME on this pod, where runs are looked for.
    """
    named = config.asked.weights
    if named is None:
        return _random(config, place)
    if RUN_ID_PATTERN.fullmatch(named):
        return _checkpoint(_newest(OrchHome(home).run(named)), config, place)
    folder = Path(named).expanduser().absolute()
    if (folder / CONFIG).is_file():
        return _published(folder, config, place)
    if RunDir.manifest(folder).is_file():
        return _checkpoint(folder, config, place)
    if RunDir(folder).checkpoints.is_dir():
        return _checkpoint(_newest(RunDir(folder)), config, place)
    raise SpecError(
        "E-DECODE-008", f"there are no weights in {folder}" if folder.is_dir() else f"there is no folder {folder}",
        where="decode.weights", value=named,
        expected=f"on this pod: a folder with {CONFIG} and *.safetensors, a checkpoint, or the id of a run",
        fix="orch runs   (the ids of runs)   or: orch decode --from DIR",
    )  # fmt: skip


def _random(config: DecodeConfig, place: Place) -> Loaded:
    torch.manual_seed(config.asked.seed)
    try:
        with torch.device(place.device):
            model = Decoder(config.model, BYTE_VOCAB)
    except ValueError as e:
        raise SpecError("E-DECODE-009", f"the model cannot be built: {e}", where="model") from e
    origin = {"kind": "random", "seed": config.asked.seed, "model": config.model.model_dump(mode="json")}
    return Loaded(_ready(model, config, place), ByteTokenizer(), (), origin)


def _newest(run: RunDir) -> Path:
    try:
        found, rejected = newest_verified(run)
    except OSError as e:
        raise IntegrityError(
            "E-DECODE-011", f"the checkpoints of run {run.run_id} cannot be looked at: {e.strerror}",
            where=str(run.checkpoints), fix=f"ls -l {run.checkpoints}   (mend what it says)",
        ) from e  # fmt: skip
    if found is None:
        what = f"none of {len(rejected)} checkpoints verifies; the newest: {rejected[0][1]}" if rejected else "none"
        raise SpecError(
            "E-DECODE-010", f"run {run.run_id} has no checkpoint to decode with: {what}", where=str(run.checkpoints),
            fix=f"orch status {run.run_id}   (a run leaves its first one after checkpoint.every_s, or at its end)",
        )  # fmt: skip
    return found


def _checkpoint(folder: Path, config: DecodeConfig, place: Place) -> Loaded:
    """A checkpoint of the trainer: its own model, the tokens of its data; what ended a document ends a reply."""
    if problems := verify(folder):
        raise IntegrityError(
            "E-DECODE-011", f"{folder.name} must not be used: {problems[0]}", where=str(folder),
            fix="name another checkpoint of the run, or the run itself",
        )  # fmt: skip
    bound = read_json(folder / TRAINER_FILE)["config"]
    spec, coder = _spec_of(bound, folder), load_tokenizer(str(bound.get("data.tokenizer", BYTE)))
    with torch.device(place.device):
        model = Decoder(spec, padded_vocab(coder.vocab_size))
    _fill(model, folder)
    manifest = read_json(RunDir.manifest(folder))
    origin = {"kind": "checkpoint", "run": manifest["run"], "step": manifest["step"], "path": str(folder)}
    origin["model"] = spec.model_dump(mode="json")
    tokenizer = ByteTokenizer() if coder.name == BYTE else TrainedTokenizer(coder)
    return Loaded(_ready(model, config, place), tokenizer, (coder.end_id,), origin)


def _spec_of(bound: Mapping[str, Any], folder: Path) -> ModelSpec:
    """The model that a checkpoint's trainer was bound to."""
    told = {k.removeprefix("model."): v for k, v in bound.items() if k.startswith("model.")}
    try:
        return ModelSpec.model_validate_json(json.dumps(told))
    except ValidationError as e:
        raise SpecError(
            "E-DECODE-012", f"{folder.name} holds a model that this orch does not know", where=str(folder),
            value=e.errors(include_url=False)[0]["msg"],
        ) from e  # fmt: skip


def _fill(model: Decoder, folder: Path) -> None:
    """The model's tensors out of the checkpoint, the optimizer's left where they are."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is unavailable": one rank without a process group
        load(state, storage_reader=FileSystemReader(folder))
    model.load_state_dict(state["model"])


def _published(folder: Path, config: DecodeConfig, place: Place) -> Loaded:
    tokenizer = published_tokenizer(folder)
    try:
        model = decoder_from_pretrained(folder)
    except ImportError as e:
        raise LocalError("E-DECODE-007", f"{e}", where=str(folder)) from e
    except ValueError as e:
        raise SpecError("E-DECODE-009", f"the weights cannot be used: {e}", where=str(folder)) from e
    files = {p.name: p.stat().st_size for p in sorted(folder.glob("*.safetensors"))}
    spec = model.spec.model_dump(mode="json")
    origin = {"kind": "published", "path": str(folder), "files": files, "model": spec}
    return Loaded(_ready(model, config, place), tokenizer, _ends_of(folder), origin)


def _ends_of(folder: Path) -> tuple[int, ...]:
    """The tokens that end a reply, as generation_config.json, else config.json, names them."""
    for name in ("generation_config.json", CONFIG):
        told = (try_read_json(folder / name) or {}).get("eos_token_id")
        found = [told] if isinstance(told, int) else told if isinstance(told, list) else []
        if found and all(isinstance(i, int) for i in found):
            return tuple(found)
    return ()


def _ready(model: Decoder, config: DecodeConfig, place: Place) -> Decoder:
    held = model.embed.weight.dtype
    return model.to(device=place.device, dtype=place.dtype(config.asked.dtype, held)).eval().requires_grad_(False)
