"""A folder as published (config.json, *.safetensors) to a `Decoder`.

Reads the folder and nothing else: never downloads, never unpickles, never runs code that lies there. Needs the package
safetensors, which is imported when it is called. Called by whoever decodes with published weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads.models.decoder import Decoder
from workloads.models.hf import decoder_from_hf

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def decoder_from_pretrained(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Decoder:
    """The decoder whose config.json and weights (one file, or shards with an index) lie in the folder `path`.

    dtype: default that of the files; device: default CPU. ValueError for a folder, config, index or weights that do
    not fit (`workloads.models.hf`); ImportError that says what to install when safetensors is absent.
    """
    folder = Path(path)
    config = _json_object(folder / CONFIG)
    weights = _read(_files(folder))
    return decoder_from_hf(config, weights, dtype=dtype, device=device)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The weight files and, from the index, the names that each must hold."""
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists():
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:12])
            raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}, only: {there}")
        return [(folder / WEIGHTS, None)]
    where = _json_object(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map from names to files")
    names: dict[str, set[str]] = {}
    for name, file in where.items():
        names.setdefault(file, set()).add(name)
    if strange := sorted(f for f in names if Path(f).name != f):
        raise ValueError(f"{folder / INDEX} names files outside the folder: {', '.join(strange[:3])}")
    if absent := sorted(f for f in names if not (folder / f).is_file()):
        raise ValueError(f"{folder} lacks {len(absent)} of {len(names)} weight files: {', '.join(absent[:3])}")
    return [(folder / f, held) for f, held in sorted(names.items())]


def _read(files: list[tuple[Path, set[str] | None]]) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as e:
        raise ImportError("reading *.safetensors needs the package: pip install safetensors") from e
    weights: dict[str, Tensor] = {}
    for file, names in files:
        try:
            held = load_file(file)
        except SafetensorError as e:
            raise ValueError(f"{file} cannot be read: {e}") from e
        if names is not None and names != held.keys():
            odd = sorted(names ^ held.keys())
            raise ValueError(f"{file.name} and {INDEX} disagree on {len(odd)} names: {', '.join(odd[:3])}")
        weights |= held
    return weights
