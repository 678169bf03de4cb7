"""The keys that a configuration model knows: on one level, anywhere, the nearest to a typo, and their defaults. Pure.

Called by `pods.speccheck`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import BaseModel

from pods.specwords import MISSING
from pods.yamlfile import join

ELSEWHERE = {
    "learning_rate": "lr", "batch_size": "global_batch", "max_steps": "steps", "num_steps": "steps",
    "micro_batch_size": "micro_batch", "grad_clip": "clip", "max_grad_norm": "clip", "precision": "dtype",
    "sequence_length": "seq_len", "max_seq_len": "seq_len", "block_size": "seq_len", "hidden_size": "dim",
    "n_layer": "layers", "num_layers": "layers", "n_head": "heads", "num_heads": "heads", "vocab_size": "vocab",
    "save_every": "every_steps", "save_steps": "every_steps",
}  # fmt: skip
"""what other trainers call a key of ours"""


def nearest_key(name: str, siblings: Sequence[str], everywhere: Sequence[str]) -> str | None:
    """A key of the same level that is spelled alike, else one on another level that is spelled nearly the same."""
    ours = ELSEWHERE.get(name.lower())
    for keys in (siblings, everywhere) if ours else ():
        if found := next((k for k in keys if k.rsplit(".", 1)[-1] == ours), None):
            return found
    for keys, cutoff in ((siblings, 0.6), (everywhere, 0.8)):
        by_name = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
        close = get_close_matches(name.lower(), by_name, n=1, cutoff=cutoff)
        if close:
            return by_name[close[0]]
    return None


def keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    inner = model_at(model, path)
    return list(inner.model_fields) if inner else []


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(join(prefix, name))
        inner = _model_in(info.annotation)
        if inner:
            keys += all_keys(inner, join(prefix, name))
    return keys


def model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`; None for free mappings and scalars."""
    found: type[BaseModel] | None = model
    for part in path:
        info = found.model_fields.get(str(part)) if found else None
        if info is None:
            continue  # the name of an entry in a mapping of models
        found = _model_in(info.annotation)
    return found


def field_default(model: type[BaseModel], path: tuple[str | int, ...]) -> object:
    """The default of a scalar key, for an example; MISSING when it has none."""
    inner = model_at(model, path[:-1])
    info = inner.model_fields.get(str(path[-1])) if inner and path else None
    if info is None or info.is_required():
        return MISSING
    default = info.get_default(call_default_factory=True, validated_data={})
    return MISSING if isinstance(default, BaseModel) else default


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = typing.get_origin(annotation)
    args: tuple[object, ...] = typing.get_args(annotation)
    if origin is dict:
        return _model_in(args[1])
    if origin in (typing.Union, types.UnionType):
        return next((m for a in args if (m := _model_in(a))), None)
    return None
