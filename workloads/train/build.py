"""Put a trainer together: config, machine, data, model, optimizer, checkpoint. Called by `workloads.train.__main__`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.errors import SpecError
from workloads.contract.states import Phase
from workloads.data.batches import BatchPlan
from workloads.data.prefetch import Prefetcher
from workloads.data.sources import load_corpus
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance, config_hash
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction
from workloads.runtime.retention import Retention
from workloads.runtime.run import Run
from workloads.train import config, machine
from workloads.train.books import Books, StepFacts
from workloads.train.loop import Lane, Trainer
from workloads.train.optim import make_optimizer
from workloads.train.resume import resume

BYTE_VOCAB = 256


def wrap(model: nn.Module, env: RankEnv, place: machine.Machine, deterministic: bool) -> nn.Module:
    """DDP when there are several ranks."""
    if env.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[place.device] if place.cuda else None,
        gradient_as_bucket_view=True,
        # else DDP rearranges its buckets after the first step, and with three or more ranks the order of a sum, and so
        # its last bit, would differ between a resumed run and an unbroken one
        find_unused_parameters=deterministic and env.world_size > 2,
    )


def build(env: RankEnv, run: Run) -> Trainer:
    """Everything loaded and resumed, ready for the next step. OrchError when the run is refused."""
    cfg = config.load(env)
    job, bound = cfg.job, config.bound_fields(cfg.job)
    if job.train.global_batch < env.world_size:
        raise SpecError(
            "E-TRAIN-008",
            f"train.global_batch: {job.train.global_batch} sequences cannot be shared by {env.world_size} ranks",
            fix=f"set train.global_batch to {env.world_size} or more",
        )
    place = machine.set_up(env, job, cfg.gpus_per_rank)
    if env.rank == 0:
        machine.write_env(env, place)
    timeout_s = job.runtime.process_group_timeout_s
    agreement = Agreement(timeout_s)
    run.phase(Phase.LOADING)
    corpus = load_corpus(job.data, job.train.seed)
    plan = BatchPlan(
        corpus, seq_len=job.data.seq_len, global_batch=job.train.global_batch,
        rank=env.rank, world_size=env.world_size, seed=job.train.seed,
    )  # fmt: skip
    with torch.device(place.device):
        bare = Decoder(job.model, BYTE_VOCAB)
    model = wrap(bare, env, place, job.train.deterministic)
    optimizer = make_optimizer(bare, job.train)
    provenance = Provenance(config_hash(bound), cfg.code_hash, machine.versions())
    retention = Retention(job.checkpoint.keep, job.checkpoint.keep_every)
    checkpointer = Checkpointer(env, agreement, bare, optimizer, provenance, retention)
    position = resume(env, agreement, checkpointer, bound, corpus.fingerprint)
    reduction: StepReduction[StepFacts] = StepReduction(len(Lane), device=str(place.device), timeout_s=timeout_s)
    return Trainer(
        env=env, run=run, job=job, machine=place, model=model, optimizer=optimizer,
        data=Prefetcher(plan.batch, position.samples), checkpointer=checkpointer, reduction=reduction,
        books=Books(env, job.train.log_every, job.train.steps), bound=bound,
        fingerprint=corpus.fingerprint, position=position,
    )  # fmt: skip
