"""What a training job says of its model, its data, its steps, its evaluations and its checkpoints.

Which of these fields a checkpoint binds is in `workloads.contract.config.bound`. Defaults live here and nowhere else;
rules over several fields raise ValueError with the key in front. A part of `workloads.contract.config.job.JobSpec`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workloads.contract.config.base import Config, Fraction, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt


class AttentionSpec(Config):
    kind: Literal["full"] = "full"


class RopeScalingSpec(Config):
    """Llama 3.1's stretch of rotary wavelengths for contexts longer than those of the first training.

    Wavelengths below original_positions / high_freq_factor stay, those above original_positions / low_freq_factor are
    multiplied by `factor`, between them the frequency is interpolated.
    """

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_positions: PositiveInt = 8192

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"model.rope_scaling.high_freq_factor: must be above low_freq_factor {self.low_freq_factor}"
            )
        return self


class ModelSpec(Config):
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    Enough for Llama 3 and Qwen3 (`workloads.models.hf` reads theirs). `qk_norm` and `rope_scaling` came later than the
    rest: a checkpoint or job that does not name them means their defaults.
    """

    dim: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    head_dim: PositiveInt | None = None
    """default dim / heads"""
    ffn_dim: PositiveInt | None = None
    """default 8/3 dim, rounded up to a multiple of 64"""
    vocab: PositiveInt | None = None
    """rows of the embedding; default: the tokenizer's size, rounded up to a multiple of 64 (`padded_vocab`)"""
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScalingSpec | None = None
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation (Qwen3)"""
    norm_eps: PositiveFloat = 1e-5
    tie_embeddings: bool = True
    attention: AttentionSpec = AttentionSpec()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kv_heads: must divide model.heads = {self.heads}")
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"model.heads: must divide model.dim = {self.dim} when model.head_dim is not given")
        if (self.head_dim or self.dim // self.heads) % 2:
            raise ValueError("model.head_dim: must be even (rotary embedding turns pairs)")
        return self

    @property
    def d_head(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def d_ffn(self) -> int:
        return self.ffn_dim or -(-(8 * self.dim // 3) // 64) * 64


TOKENIZER_SIZES = {"byte": 256, "gpt2": 50257}
"""Of the tokenizers that have a name; that of a tokenizer.json is known where the file lies."""
UNKNOWN_SIZE = 65536
"""What an estimate takes for one that it cannot read."""


def padded_vocab(size: int) -> int:
    """The rows of an embedding for `size` ids: a multiple of 64 is what matrix kernels like (50257 -> 50304)."""
    return -(-size // 64) * 64


Source = Literal["stdlib", "text", "synthetic", "jsonl", "parquet", "hub", "prepared"]
Fallback = Literal["cache", "text", "synthetic"]
STREAMS: tuple[Source, ...] = ("jsonl", "parquet", "hub")
"""Sources that are read as they are needed, by virtual shards."""
WITH_PATH: tuple[Source, ...] = ("text", "jsonl", "parquet", "prepared")
MAX_SILENCE_S = 170.0
"""A rank that waits longer for its data is taken for stuck (health)."""


class HubSpec(Config):
    """A data set of the Hugging Face hub: `{repo: HuggingFaceFW/fineweb-edu, config: sample-10BT}`."""

    repo: Annotated[str, Field(min_length=1)]
    """`owner/name`, or a folder on the pod that is laid out like one"""
    config: str | None = None
    """default: the data set's own"""
    split: Annotated[str, Field(min_length=1)] = "train"
    revision: str | None = None
    """a commit, tag or branch; a run goes on with the commit that it began with"""


class DataSpec(Config):
    """What follows `seq_len` came later than the rest: a job or checkpoint without one has its default."""

    source: Source = "stdlib"
    path: str | None = None
    """on the pod. `text`, `jsonl`, `parquet`: a file or a directory; the last two a pattern (`a/*.jsonl`) too.
    `prepared`: a folder that `orch data prepare` made"""
    tokenizer: Annotated[str, Field(min_length=1, max_length=4096)] = "byte"
    """`byte`, `gpt2`, or the path of a tokenizer.json on the pod"""
    seq_len: PositiveInt = 128
    """tokens a sample, the shifted target not counted"""
    dataset: HubSpec | None = None
    """`hub`: which"""
    text_field: Annotated[str, Field(min_length=1)] = "text"
    """`jsonl`, `parquet`, `hub`: the field or column that holds a document's text"""
    shards: Annotated[int, Field(ge=1, le=4096)] = 64
    """`jsonl`, `parquet`, `hub`: virtual shards. A run may be resumed by any number of ranks that divides it"""
    pack: Literal["stream", "documents"] = "stream"
    """both cut the documents, one behind the other, into samples; `documents` keeps attention inside each document"""
    truncate: bool = False
    """`jsonl`, `parquet`, `hub`: only the first seq_len - 1 tokens of a document and its end token"""
    read_timeout_s: Annotated[float, Field(ge=0.1, le=MAX_SILENCE_S)] = 30.0
    """how long one read of a file or of the hub may take"""
    read_tries: Annotated[int, Field(ge=1, le=20)] = 3
    """reads that fail or are late before the source is given up"""
    fallback: list[Fallback] = []
    """`jsonl`, `parquet`, `hub`: what is trained on, loudly, once the source is given up. `cache`: what of the data set
    the hub's cache on the pod holds. Empty: the run fails, and its restarts try the source again"""
    fallback_path: str | None = None
    """fallback `text`: a file or directory of UTF-8 text on the pod"""
    report_docs: PositiveInt | None = None
    """a line in the log every so many documents that a rank has read"""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """`stdlib`, `text`, `synthetic`, `prepared`: the share of the tokens, at their end, that is never trained on, so
    that `eval` can ask how well they are told"""

    @model_validator(mode="after")
    def _path(self) -> Self:
        if (self.source in WITH_PATH) != (self.path is not None):
            if self.path is None:
                raise ValueError(f"data.path: is needed by data.source `{self.source}`")
            raise ValueError(f"data.path: is needed by data.source {', '.join(WITH_PATH)} and by no other")
        if (self.source == "hub") != (self.dataset is not None):
            raise ValueError("data.dataset: is needed by data.source `hub` and by no other")
        return self

    @model_validator(mode="after")
    def _tokenizer(self) -> Self:
        if self.tokenizer not in TOKENIZER_SIZES and not self.tokenizer.endswith(".json"):
            known = ", ".join(TOKENIZER_SIZES)
            raise ValueError(f"data.tokenizer: must be one of {known}, or the path of a tokenizer.json on the pod")
        return self

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.source not in STREAMS and (self.fallback or self.truncate):
            key = "fallback" if self.fallback else "truncate"
            raise ValueError(f"data.{key}: is for sources {', '.join(STREAMS)}")
        if self.source in STREAMS and self.held_out:
            raise ValueError("data.held_out: a stream has no end to hold out; give `eval.path` or `eval.split`")
        if self.truncate and self.seq_len < 2:
            raise ValueError("data.truncate: leaves nothing of a document at data.seq_len 1")
        if len(set(self.fallback)) != len(self.fallback):
            raise ValueError("data.fallback: names a source twice")
        if "cache" in self.fallback and self.source != "hub":
            raise ValueError("data.fallback: `cache` is the hub's; it is for source `hub`")
        if ("text" in self.fallback) != (self.fallback_path is not None):
            raise ValueError("data.fallback_path: is needed by fallback `text` and by no other")
        if self.read_timeout_s * self.read_tries > MAX_SILENCE_S:
            raise ValueError(
                f"data.read_tries: {self.read_tries} tries of {self.read_timeout_s:g} s are more than the "
                f"{MAX_SILENCE_S:g} s after which a rank is taken for stuck"
            )
        return self


def _on_or_off(value: object) -> object:
    """`true` and `false` are what a job file says."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class OnNanSpec(Config):
    """A step whose gradient norm is no finite number changes nothing: weights, moments and counts stay as they were.

    It is told, its batch is not seen again, and the run goes on with the next one: at most `skips` times in a row and
    `total` times in an attempt. One more and the run ends, and is not started again: it would come to the same.
    """

    skips: NonNegInt = 3
    total: NonNegInt = 20


class TrainSpec(Config):
    """What is bound by a checkpoint is in `workloads.train.config`; how it is computed (`compile`, `parallel`, ...) is
    not, so that a run may be resumed faster, on more ranks, or in less memory. Such a change moves the last bits."""

    steps: PositiveInt = 1000
    global_batch: PositiveInt = 16
    """sequences a step over all ranks"""
    micro_batch: PositiveInt | None = None
    """sequences a forward pass on one rank; default: the rank's whole share. Fewer means accumulation"""
    lr: PositiveFloat = 3e-4
    min_lr_ratio: Fraction = 0.1
    warmup_steps: NonNegInt = 0
    weight_decay: NonNegFloat = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device has it, else fp32"""
    seed: NonNegInt = 1234
    deterministic: bool = True
    log_every: PositiveInt = 10
    tensorboard: bool = True
    """scalars of every step in the run's tb/, where the ranks' Python has the package; a step never waits for it"""
    compile: Annotated[Literal["auto", "on", "off", "model", "blocks"], BeforeValidator(_on_or_off)] = "auto"
    """torch.compile: `auto` (on a GPU), `true`, `false`. One rank, or GPUs that NVLink joins: model and loss as
    one graph (`model`); else, and for FSDP2, each block and the loss alone (`blocks`), so that gradients travel while
    backward goes on. The two may be asked for by name. What cannot be compiled runs as it is, and says so"""
    compile_mode: Literal["default", "max-autotune-no-cudagraphs", "aot_eager"] = "default"
    """torch's modes; `aot_eager`: traced, and no code made: to find out what the compiler does wrong"""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """several ranks: `ddp`, a whole model each; `fsdp2`, weights, gradients and moments in shards, 1/ranks of them each
    and more to send. Either reads the other's checkpoints"""
    activation_checkpointing: bool = False
    """keep only the input of each block and compute the rest again in backward: memory of about one block instead of
    all, for about a third more arithmetic"""
    attention: Literal["auto", "flash", "cudnn", "math", "flex"] = "auto"
    """the implementation of attention on a GPU; `auto`: what is fastest there and, where it must be, deterministic.
    `flex`, for data.pack `documents`: what other documents hold is left out instead of masked"""
    loss_chunk: PositiveInt | None = None
    """tokens whose logits exist at one time; default: as many as fit in 2^29 numbers"""
    on_nan: OnNanSpec = OnNanSpec()

    @model_validator(mode="after")
    def _graphs(self) -> Self:
        if self.compile == "model" and self.parallel == "fsdp2":
            raise ValueError("train.compile: `model` is no form for train.parallel `fsdp2`: it is `blocks` or `auto`")
        return self


class EvalSpec(Config):
    """Kind `train`: the loss on text that is not trained on. No checkpoint binds it: training is the same without."""

    every_steps: PositiveInt | None = None
    """evaluate so often, and after the last step; default: never"""
    samples: PositiveInt = 256
    """sequences, the same ones each time"""
    path: Annotated[str, Field(min_length=1)] | None = None
    """on the pod: other files, read as `data.path` is; default: what `data.held_out` keeps apart"""
    split: Annotated[str, Field(min_length=1)] | None = None
    """source `hub`: another split of the same data set"""


class CheckpointSpec(Config):
    """`mode` came later than the rest: a job without it has its default. No checkpoint binds any of these."""

    mode: Literal["async", "sync"] = "async"
    """`async`: a step waits for a copy in the host's memory, a thread of the rank writes and hashes it while training
    goes on; where the copies have no room the saves are `sync`: steps wait until a save is done"""
    every_s: PositiveFloat | None = 600.0
    every_steps: PositiveInt | None = None
    keep: Annotated[int, Field(ge=2)] = 2
    """newest verified checkpoints kept; never fewer than two"""
    keep_every: PositiveInt | None = None
    """checkpoints whose step is a multiple of this are never removed"""
