"""Rules of a job that need more than one part of it, beyond those of the models. Pure.

Each broken rule is a `Broken`; `orchestrator.jobs.jobfile` and the plan put file and line to it.
"""

from __future__ import annotations

from pods.specwords import Broken
from workloads.contract.config.job import STREAMS, TOKENIZER_SIZES, JobSpec, padded_vocab

RESERVED_ENV = frozenset(
    {
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
        "PYTHONUNBUFFERED",
    }
)  # fmt: skip
FREE_ENV = frozenset({"ORCH_DUMP_SIGNAL"})
ONLY_FOR = {
    "model": ("train", "decode"), "data": ("train", "data"), "train": ("train", "data"), "parity": ("parity",),
    "bench": ("bench",), "decode": ("decode",), "task": ("data",),
}  # fmt: skip
"""Parts of a job that only these kinds have."""

LATER = {
    "resources.min_ranks": "runs with fewer ranks than asked for",
    "resources.spares": "spare ranks",
    "checkpoint.replicate": "copies of checkpoints on other pods",
    "model.attention.kind=nsa": "native sparse attention",
    "model.attention.kind=decoupled": "decoupled attention",
}
"""Keys and values that the design names and this version does not have."""


def interval_beyond_end(spec: JobSpec) -> bool:
    every = spec.checkpoint.every_steps
    return spec.kind == "train" and every is not None and every > spec.train.steps


def warmup_beyond_end(spec: JobSpec) -> bool:
    return spec.kind == "train" and spec.train.warmup_steps >= spec.train.steps


def broken_rules(spec: JobSpec, *, shortened: bool = False) -> list[Broken]:
    """Everything that can be told before pods are looked at.

    `shortened`: train.steps came from the command line. A run made short to try it keeps the rest of its recipe.
    """
    found = _environment(spec) + _no_effect(spec)
    if spec.device is not None:
        found += _one_rank(spec)
    if spec.kind == "decode":
        found += _decode(spec)
    if spec.kind != "train":
        return found
    steps = spec.train.steps
    if warmup_beyond_end(spec) and not shortened:
        found.append(
            Broken(
                "train.warmup_steps",
                "train.warmup_steps is not below train.steps: train.lr would never be reached",
                f"below train.steps = {steps}",
                f"warmup_steps: {steps // 10}",
                spec.train.warmup_steps,
            )
        )
    if interval_beyond_end(spec) and not shortened:
        found.append(
            Broken(
                "checkpoint.every_steps",
                "checkpoint.every_steps is larger than train.steps: it would never be reached",
                f"at most train.steps = {steps}",
                f"every_steps: {max(1, steps // 10)}   (or remove the key)",
                spec.checkpoint.every_steps,
            )
        )
    found += _vocab(spec.model.vocab, spec.data.tokenizer)
    if isinstance(spec.resources.ranks, int):
        found += batch_rules(spec, spec.resources.ranks)
    return found


def batch_rules(spec: JobSpec, ranks: int) -> list[Broken]:
    """Global batch and virtual shards must divide evenly over `ranks`, and a rank's share over its micro batches."""
    batch, micro = spec.train.global_batch, spec.train.micro_batch
    if batch % ranks:
        low, high = batch // ranks * ranks, (batch // ranks + 1) * ranks
        return [
            Broken(
                "train.global_batch",
                "train.global_batch does not divide over the ranks",
                f"a multiple of {ranks} (ranks)",
                f"global_batch: {high}" + (f"   (or {low})" if low else ""),
                batch,
            )
        ]
    shards = spec.data.shards
    if spec.data.source in STREAMS and shards % ranks:
        what, more = "data.shards does not divide over the ranks", (shards // ranks + 1) * ranks
        return [Broken("data.shards", what, f"a multiple of {ranks} (ranks)", f"shards: {more}", shards)]
    share = batch // ranks
    if micro is not None and share % micro:
        best = max(m for m in range(1, min(micro, share) + 1) if share % m == 0)
        return [
            Broken(
                "train.micro_batch",
                "train.micro_batch does not divide a rank's share of the batch",
                f"a divisor of {share} (train.global_batch {batch} / {ranks} ranks)",
                f"micro_batch: {best}",
                micro,
            )
        ]
    return []


def _environment(spec: JobSpec) -> list[Broken]:
    found = []
    for i, key in enumerate(spec.secrets):
        if key in RESERVED_ENV or (key.startswith(("ORCH_", "RAY_")) and key not in FREE_ENV):
            found.append(Broken(f"secrets[{i}]", f"{key} is set, or kept out, by orch", fix="remove it", value=key))
    for key, value in spec.env.items():
        path = f"env.{key}"
        if key == "CUDA_VISIBLE_DEVICES" and spec.resources.gpus_per_rank != 0:
            fix = "remove the key; see resources.gpus_per_rank"
            found.append(Broken(path, f"{path} is set by orch from the GPUs it leases", fix=fix, value=value))
        elif key in RESERVED_ENV or (key.startswith(("ORCH_", "RAY_")) and key not in FREE_ENV):
            found.append(Broken(path, f"{path} is set, or kept out, by orch", fix="remove the key", value=value))
        elif "\0" in value:
            found.append(Broken(path, f"{path} holds a NUL", fix="remove it"))
    return found


def _no_effect(spec: JobSpec) -> list[Broken]:
    return [
        Broken(part, f"{part} has no effect on kind `{spec.kind}`", f"kind: {' or '.join(kinds)}", f"remove `{part}`")
        for part, kinds in ONLY_FOR.items()
        if spec.kind not in kinds and part in spec.model_fields_set
    ]


def _decode(spec: JobSpec) -> list[Broken]:
    found, vocab = [], spec.model.vocab
    if spec.decode.weights is not None and "model" in spec.model_fields_set:
        what = "model has no effect beside decode.weights, which bring their own"
        found.append(Broken("model", what, "random weights, or `weights`", "remove `model`"))
    else:
        found += _vocab(vocab, "byte")
    return found


def _vocab(vocab: int | None, tokenizer: str) -> list[Broken]:
    size = TOKENIZER_SIZES.get(tokenizer, 1)
    if vocab is None or vocab >= size:
        return []
    expected = f"at least {size}, the size of the {tokenizer} tokenizer"
    return [Broken("model.vocab", "model.vocab is too small", expected, f"vocab: {padded_vocab(size)}", vocab)]


def _one_rank(spec: JobSpec) -> list[Broken]:
    """Such a run is one rank on one device; of a benchmark, suite `comm` may have several."""
    asked, kind, device = spec.resources, spec.kind, spec.device
    found = []
    if asked.ranks not in ("auto", 1):
        what = f"a {kind} run is one rank"
        found.append(Broken("resources.ranks", what, "1", "ranks: 1   (or remove the key)", asked.ranks))
    most = 0 if device == "cpu" else None if kind == "bench" else 1
    if asked.gpus_per_rank != "auto" and most is not None and asked.gpus_per_rank > most:
        what = f"a {kind} run on device `{device}` takes at most {most} GPU{'s' * (most != 1)}"
        found.append(Broken("resources.gpus_per_rank", what, f"at most {most}", "remove the key", asked.gpus_per_rank))
    if asked.gpus_per_rank == 0 and device == "cuda":
        what = f"{kind}.device is cuda, and resources.gpus_per_rank leaves no GPU"
        found.append(Broken(f"{kind}.device", what, "device: cpu, or a GPU", "device: cpu", "cuda"))
    return found
