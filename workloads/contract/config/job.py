"""JobSpec: what a person asks for. One job file is one `JobSpec` in YAML.

Defaults live here and nowhere else. Cross-field rules raise ValueError with the key in front
(`train.warmup_steps: ...`); `orchestrator.jobs.jobfile` turns them and pydantic's own errors into blocks with file
and line. Fields that orch does not act on yet are refused there by name, not accepted in silence.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from workloads.contract.config.base import (
    Config,
    Fraction,
    Name,
    NonNegFloat,
    NonNegInt,
    PositiveFloat,
    PositiveInt,
)


class Resources(Config):
    ranks: Literal["auto"] | PositiveInt = "auto"
    """`auto`: every GPU of the pods, else 1."""
    gpus_per_rank: Literal["auto"] | NonNegInt = "auto"
    """`auto`: 1 on pods with GPUs, else 0."""
    cpus_per_rank: PositiveInt = 1


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
    """default: the tokenizer's size"""
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


class DataSpec(Config):
    source: Literal["stdlib", "text", "synthetic"] = "stdlib"
    path: str | None = None
    """`text`: a file or directory of UTF-8 text on the pod"""
    tokenizer: Literal["byte"] = "byte"
    seq_len: PositiveInt = 128
    """tokens a sample, the shifted target not counted"""

    @model_validator(mode="after")
    def _path(self) -> Self:
        if (self.source == "text") != (self.path is not None):
            raise ValueError("data.path: is needed by source `text` and by no other")
        return self


class TrainSpec(Config):
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


class CheckpointSpec(Config):
    every_s: PositiveFloat | None = 600.0
    every_steps: PositiveInt | None = None
    keep: Annotated[int, Field(ge=2)] = 2
    """newest verified checkpoints kept; never fewer than two"""
    keep_every: PositiveInt | None = None
    """checkpoints whose step is a multiple of this are never removed"""


class HaltSpec(Config):
    grace_s: PositiveFloat = 600.0
    """seconds from the request to SIGTERM; SIGKILL follows 30 s later"""


class RestartSpec(Config):
    max: NonNegInt = 3
    backoff_s: Annotated[list[NonNegFloat], Field(min_length=1)] = [0, 5, 30]


class RuntimeSpec(Config):
    process_group_timeout_s: PositiveFloat = 300.0
    omp_threads: PositiveInt | None = None
    """OMP_NUM_THREADS of a rank; default resources.cpus_per_rank"""


Suite = Literal["kv-decode", "decoupled"]
SUITES: tuple[Suite, ...] = get_args(Suite)
"""Families of kernels that are held to their reference, in the order in which they are."""


class ParitySpec(Config):
    """Kind `parity`: every cell of these suites, Triton against its reference, one rank on one device."""

    suites: Annotated[list[Suite], Field(min_length=1)] = list(SUITES)
    full: bool = False
    """the whole matrix instead of the one that an interpreter on a CPU finishes in minutes"""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: the pod's GPU, else Triton's interpreter on the CPU"""
    seed: NonNegInt = 0
    only: str | None = None
    """the one cell with this id"""

    @model_validator(mode="after")
    def _suites(self) -> Self:
        if len(set(self.suites)) != len(self.suites):
            raise ValueError("parity.suites: names a suite twice")
        return self


BenchSuite = Literal["bandwidth", "kv-decode", "decoupled", "device", "train-step", "comm"]
BENCH_SUITES: tuple[BenchSuite, ...] = get_args(BenchSuite)
"""What a benchmark measures, in the order in which it does."""
KERNEL_BENCHES: tuple[BenchSuite, ...] = BENCH_SUITES[:3]
"""The suites that are measured when none is named: memory, and our kernels beside their peers."""


class BenchSpec(Config):
    """Kind `bench`: every case of these suites, checked and then timed, one rank."""

    suites: Annotated[list[BenchSuite], Field(min_length=1)] = list(KERNEL_BENCHES)
    quick: bool = False
    """few cases and replays: a look, no figures"""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: the pod's GPU, else the CPU, where tiny cases test the bench itself"""
    seed: NonNegInt = 0
    write_thresholds: bool = False
    """install what was measured where the kernels of the pod's processes look for it"""

    @model_validator(mode="after")
    def _suites(self) -> Self:
        if len(set(self.suites)) != len(self.suites):
            raise ValueError("bench.suites: names a suite twice")
        return self


Prompt = Annotated[str, Field(min_length=1)]


class DecodeSpec(Config):
    """Kind `decode`: answer every prompt with a model, turn by turn on its cache, one rank."""

    weights: Annotated[str, Field(min_length=1)] | None = None
    """on the pod: a folder as published (config.json, *.safetensors), a checkpoint, or a run id; else random"""
    prompts: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Prompt | Annotated[list[Prompt], Field(min_length=1)]], Field(min_length=1)]
    ) = ["Once upon a time"]
    """conversations, each a prompt or a list of turns; or a file of them on the pod (`workloads.contract.prompts`)"""
    max_new_tokens: PositiveInt = 64
    """tokens of a reply, at most"""
    temperature: NonNegFloat = 0.0
    """0: the likeliest token"""
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: NonNegInt = 0
    backend: Literal["full", "cache", "decoupled"] = "cache"
    """`full`: no cache, every token reads the whole text again; `decoupled`: a cache in the formats of kv_policy"""
    kv_policy: str | None = None
    """`ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128`: see kernels/decoupled/README.md"""
    repeats: PositiveInt = 1
    """how often each reply is made, to be timed; the last one is kept"""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: that of the weights, but bf16 for fp32 on a GPU, and fp32 on a CPU"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.backend == "decoupled") != (self.kv_policy is not None):
            raise ValueError("decode.kv_policy: is needed by backend `decoupled` and by no other")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("decode.temperature: top_k and top_p say what is drawn from; 0 draws nothing")
        return self


Requirement = Literal["parity"]


class JobSpec(Config):
    """`parity`, `bench`, `require` came later than the rest: a run.json without them means their defaults."""

    name: Name
    kind: Literal["train", "command", "parity", "bench", "decode"] = "train"
    command: Annotated[list[str], Field(min_length=1)] | None = None
    """`command`: argv of every rank, passed whole"""
    workdir: str | None = None
    """`command`: where it runs; default: the directory `orch launch` was typed in"""
    pods: Annotated[list[Name], Field(min_length=1)] = ["local"]
    resources: Resources = Resources()
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    secrets: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = []
    """names of environment variables of the ranks, taken from the operator's environment or secrets.yaml"""
    python: str | None = None
    """interpreter of the ranks on the pods; default: the pod's"""
    requirements: str | None = None
    """pods over SSH: a requirements.txt or pyproject.toml for the ranks' environment; default: orch's own"""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    parity: ParitySpec = ParitySpec()
    bench: BenchSpec = BenchSpec()
    decode: DecodeSpec = DecodeSpec()
    require: list[Requirement] = []
    """`parity`: launched only where the kernels were found right: this code on this GPU, driver, torch and triton"""
    runtime: RuntimeSpec = RuntimeSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    halt: HaltSpec = HaltSpec()
    restart: RestartSpec = RestartSpec()

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if (self.kind == "command") != (self.command is not None):
            raise ValueError("command: is needed by kind `command` and by no other")
        if self.workdir is not None and self.kind != "command":
            raise ValueError("workdir: is for kind `command`")
        if self.python is not None and self.requirements is not None:
            raise ValueError("requirements: `python` names an environment that exists; give one of the two")
        if both := sorted(set(self.secrets) & set(self.env)):
            raise ValueError(f"secrets: {both[0]} is in `env` too")
        if len(set(self.secrets)) != len(self.secrets):
            raise ValueError("secrets: names one twice")
        if len(set(self.pods)) != len(self.pods):
            raise ValueError("pods: names a pod twice")
        if self.kind == "parity" and self.require:
            raise ValueError("require: has no effect on kind `parity`, which is what it asks for")
        return self

    @property
    def device(self) -> Literal["auto", "cuda", "cpu"] | None:
        """What a kind of one rank asks to run on; None for the kinds that have as many ranks as there are."""
        match self.kind:
            case "parity":
                return self.parity.device
            case "bench":
                return self.bench.device
            case "decode":
                return self.decode.device
            case _:
                return None
