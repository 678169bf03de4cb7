"""run.json as the supervisor needs it. Read once at its start; `code` of a resume replaces tree and argv.

Pure parsing, standard library only: the run directory was written by a launch that has checked the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads.contract.errors import IntegrityError
from workloads.contract.records import HaltClocks


@dataclass(frozen=True)
class PodPart:
    """One pod's part of the gang."""

    name: str
    address: str
    ranks: tuple[int, ...]
    python: str
    orch_python: str
    root: Path


@dataclass(frozen=True)
class RunSpec:
    run_id: str
    name: str
    kind: str
    created: float
    cluster: str
    pods: tuple[PodPart, ...]
    world_size: int
    cpus_per_rank: int
    gpus_per_rank: int
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    tree: Path
    steps: int | None
    restart_max: int
    backoff_s: tuple[float, ...]
    clocks: HaltClocks
    omp_threads: int

    @property
    def home(self) -> Path:
        """$ORCH_HOME of the head pod."""
        return self.pods[0].root

    def with_code(self, tree: str | None, argv: tuple[str, ...] | None) -> RunSpec:
        """The same run with other code: what `resume --code current` asked for."""
        return replace(self, tree=Path(tree) if tree else self.tree, argv=argv or self.argv)

    def bundle(self, pod: PodPart) -> dict[str, float]:
        """The Ray resources of one pod's ranks; a sliver of `pod:<name>` pins the bundle to its node."""
        row: dict[str, float] = {
            "CPU": float(len(pod.ranks) * self.cpus_per_rank),
            "GPU": float(len(pod.ranks) * self.gpus_per_rank),
            f"pod:{pod.name}": 0.001,
        }
        return {k: v for k, v in row.items() if v > 0}


def parse_spec(row: Mapping[str, Any]) -> RunSpec:
    """Raises IntegrityError when run.json is not one."""
    try:
        return _parse(row)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise IntegrityError("E-RUN-020", f"run.json is not whole: {type(e).__name__}: {e}") from e


def _parse(row: Mapping[str, Any]) -> RunSpec:
    job: Mapping[str, Any] = row.get("job") or {}
    restart: Mapping[str, Any] = job.get("restart") or {}
    grace_s = float((job.get("halt") or {}).get("grace_s", HaltClocks().term_s))
    cpus = int(row.get("cpus_per_rank", 1))
    steps = (job.get("train") or {}).get("steps") if row.get("kind") == "train" else None
    pods = tuple(_pod(p) for p in row["pods"])
    ranks = sorted(r for p in pods for r in p.ranks)
    if ranks != list(range(int(row["world_size"]))) or not ranks:
        raise ValueError(f"pods hold the ranks {ranks}, world_size is {row['world_size']}")
    return RunSpec(
        run_id=str(row["run"]),
        name=str(row["name"]),
        kind=str(row.get("kind", "train")),
        created=float(row.get("created", 0.0)),
        cluster=str(row.get("cluster", "")),
        pods=pods,
        world_size=int(row["world_size"]),
        cpus_per_rank=cpus,
        gpus_per_rank=int(row.get("gpus_per_rank", 0)),
        argv=tuple(str(a) for a in row["argv"]),
        cwd=str(row["cwd"]),
        env={str(k): str(v) for k, v in (row.get("env") or {}).items()},
        tree=Path(row["tree"]),
        steps=int(steps) if steps is not None else None,
        restart_max=int(restart.get("max", 3)),
        backoff_s=tuple(float(x) for x in restart.get("backoff_s") or (0, 5, 30)),
        clocks=HaltClocks(term_s=grace_s, kill_s=grace_s + HaltClocks().kill_s - HaltClocks().term_s),
        omp_threads=int((job.get("runtime") or {}).get("omp_threads") or cpus),
    )


def _pod(row: Mapping[str, Any]) -> PodPart:
    return PodPart(
        name=str(row["name"]),
        address=str(row.get("address", "127.0.0.1")),
        ranks=tuple(int(r) for r in row["ranks"]),
        python=str(row["python"]),
        orch_python=str(row.get("orch_python") or row["python"]),
        root=Path(row["root"]),
    )
