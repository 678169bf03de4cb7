"""Where the ranks of a job go: pods, ranks, GPUs and CPUs, from the job, the inventory and the facts. Pure.

Refuses what cannot be met, with what was asked for beside what was found. Called by `orchestrator.jobs.plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from pods.facts import PodFacts
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.config.job import JobSpec, Resources
from workloads.contract.errors import LocalError, SpecError

Where = Callable[[str], str]
_ON_CPU = {
    "parity": "Triton's interpreter",
    "bench": "tiny cases: a test of the bench itself",
    "decode": "the kernels' references",
}
"""What a run of that kind is without a GPU."""


@dataclass(frozen=True)
class Placement:
    pod: str
    ranks: int
    gpus_per_rank: int
    cpus_per_rank: int

    @property
    def gpus(self) -> int:
        return self.ranks * self.gpus_per_rank


def choose_pod(spec: JobSpec, inventory: Inventory, where: Where) -> tuple[str, PodSpec]:
    """The pod of this run. SpecError for a name that is not known, and for several."""
    for i, name in enumerate(spec.pods):
        if name not in inventory.pods:
            close = get_close_matches(name, inventory.pods, n=1)
            raise SpecError(
                "E-PLAN-001", f"pod {name} is not in the inventory", where=where(f"pods[{i}]"), value=name,
                expected="one of " + ", ".join(inventory.pods), did_you_mean=close[0] if close else None,
                fix=_pods(where, close[0]) if close else f"orch pods add {name} user@host[:port]",
            )  # fmt: skip
    far = [n for n in spec.pods if not inventory.pods[n].local]
    if far and len(spec.pods) > 1:
        raise SpecError(
            "E-PLAN-002", "one run on several pods is not available yet", where=where("pods"),
            value=", ".join(spec.pods), expected="one pod", fix=_pods(where, far[0]),
        )  # fmt: skip
    if len(spec.pods) > 1:
        raise SpecError(
            "E-PLAN-003", "several local pods are one and the same machine", where=where("pods"),
            value=", ".join(spec.pods), expected="one local pod", fix=_pods(where, spec.pods[0]),
        )  # fmt: skip
    return spec.pods[0], inventory.pods[spec.pods[0]]


def _pods(where: Where, pod: str) -> str:
    """How to name `pod` where the pods were named."""
    return f"--pod {pod}" if where("pods").startswith("--pod ") else f"pods: [{pod}]"


def place_ranks(spec: JobSpec, pod: str, facts: PodFacts, where: Where) -> Placement:
    """Ranks, GPUs and CPUs on `pod`; `auto` resolved."""
    asked = _one_rank(spec, len(facts.gpus)) if spec.device is not None else spec.resources
    if facts.gpu_error and asked.gpus_per_rank != 0:
        raise LocalError(
            "E-PLAN-004", f"the GPUs of pod {pod} cannot be listed: {facts.gpu_error}", where=where("resources"),
            fix="repair nvidia-smi, or run without GPUs: --set resources.gpus_per_rank=0",
        )  # fmt: skip
    if spec.device == "cuda" and not facts.gpus:
        raise SpecError(
            "E-PLAN-014", f"{spec.kind} was asked for on a GPU, and pod {pod} has none",
            where=where(f"{spec.kind}.device"), value="cuda", expected=f"auto or cpu ({_ON_CPU[spec.kind]})",
            fix=f"device: cpu   (orch {spec.kind} --device cpu)",
        )  # fmt: skip
    found = len(facts.gpus)
    per_rank = (1 if found else 0) if asked.gpus_per_rank == "auto" else asked.gpus_per_rank
    ranks = max(1, found // per_rank if per_rank else 1) if asked.ranks == "auto" else asked.ranks
    place = Placement(pod, ranks, per_rank, asked.cpus_per_rank)
    _refuse_gpus(place, facts, where)
    _refuse_cpus(place, facts, where)
    return place


def _one_rank(spec: JobSpec, found: int) -> Resources:
    """A parity, bench or decode run is one rank, on a GPU where there is one unless the job says otherwise.

    Suites `device` and `comm` of a bench run measure every GPU of the pod: their rank has them all.
    """
    asked = spec.resources.gpus_per_rank
    if spec.device == "cpu":
        asked = 0
    elif asked == "auto" and spec.kind == "bench" and {"device", "comm"} & set(spec.bench.suites):
        asked = found or "auto"
    elif asked == "auto" and spec.device == "cuda":
        asked = 1
    return spec.resources.model_copy(update={"ranks": 1, "gpus_per_rank": asked})


def _refuse_gpus(place: Placement, facts: PodFacts, where: Where) -> None:
    if place.gpus <= len(facts.gpus):
        return
    key = "resources.ranks" if place.gpus_per_rank == 1 else "resources.gpus_per_rank"
    listed = ", ".join(f"{g.index} {g.name}" for g in facts.gpus) or "none"
    best = len(facts.gpus) // place.gpus_per_rank
    fix = f"--set resources.ranks={best}" if best else "--set resources.gpus_per_rank=0"
    raise SpecError(
        "E-PLAN-005", f"the job needs more GPUs than pod {place.pod} has", where=where(key),
        value=f"{place.ranks} ranks x {place.gpus_per_rank} GPUs = {place.gpus}",
        expected=f"at most {len(facts.gpus)} (found: {listed})", fix=fix,
    )  # fmt: skip


def _refuse_cpus(place: Placement, facts: PodFacts, where: Where) -> None:
    wanted = place.ranks * place.cpus_per_rank
    if wanted <= facts.cpus:
        return
    if place.ranks <= facts.cpus:
        key, fix = "resources.cpus_per_rank", f"--set resources.cpus_per_rank={facts.cpus // place.ranks}"
    else:
        key, fix = "resources.ranks", f"--set resources.ranks={max(1, facts.cpus // place.cpus_per_rank)}"
        if place.cpus_per_rank > facts.cpus:
            fix += " --set resources.cpus_per_rank=1"
    raise SpecError(
        "E-PLAN-006", f"the job needs more CPUs than pod {place.pod} has", where=where(key),
        value=f"{place.ranks} ranks x {place.cpus_per_rank} CPUs = {wanted}",
        expected=f"at most {facts.cpus} (affinity and container quota counted)", fix=fix,
    )  # fmt: skip
