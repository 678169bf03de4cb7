"""run.json as the supervisor needs it. Read once at its start; a resume replaces tree and argv (`code`), or what it
changed of the job.

Pure parsing, standard library only: the run directory was written by a launch that has checked the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.contract.errors import IntegrityError
from workloads.contract.jobchanges import Changes, changed
from workloads.contract.records import HaltClocks

if TYPE_CHECKING:
    from orchestrator.supervisor.memory import Memory


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
    log_max_bytes: int = 10_000_000_000
    health: Mapping[str, Any] = field(default_factory=dict)  # of the job, as it was written
    allowed: tuple[str, ...] = ()  # config changes that the newest resume lets the checkpoint have
    resume_from: str | None = None  # the checkpoint that it named
    job: Mapping[str, Any] = field(default_factory=dict)  # of run.json
    changes: Changes = field(default_factory=dict)  # what resumes made of it; the fields above are as they say

    @property
    def home(self) -> Path:
        """$ORCH_HOME of the head pod."""
        return self.pods[0].root

    def resumed(self, memory: Memory) -> RunSpec:
        """The same run as its resumes want it: other code, a changed job, allowed changes of the config, a checkpoint.

        IntegrityError for changes after which the job is none.
        """
        tree = Path(memory.tree) if memory.tree else self.tree
        allowed = tuple(dict.fromkeys((*memory.allowed, *memory.approved)))
        new = replace(self, tree=tree, argv=memory.argv or self.argv, allowed=allowed, resume_from=memory.resume_from)
        return new.with_changes(memory.changes) if memory.changes else new

    def with_changes(self, changes: Changes) -> RunSpec:
        """`self` is run.json's. IntegrityError as above."""
        job = changed(self.job, changes)
        try:
            env = {k: v for k, v in self.env.items() if k not in (self.job.get("env") or {})}
            own = _of_job(job, self.kind, self.cpus_per_rank)
            return replace(self, **own, changes=changes, env=env | _texts(job.get("env")))
        except (AttributeError, TypeError, ValueError) as e:
            raise IntegrityError("E-RUN-021", f"the changed job cannot be read: {type(e).__name__}: {e}") from e

    def lost_python(self) -> str:
        """The interpreter of the ranks where it is not on this pod, the head, any more; "" otherwise."""
        program = self.argv[0] if self.argv else ""
        ours = program == self.pods[0].python and Path(program).is_absolute()
        return program if ours and not Path(program).exists() else ""

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
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as e:
        raise IntegrityError("E-RUN-020", f"run.json is not whole: {type(e).__name__}: {e}") from e


def _parse(row: Mapping[str, Any]) -> RunSpec:
    job: Mapping[str, Any] = row.get("job") or {}
    kind, cpus = str(row.get("kind", "train")), int(row.get("cpus_per_rank", 1))
    pods = tuple(_pod(p) for p in row["pods"])
    ranks = sorted(r for p in pods for r in p.ranks)
    if ranks != list(range(int(row["world_size"]))) or not ranks:
        raise ValueError(f"pods hold the ranks {ranks}, world_size is {row['world_size']}")
    return RunSpec(
        run_id=str(row["run"]),
        name=str(row["name"]),
        kind=kind,
        created=float(row.get("created", 0.0)),
        cluster=str(row.get("cluster", "")),
        pods=pods,
        world_size=int(row["world_size"]),
        cpus_per_rank=cpus,
        gpus_per_rank=int(row.get("gpus_per_rank", 0)),
        argv=tuple(str(a) for a in row["argv"]),
        cwd=str(row["cwd"]),
        env=_texts(row.get("env")),
        tree=Path(row["tree"]),
        job=job,
        **_of_job(job, kind, cpus),
    )


def _of_job(job: Mapping[str, Any], kind: str, cpus: int) -> dict[str, Any]:
    """The fields that say what the job says."""
    restart: Mapping[str, Any] = job.get("restart") or {}
    grace_s = float((job.get("halt") or {}).get("grace_s", HaltClocks().term_s))
    steps = (job.get("train") or {}).get("steps") if kind == "train" else None
    return {
        "steps": int(steps) if steps is not None else None,
        "restart_max": int(restart.get("max", 3)),
        "backoff_s": tuple(float(x) for x in restart.get("backoff_s") or (0, 5, 30)),
        "clocks": HaltClocks(term_s=grace_s, kill_s=grace_s + HaltClocks().kill_s - HaltClocks().term_s),
        "omp_threads": int((job.get("runtime") or {}).get("omp_threads") or cpus),
        "log_max_bytes": int(float((job.get("logs") or {}).get("max_gb", 10.0)) * 1e9),
        "health": dict(job.get("health") or {}),
    }


def _texts(row: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(k): str(v) for k, v in (row or {}).items()}


def _pod(row: Mapping[str, Any]) -> PodPart:
    return PodPart(
        name=str(row["name"]),
        address=str(row.get("address", "127.0.0.1")),
        ranks=tuple(int(r) for r in row["ranks"]),
        python=str(row["python"]),
        orch_python=str(row.get("orch_python") or row["python"]),
        root=Path(row["root"]),
    )
