"""What a training job takes: GPU memory, tokens/s, time, disk. Pure arithmetic over the job and data sheets; no torch.

Memory is counted for our decoder as it is trained: compiled, bf16 with fp32 masters, the loss without the logits of a
whole batch. What a graph compiler keeps is its own choice, so that the whole is right to a fifth;
`orchestrator.runs.estimaterun` puts what a run really took beside it. Called by `orch estimate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.jobs.sizes import STATE_BYTES, checkpoints_mib, short, tokens_a_step
from orchestrator.runs.render import duration, table
from workloads.contract.config.job import TOKENIZER_SIZES, UNKNOWN_SIZE, JobSpec, padded_vocab
from workloads.contract.flops import flops_a_token, parameters
from workloads.contract.gpusheets import SHEETS, Sheet

GIB = 1 << 30
MFU = 0.42
"""of models of 100 M to 1 G parameters with long batches (measured: 124 M on an H200, 0.435)"""
RECOMPUTED = 0.77
"""of the speed, with activation checkpointing: 6 FLOPs a parameter become 8"""
DETERMINISTIC = 0.9
LAUNCHES_S, STEP_S = 150e-6, 1.5e-3
"""of the host: a layer forward and backward, and the rest of a step. Small models are as slow as these"""
SCALING = {"ddp": 0.95, "fsdp2": 0.92}
CONTEXT_BYTES = 1 << 29
"""of CUDA, cuBLAS and NCCL: nobody's tensors"""
MOST_LOGITS = 1 << 29
"""as `workloads.models.loss`"""
SLACK = 1.08
"""what an allocator holds beyond what is used"""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the worst moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    other: int

    @property
    def total(self) -> int:
        return (
            int((self.weights + self.gradients + self.optimizer + self.activations + self.logits) * SLACK) + self.other
        )

    def as_json(self) -> dict[str, float]:
        names = ("weights", "gradients", "optimizer", "activations", "logits", "other", "total")
        return {f"{name}_gib": round(getattr(self, name) / GIB, 3) for name in names}


@dataclass(frozen=True)
class OnGpu:
    """`toks_per_s` over all ranks; None where it does not fit."""

    sheet: Sheet
    fits: bool
    toks_per_s: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "gpu": self.sheet.name, "fits": self.fits, "memory_gib": self.sheet.memory_gib,
            "toks_per_s": round(self.toks_per_s), "hours": round(self.seconds / 3600, 2),
        }  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    job: JobSpec
    ranks: int
    vocab: int
    parameters: int
    memory: Memory
    gpus: tuple[OnGpu, ...]
    checkpoint_bytes: int
    disk_mib: int

    @property
    def tokens(self) -> int:
        return tokens_a_step(self.job) * self.job.train.steps

    def as_json(self) -> dict[str, Any]:
        return {
            "v": 1, "name": self.job.name, "ranks": self.ranks, "parameters": self.parameters, "vocab": self.vocab,
            "tokens_a_step": tokens_a_step(self.job), "steps": self.job.train.steps, "tokens": self.tokens,
            "memory": self.memory.as_json(), "gpus": [g.as_json() for g in self.gpus],
            "checkpoint_mib": round(self.checkpoint_bytes / 2**20, 1), "disk_mib": self.disk_mib,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a person."""
        m, job = self.memory, self.job
        told = [
            f"{job.name}: {short(self.parameters)} parameters, {short(tokens_a_step(job))} tokens a step, "
            f"{short(self.tokens)} in {job.train.steps} steps, {self.ranks} rank{'s' * (self.ranks != 1)}",
            "",
            f"memory of one GPU   {m.total / GIB:.1f} GiB (right to a fifth)",
        ]
        parts = (
            ("weights", m.weights), ("gradients", m.gradients), ("optimizer", m.optimizer),
            ("activations", m.activations), ("logits and their gradients", m.logits), ("CUDA and NCCL", m.other),
        )  # fmt: skip
        told += [f"  {name:<28} {size / GIB:6.2f}" for name, size in parts]
        size = self.checkpoint_bytes / 2**20
        told += [
            "",
            f"a checkpoint        {size:.0f} MiB; {self.disk_mib / 1024:.1f} GiB of disk for all that are kept",
            "",
        ]
        rows = [
            (g.sheet.short, f"{g.sheet.memory_gib:.0f} GiB", "yes" if g.fits else "NO", f"{g.toks_per_s:.0f}",
             duration(g.seconds))
            for g in self.gpus
        ]  # fmt: skip
        return [*told, *table(("GPU", "HAS", "FITS", "TOKENS/S", "ALL STEPS"), rows, right=(1, 3)).split("\n")]


def estimate(
    job: JobSpec, *, ranks: int | None = None, sheets: Sequence[Sheet] = SHEETS, vocab: int | None = None
) -> Estimate:
    """`ranks`: of the run; default: the job's, and 1 for `auto`. `vocab`: rows of the embedding, where it is known."""
    asked = job.resources.ranks
    world = ranks or (asked if isinstance(asked, int) else 1)
    rows = job.model.vocab or vocab or padded_vocab(TOKENIZER_SIZES.get(job.data.tokenizer, UNKNOWN_SIZE))
    count = parameters(job.model, rows)
    memory = _memory(job, world, rows, count)
    return Estimate(
        job, world, rows, count, memory, tuple(_on(s, job, world, rows, memory) for s in sheets),
        count * STATE_BYTES, checkpoints_mib(job),
    )  # fmt: skip


def _memory(job: JobSpec, world: int, vocab: int, count: int) -> Memory:
    model, train = job.model, job.train
    wide = 4 if train.dtype == "fp32" else 2
    share = world if train.parallel == "fsdp2" else 1
    rows = min(train.micro_batch or train.global_batch, -(-train.global_batch // world))
    tokens = rows * job.data.seq_len
    narrow = 0 if wide == 4 else 2 * count  # copies of the weights in bf16, kept for backward
    heads, keys = model.heads * model.d_head, model.kv_heads * model.d_head
    # kept of a layer for backward: its input, the input between, both normed; q, k, v; what attention gave, and the
    # logarithms of its sums; gate, value and their product
    kept = wide * (4 * model.dim + 2 * heads + 2 * keys + 3 * model.d_ffn) + 4 * model.heads
    layers = model.layers * wide * model.dim + kept if train.activation_checkpointing else model.layers * kept
    limit = train.loss_chunk or max(128, MOST_LOGITS // vocab)
    chunk = min(tokens, limit)
    logits = chunk * vocab * 2 * wide + (4 * vocab * model.dim if chunk < tokens else 0)
    return Memory(
        weights=4 * count // share + narrow, gradients=4 * count // share, optimizer=8 * count // share,
        activations=tokens * layers, logits=logits, other=CONTEXT_BYTES,
    )  # fmt: skip


def _on(sheet: Sheet, job: JobSpec, world: int, vocab: int, memory: Memory) -> OnGpu:
    train = job.train
    rate = world * MFU * sheet.bf16 * 1e12 / flops_a_token(job.model, job.data.seq_len, vocab)
    rate *= SCALING[train.parallel] if world > 1 else 1.0
    rate *= RECOMPUTED if train.activation_checkpointing else 1.0
    rate *= DETERMINISTIC if train.deterministic else 1.0
    share = -(-train.global_batch // world)
    passes = -(-share // min(train.micro_batch or share, share))
    step_s = max(tokens_a_step(job) / rate, passes * job.model.layers * LAUNCHES_S + STEP_S)
    rate = tokens_a_step(job) / step_s
    return OnGpu(sheet, memory.total / GIB <= sheet.memory_gib, rate, step_s * train.steps)
