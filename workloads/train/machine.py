"""This rank's device, numerics and process group; and `env.json`, which says what they were.

Called by the trainer before the model is built.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist

from workloads.contract.config.job import JobSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import atomic_write_json
from workloads.runtime.rankenv import RankEnv


@dataclass(frozen=True)
class Machine:
    device: torch.device
    bf16: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def set_up(env: RankEnv, job: JobSpec, gpus_per_rank: int) -> Machine:
    """Pick the device, fix the numerics, join the process group. SpecError when the GPU is not there."""
    device = torch.device("cpu")
    if gpus_per_rank:
        if not torch.cuda.is_available():
            raise SpecError("E-TRAIN-004", f"rank {env.rank} wants a GPU, and this Python's torch sees none")
        device = torch.device("cuda", env.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    _numerics(job.train.deterministic)
    _join(env, device, job.runtime.process_group_timeout_s)
    torch.manual_seed(job.train.seed)
    auto_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Machine(device, job.train.dtype == "bf16" or (job.train.dtype == "auto" and auto_bf16))


def _numerics(deterministic: bool) -> None:
    if deterministic:
        # read when cuBLAS makes its handle, which has not happened yet
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


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


def write_env(env: RankEnv, machine: Machine) -> None:
    """`env.json`: what the run computed on. A full disk is told and not fatal."""
    row: dict[str, object] = {
        "v": 1, "ts": time.time(), "attempt": env.attempt, "world_size": env.world_size,
        "versions": versions(), "executable": sys.executable, "platform": platform.platform(),
        "device": str(machine.device), "bf16": machine.bf16, "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)), "deterministic": torch.are_deterministic_algorithms_enabled(),
    }  # fmt: skip
    if machine.cuda:
        row["gpu"] = torch.cuda.get_device_name(machine.device)
        row["cuda"] = torch.version.cuda
    try:
        atomic_write_json(env.run.env_json, row)
    except OSError as e:
        print(f"warning: env.json was not written: {e}", file=sys.stderr, flush=True)
