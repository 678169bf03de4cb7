"""What the kinds of jobs beside `train` and `command` are asked: `parity`, `bench`, `decode` and `data` (`task`).

Defaults live here and nowhere else; rules over several fields raise ValueError with the key in front. Parts of
`workloads.contract.config.job.JobSpec`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from workloads.contract.config import kvpolicy
from workloads.contract.config.base import Config, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt

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
        if self.kv_policy is not None and (wrong := kvpolicy.mistake(self.kv_policy)):
            raise ValueError(f"decode.kv_policy: {wrong}; a right one: {kvpolicy.EXAMPLE}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("decode.temperature: top_k and top_p say what is drawn from; 0 draws nothing")
        return self


class TaskSpec(Config):
    """Kind `data`: read what `data` names and say how it goes, or tokenize it once into shards. One rank, no GPU."""

    kind: Literal["check", "prepare"] = "check"
    batches: PositiveInt | None = None
    """`check`: so many of them; default: as many as come within `seconds`"""
    seconds: PositiveFloat = 10.0
    """`check`: at most so long, after the first batch"""
    out: Annotated[str, Field(min_length=1)] | None = None
    """`prepare`: the folder on the pod that will hold the shards"""
    workers: PositiveInt | None = None
    """`prepare`: processes that tokenize; default: one a core"""
    max_tokens: PositiveInt | None = None
    """`prepare`: about so many; every virtual part ends with the document that reaches its share"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "prepare") != (self.out is not None):
            raise ValueError("task.out: is needed by kind `prepare` and by no other")
        return self
