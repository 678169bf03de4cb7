"""Put a trainer together: config, machine, data, model, optimizer, checkpoint. Called by `workloads.train.__main__`."""

from __future__ import annotations

import torch

from workloads.contract.config.bound import bound_fields
from workloads.contract.config.job import JobSpec, ModelSpec, padded_vocab
from workloads.contract.errors import SpecError
from workloads.contract.healthtable import PHASE_LIMITS_S
from workloads.contract.jobchanges import words
from workloads.contract.states import Phase
from workloads.data.batches import BatchPlan
from workloads.data.feeds import held_out, open_feed
from workloads.data.prefetch import prefetcher
from workloads.data.stream import Batch, Feed
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import PATIENCE_S, Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance, config_hash
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction
from workloads.runtime.retention import Retention
from workloads.runtime.run import Run
from workloads.runtime.shards import ShardStates
from workloads.runtime.state import TorchState
from workloads.train import config, machine, ready
from workloads.train.books import Books, StepFacts, newest_evaluation
from workloads.train.evaluate import Evaluator
from workloads.train.loop import Lane, Trainer
from workloads.train.optim import make_optimizer
from workloads.train.pin import pinned
from workloads.train.resume import resume

MAX_EVAL_ROWS = 64
"""a forward pass without gradients, where the job does not say what fits"""

MAX_PATIENCE_S = 86_400.0
"""what a job's own limits of phases may make of the time that ranks wait for each other"""


def build(env: RankEnv, run: Run) -> Trainer:
    """Everything loaded and resumed, ready for the next step. OrchError when the run is refused."""
    cfg = config.load(env)
    job, bound = cfg.job, bound_fields(cfg.job)
    if job.train.global_batch < env.world_size:
        raise SpecError(
            "E-TRAIN-008",
            f"train.global_batch: {job.train.global_batch} sequences cannot be shared by {env.world_size} ranks",
            fix=f"set train.global_batch to {env.world_size} or more",
        )
    if env.rank == 0:
        for told in words(cfg.changes):
            print(f"job: {told}, changed by a resume", flush=True)
    place = machine.set_up(env, job, cfg.gpus_per_rank)
    if env.rank == 0:
        machine.write_env(env, place)
    timeout_s = job.runtime.process_group_timeout_s
    agreement = Agreement(_patience_s(job))
    run.phase(Phase.LOADING)
    data = pinned(job.data, env, agreement)
    feed = open_feed(data, job.train, rank=env.rank, world_size=env.world_size)
    with torch.device(place.device):
        bare = Decoder(job.model, _rows(job.model, feed))
    model = ready.wrapped(bare, place, job)
    optimizer = make_optimizer(bare, job.train)
    provenance = Provenance(config_hash(bound), cfg.code_hash, machine.versions())
    retention = Retention(job.checkpoint.keep, job.checkpoint.keep_every)
    shards = ShardStates(env.rank)
    state = TorchState(env.rank, agreement, bare, optimizer, shards)
    checkpointer = Checkpointer(env, agreement, state, provenance, retention)
    position = resume(checkpointer, bound, feed.fingerprint)
    ready.warmed(env, run, job, place, bare, model, agreement, documents=data.pack == "documents")
    evaluator = _evaluator(env, job, held_out(feed, data, job.eval, job.train), agreement)
    reduction: StepReduction[StepFacts] = StepReduction(len(Lane), device=str(place.device), timeout_s=timeout_s)
    return Trainer(
        env=env, run=run, job=job, machine=place, model=model, optimizer=optimizer,
        data=prefetcher(feed, position.feed, data, place.device.index if place.cuda else None), shards=shards,
        checkpointer=checkpointer, reduction=reduction,
        books=Books(env, job.train.log_every, job.train.steps, evaluates=evaluator is not None), bound=bound,
        fingerprint=feed.fingerprint, position=position,
        evaluator=evaluator, epoch_samples=feed.windows if isinstance(feed, BatchPlan) else None,
        mfu_a_token=ready.mfu_a_token(job, bare.vocab, place, env.world_size),
    )  # fmt: skip


def _patience_s(job: JobSpec) -> float:
    """How long ranks wait for each other beside the steps: no shorter than the watchdog lets any phase take."""
    rule = job.health.rules.phase_over
    phases_s = max({**PHASE_LIMITS_S, **rule.limits}.values()) * rule.act_factor
    return max(PATIENCE_S, job.runtime.process_group_timeout_s, min(phases_s, MAX_PATIENCE_S))


def _evaluator(env: RankEnv, job: JobSpec, batch: Batch | None, agreement: Agreement) -> Evaluator | None:
    """Collective, behind the resume, which takes back evaluations of steps that are made again."""
    if batch is None or job.eval.every_steps is None:
        return None
    micro = min(job.train.micro_batch or MAX_EVAL_ROWS, -(-job.train.global_batch // env.world_size))
    newest = agreement.from_rank0(newest_evaluation(env) if env.rank == 0 else None)
    return Evaluator(
        batch, every=job.eval.every_steps, rank=env.rank, world_size=env.world_size, micro=micro, newest=newest
    )


def _rows(model: ModelSpec, feed: Feed) -> int:
    """Of the embedding, where the job does not say. SpecError when it says fewer than there are tokens."""
    if model.vocab is not None and model.vocab < feed.vocab:
        raise SpecError(
            "E-TRAIN-024", f"model.vocab: the tokens of {feed.name} are below {feed.vocab}", value=model.vocab,
            expected=f"at least {feed.vocab}", fix=f"vocab: {padded_vocab(feed.vocab)}   (or remove the key)",
        )  # fmt: skip
    return padded_vocab(feed.vocab)
