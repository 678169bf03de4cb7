"""Make a model ready to be trained as the job says: attention, checkpointing, ranks, compiler. Called by `build`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from workloads.bench.healthy import model_of
from workloads.contract.config.job import JobSpec
from workloads.contract.flops import flops_a_token
from workloads.contract.states import Phase
from workloads.models.decoder import Decoder
from workloads.runtime import rng
from workloads.runtime.agreement import Agreement
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.run import Run
from workloads.train import attention, compiling, machine, parallel
from workloads.train.machine import Machine


def wrapped(bare: Decoder, place: Machine, job: JobSpec) -> nn.Module:
    """What is called at every step. Before the optimizer is made: in shards the parameters are others."""
    attention.choose(job.train, place)
    bare.loss_chunk = job.train.loss_chunk
    bare.flex = job.train.attention == "flex"
    bare.recompute(job.train.activation_checkpointing)
    bare.rope.reserve(job.data.seq_len, place.device)
    return parallel.wrap(bare, place, job.train)


def warmed(env: RankEnv, run: Run, job: JobSpec, place: Machine, bare: Decoder, model: nn.Module, agreement: Agreement,
           *, documents: bool) -> None:  # fmt: skip
    """Say what computes attention, and compile where the job wants it; `env.json` says both. Collective.

    Random generators are as they were: a resumed run and an unbroken one go on alike.
    """
    backend = attention.audit(job.model, job.data.seq_len, job.train, place, documents=documents)
    compiled = "no"
    if compiling.wanted(job.train, place):
        run.phase(Phase.COMPILING)
        before = rng.capture()
        place = replace(place, linked=all(agreement.gather(place.linked)))
        trouble = compiling.compile_now(
            bare, model, job.train, place, shapes=_shapes(env, job), documents=documents, agree=agreement.gather
        )
        rng.restore(before)
        form = "model" if compiling.as_one(bare, model, job.train, place) else "blocks"
        compiled = form if trouble is None else f"failed: {trouble}"
    if env.rank == 0:
        how = {"attention": backend, "compiled": compiled, "parallel": _parallel(env, job)}
        print(", ".join(f"{k}: {v}" for k, v in how.items()), flush=True)
        machine.write_env(env, place, **how)


def _parallel(env: RankEnv, job: JobSpec) -> str:
    return "none" if env.world_size == 1 else job.train.parallel


def _shapes(env: RankEnv, job: JobSpec) -> list[tuple[int, int]]:
    """(rows, tokens) of every forward pass of this rank: whole micro batches, and what is left over."""
    rows = len(range(env.rank, job.train.global_batch, env.world_size))
    micro = min(job.train.micro_batch or rows, rows)
    return [(n, job.data.seq_len) for n in dict.fromkeys((micro, rows % micro)) if n]


def mfu_a_token(job: JobSpec, vocab: int, place: Machine, world: int) -> float | None:
    """The share of the GPUs' peak that one token a second over all ranks makes; None where no data sheet is known."""
    if not (place.cuda and place.bf16):
        return None
    model = model_of(torch.cuda.get_device_name(place.device))
    if model is None:
        return None
    return flops_a_token(job.model, job.data.seq_len, vocab) / (model.bf16 * 1e12 * world)
