"""What a training step of a model computes. Pure; called by the trainer (MFU), the benchmark and the estimate.

FLOPs are those of the model, not of the hardware: 6 a token and parameter of a matmul, 12 a token, layer, head
dimension and token seen (Chowdhery et al., 2022, arXiv:2204.02311, appendix B); causality is not subtracted, the
embedding's lookup is not counted, nor is what activation checkpointing computes twice.
"""

from __future__ import annotations

from workloads.contract.config.job import ModelSpec


def matmul_parameters(model: ModelSpec, vocab: int) -> int:
    """Weights that a token is multiplied with: all but the gains and, where it is not tied, the embedding."""
    attention = model.dim * model.d_head * 2 * (model.heads + model.kv_heads)
    return model.layers * (attention + 3 * model.dim * model.d_ffn) + vocab * model.dim


def parameters(model: ModelSpec, vocab: int) -> int:
    """All that is trained."""
    gains = model.layers * (2 * model.dim + (2 * model.d_head if model.qk_norm else 0)) + model.dim
    return matmul_parameters(model, vocab) + gains + (0 if model.tie_embeddings else vocab * model.dim)


def flops_a_token(model: ModelSpec, tokens: int, vocab: int) -> int:
    """Of forward and backward, when `tokens` are seen at once."""
    return 6 * matmul_parameters(model, vocab) + 12 * model.layers * model.heads * model.d_head * tokens
