"""JobSpec: what a person asks for. One job file is one `JobSpec` in YAML.

Defaults live here and nowhere else. Cross-field rules raise ValueError with the key in front
(`train.warmup_steps: ...`); `orchestrator.jobs.jobfile` turns them and pydantic's own errors into blocks with file
and line. Fields that orch does not act on yet are refused there by name, not accepted in silence. What a training says
is in `training`, what the other kinds are asked in `kinds`; both are to be had from here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workloads.contract.config.base import Config, Name, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt
from workloads.contract.config.health import HealthSpec
from workloads.contract.config.kinds import (
    BENCH_SUITES,
    KERNEL_BENCHES,
    SUITES,
    BenchSpec,
    DecodeSpec,
    ParitySpec,
    TaskSpec,
)
from workloads.contract.config.training import (
    STREAMS,
    TOKENIZER_SIZES,
    UNKNOWN_SIZE,
    WITH_PATH,
    CheckpointSpec,
    DataSpec,
    EvalSpec,
    HubSpec,
    ModelSpec,
    OnNanSpec,
    RopeScalingSpec,
    TrainSpec,
    padded_vocab,
)

__all__ = [
    "BENCH_SUITES", "KERNEL_BENCHES", "STREAMS", "SUITES", "TOKENIZER_SIZES", "UNKNOWN_SIZE", "WITH_PATH",
    "BenchSpec", "CheckpointSpec", "DataSpec", "DecodeSpec", "EvalSpec", "HaltSpec", "HubSpec", "JobSpec", "LogsSpec",
    "ModelSpec", "OnNanSpec", "ParitySpec", "Requirement", "Resources", "RestartSpec", "RopeScalingSpec",
    "RuntimeSpec", "TaskSpec", "TrainSpec", "padded_vocab",
]  # fmt: skip


class Resources(Config):
    ranks: Literal["auto"] | PositiveInt = "auto"
    """`auto`: every GPU of the pods, else 1."""
    gpus_per_rank: Literal["auto"] | NonNegInt = "auto"
    """`auto`: 1 on pods with GPUs, else 0."""
    cpus_per_rank: PositiveInt = 1


class HaltSpec(Config):
    grace_s: PositiveFloat = 600.0
    """seconds from the request to SIGTERM; SIGKILL follows 30 s later"""


class LogsSpec(Config):
    max_gb: PositiveFloat = 10.0
    """10^9 bytes of a rank's log on the pod; beyond it the oldest output is dropped, and that is told"""


class RestartSpec(Config):
    max: NonNegInt = 3
    backoff_s: Annotated[list[NonNegFloat], Field(min_length=1)] = [0, 5, 30]


class RuntimeSpec(Config):
    process_group_timeout_s: PositiveFloat = 300.0
    """of the collectives of a step; where ranks load, compile or save they wait for each other as long as a phase may
    take (`health.rules.phase_over`), and no shorter than this"""
    omp_threads: PositiveInt | None = None
    """OMP_NUM_THREADS of a rank; default resources.cpus_per_rank"""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """share of a GPU's memory that a rank may take: beyond it the rank fails, and not its neighbour"""


Requirement = Literal["parity"]


class JobSpec(Config):
    """`eval`, `parity`, `bench`, `task`, `require`, `health`, `logs` came later: a missing one has its default."""

    name: Name
    kind: Literal["train", "command", "parity", "bench", "decode", "data"] = "train"
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
    eval: EvalSpec = EvalSpec()
    parity: ParitySpec = ParitySpec()
    bench: BenchSpec = BenchSpec()
    decode: DecodeSpec = DecodeSpec()
    task: TaskSpec = TaskSpec()
    require: list[Requirement] = []
    """`parity`: launched only where the kernels were found right: this code on this GPU, driver, torch and triton"""
    runtime: RuntimeSpec = RuntimeSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    halt: HaltSpec = HaltSpec()
    restart: RestartSpec = RestartSpec()
    logs: LogsSpec = LogsSpec()
    health: HealthSpec = HealthSpec()

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
        if self.train.attention == "flex" and self.data.pack != "documents":
            raise ValueError("train.attention: `flex` is for data.pack `documents`; set one of the two")
        self._evaluation()
        if self.kind == "parity" and self.require:
            raise ValueError("require: has no effect on kind `parity`, which is what it asks for")
        return self

    def _evaluation(self) -> None:
        if self.eval.path is not None and self.data.source not in WITH_PATH:
            raise ValueError(f"eval.path: is for data.source {', '.join(WITH_PATH)}")
        if self.eval.split is not None and self.data.source != "hub":
            raise ValueError("eval.split: is for data.source hub")
        apart = self.data.held_out or self.eval.path is not None or self.eval.split is not None
        if self.eval.every_steps is not None and not apart:
            raise ValueError(
                "eval.every_steps: there is nothing to evaluate on; set data.held_out (0.01, say), "
                "eval.path or eval.split"
            )

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
            case "data":
                return "cpu"
            case _:
                return None
