"""This rank's device, numerics and process group; and `env.json`, which says what they were.

Called by the trainer before the model is built.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

import numpy as np
import torch
import torch.distributed as dist

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import atomic_write_json
from workloads.judging.machine import nvlink
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class Machine:
    device: torch.device
    bf16: bool
    sharded: bool = False  # FSDP2 hands out weights in bf16 where that is computed in
    linked: bool = False  # the GPUs of all ranks are in this machine, and NVLink joins them

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        if not self.bf16 or self.sharded:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def set_up(env: RankEnv, job: JobSpec, gpus_per_rank: int) -> Machine:
    """Pick the device, fix the numerics, join the process group. SpecError when the GPU is not there."""
    device = torch.device("cpu")
    if gpus_per_rank:
        if not torch.cuda.is_available():
            raise SpecError("E-TRAIN-004", f"rank {env.rank} wants a GPU, and this Python's torch sees none")
        device = torch.device("cuda", env.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        if job.runtime.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(job.runtime.memory_fraction, device)
    numerics(job.train.deterministic)
    _join(env, device, job.runtime.process_group_timeout_s)
    _seed(job.train.seed)
    auto_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    bf16 = job.train.dtype == "bf16" or (job.train.dtype == "auto" and auto_bf16)
    sharded = job.train.parallel == "fsdp2" and env.world_size > 1
    linked = device.type == "cuda" and env.local_world_size == env.world_size > 1 and nvlink()
    return Machine(device, bf16, sharded, linked)


def numerics(deterministic: bool) -> None:
    """Of the whole process. `deterministic`: the same bits each time, where kernels were written that can do it."""
    if deterministic:
        # read when cuBLAS makes its handle, which has not happened yet
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _seed(seed: int) -> None:
    """Every generator that a checkpoint holds: a run that is killed before its first one begins again with the same."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the generator that libraries share; what checkpoints keep of numpy


def _join(env: RankEnv, device: torch.device, timeout_s: float) -> None:
    if env.world_size == 1:
        return
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # gloo resolves the host's name otherwise, which fails or leaves loopback on many machines
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )


def lost_peer(e: BaseException) -> bool:
    """True when a collective failed because another rank went away: not this rank's fault, a restart helps."""
    if isinstance(e, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(e)
    return isinstance(e, RuntimeError) and ("gloo/transport" in text or "Connection closed by peer" in text)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": version("numpy")}


def write_env(env: RankEnv, machine: Machine, **more: object) -> None:
    """`env.json`: what the run computed on, and how (`more`). A full disk is told and not fatal."""
    row: dict[str, object] = {
        "v": 1, "ts": time.time(), "attempt": env.attempt, "world_size": env.world_size,
        "versions": versions(), "executable": sys.executable, "platform": platform.platform(),
        "device": str(machine.device), "bf16": machine.bf16, "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)), "deterministic": torch.are_deterministic_algorithms_enabled(),
        **more,
    }  # fmt: skip
    if machine.cuda:
        row["gpu"] = torch.cuda.get_device_name(machine.device)
        row["cuda"] = torch.version.cuda
    try:
        atomic_write_json(env.run.env_json, row)
    except OSError as e:
        print(f"warning: env.json was not written: {e}", file=sys.stderr, flush=True)
