"""The orders of one attempt: run.json, attempt, rendezvous and devices in, one `ShimOrder` a rank out. Pure.

The environment of a rank is the base that the launch recorded, and on top of it what runbooks/design/01 lists. Nothing
of the supervisor's own environment (RAY_*, OMP_*, its PYTHONPATH) gets in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.supervisor.spec import PodPart, RunSpec
from workloads.contract.allowed import ALLOWED, RESUME_FROM
from workloads.contract.process import MARK, rank_mark
from workloads.contract.records import ShimOrder
from workloads.contract.rundir import RunDir


def make_orders(
    spec: RunSpec,
    run: RunDir,
    *,
    attempt: int,
    port: int,
    devices: Mapping[str, Sequence[str]],
    start: float,
) -> tuple[ShimOrder, ...]:
    """Every rank's order, by rank. `devices`: pod -> GPU UUIDs; `start`: Unix seconds, names the stack dumps.

    Raises ValueError when a pod has fewer devices than its ranks need.
    """
    orders = []
    for group_rank, pod in enumerate(spec.pods):
        shares = _share(spec, pod, devices.get(pod.name, ()))
        for local_rank, rank in enumerate(pod.ranks):
            env = _env(spec, run, pod, attempt, port, start, (rank, local_rank, group_rank), shares[local_rank])
            orders.append(
                ShimOrder(
                    run=spec.run_id, run_dir=str(run.path), attempt=attempt, rank=rank, local_rank=local_rank,
                    world_size=spec.world_size, pod=pod.name, argv=list(spec.argv), cwd=spec.cwd, env=env,
                    devices=list(shares[local_rank]), halt=dataclasses.asdict(spec.clocks),
                    log_max_bytes=spec.log_max_bytes,
                )
            )  # fmt: skip
    return tuple(sorted(orders, key=lambda o: o.rank))


def _share(spec: RunSpec, pod: PodPart, devices: Sequence[str]) -> list[tuple[str, ...]]:
    n = spec.gpus_per_rank
    if len(devices) < n * len(pod.ranks):
        raise ValueError(f"pod {pod.name} gave {len(devices)} devices for {len(pod.ranks)} ranks of {n}")
    return [tuple(devices[i * n : (i + 1) * n]) for i in range(len(pod.ranks))]


def _env(
    spec: RunSpec,
    run: RunDir,
    pod: PodPart,
    attempt: int,
    port: int,
    start: float,
    place: tuple[int, int, int],
    devices: Sequence[str],
) -> dict[str, str]:
    rank, local_rank, group_rank = place
    env = dict(spec.env)
    if spec.allowed:
        env[ALLOWED] = ",".join(spec.allowed)
    if spec.resume_from:
        env[RESUME_FROM] = spec.resume_from
    env.setdefault("OMP_NUM_THREADS", str(spec.omp_threads))
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    else:  # a rank without a lease must not find a device that belongs to somebody else
        env.setdefault("CUDA_VISIBLE_DEVICES", "")
    return env | {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_WORLD_SIZE": str(len(pod.ranks)),
        "GROUP_RANK": str(group_rank),
        "MASTER_ADDR": _master(spec).address,
        "MASTER_PORT": str(port),
        "ORCH_RUN_DIR": str(run.path),
        "ORCH_RUN_ID": spec.run_id,
        "ORCH_ATTEMPT": str(attempt),
        "ORCH_EPOCH": str(attempt),
        "ORCH_POD": pod.name,
        "ORCH_HOME": str(pod.root),
        MARK: rank_mark(spec.run_id, attempt, rank),
        "ORCH_STACKDUMP": str(run.stackdump(rank, start)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": _python_path(spec.tree, env.get("PYTHONPATH", "")),
    }


def _master(spec: RunSpec) -> PodPart:
    return next(pod for pod in spec.pods if 0 in pod.ranks)


def _python_path(tree: Path, users: str) -> str:
    """sitecustomize first so that it is found, orch last so that the user's own packages win."""
    parts = [str(tree / "workloads" / "runtime" / "site"), *(p for p in users.split(":") if p), str(tree)]
    return ":".join(parts)
