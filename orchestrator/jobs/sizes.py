"""How large a training job is: parameters, tokens a step, disk for its checkpoints. Pure estimates for the plan."""

from __future__ import annotations

from workloads.contract.config.job import TOKENIZER_SIZES, UNKNOWN_SIZE, JobSpec, ModelSpec, padded_vocab

STATE_BYTES = 12
"""A parameter in a checkpoint: fp32 weight and two moments of AdamW."""


def parameters(model: ModelSpec, tokenizer: str = "byte") -> int:
    vocab = model.vocab or padded_vocab(TOKENIZER_SIZES.get(tokenizer, UNKNOWN_SIZE))
    attention = model.dim * model.d_head * 2 * (model.heads + model.kv_heads)
    norms = 2 * model.dim + (2 * model.d_head if model.qk_norm else 0)
    block = attention + 3 * model.dim * model.d_ffn + norms
    tables = vocab * model.dim * (1 if model.tie_embeddings else 2)
    return tables + model.layers * block + model.dim


def tokens_a_step(spec: JobSpec) -> int:
    return spec.train.global_batch * spec.data.seq_len


def checkpoint_mib(spec: JobSpec) -> int:
    """One of them; at least 1."""
    return max(1, (parameters(spec.model, spec.data.tokenizer) * STATE_BYTES) >> 20)


def checkpoints_mib(spec: JobSpec) -> int:
    """Those kept and the one being written; periodically kept ones included."""
    count = spec.checkpoint.keep + 1
    if spec.checkpoint.keep_every:
        count += spec.train.steps // spec.checkpoint.keep_every
    return (parameters(spec.model, spec.data.tokenizer) * STATE_BYTES * count) >> 20


def copies_mib(spec: JobSpec, ranks: int) -> int:
    """Of the pod's memory, while checkpoints are written beside training; replicas hold a whole copy each."""
    each = 1 if spec.train.parallel == "fsdp2" else ranks
    return (parameters(spec.model, spec.data.tokenizer) * STATE_BYTES * each) >> 20


def short(count: int) -> str:
    """1234567 as `1.2M`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
