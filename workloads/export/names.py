"""Our decoder's weights and config in the form of Llama and Qwen3: the inverse of `workloads.models.hf`.

A tensor of ours is cut into the parts that it was fused from; nothing is computed. Called by `workloads.export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workloads.contract.config.job import ModelSpec
from workloads.models.hf import _shapes, _theirs


def published_config(spec: ModelSpec, vocab: int, *, seq_len: int, dtype: str, end_id: int | None) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM, or of a Qwen3ForCausalLM where query and key heads are normed.

    vocab: rows of the embedding. seq_len: tokens a sample when it was trained, the longest text it has seen.
    """
    scaling = spec.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if scaling is not None:
        rope = {
            "rope_type": "llama3", "rope_theta": spec.rope_theta, "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }  # fmt: skip
    kind = "qwen3" if spec.qk_norm else "llama"
    return {
        "architectures": ["Qwen3ForCausalLM" if spec.qk_norm else "LlamaForCausalLM"],
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": spec.dim,
        "intermediate_size": spec.d_ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope,
        "attention_bias": False,
        **({} if spec.qk_norm else {"mlp_bias": False}),
        "tie_word_embeddings": spec.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def published_weights(spec: ModelSpec, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under their published names; views of ours. A tied head is left out: it is the embedding."""
    theirs: dict[str, Tensor] = {}
    for name, whole in ours.items():
        if name == "head.weight" and spec.tie_embeddings:
            continue
        names = _theirs(name)
        sizes = [shape[0] for shape in _shapes(name, tuple(whole.shape), spec)]
        theirs |= dict(zip(names, torch.split(whole, sizes), strict=True))
    return theirs
