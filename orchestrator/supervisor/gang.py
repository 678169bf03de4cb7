"""The gang in Ray: a placement group named after the run, one PodAgent in each bundle.

Both are detached and found again by name, so a supervisor that was killed goes on with them. Every call has a limit; a
Ray that fails or is silent gives `unknown`, never a dead rank. Only `release` takes anything away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from orchestrator.health.facts import PodFacts, ProcessState, RankFacts
from orchestrator.supervisor import behind
from orchestrator.supervisor.agent import PodAgent
from orchestrator.supervisor.bounded import BoundedCaller
from orchestrator.supervisor.observe import Figures, PodEye
from orchestrator.supervisor.raynames import (
    NAMESPACE,
    actor_of,
    agent_name,
    group_of,
    group_state,
    node_totals,
    remove_gang,
    worker_env,
)
from orchestrator.supervisor.seen import GangSeen, GangState, RankPhase, RankSeen
from orchestrator.supervisor.spec import PodPart, RunSpec
from workloads.contract.errors import RemoteError, escape
from workloads.contract.rundir import OrchHome, RunDir

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 10.0
SPAWN_S = 60.0
GPU_LEFT_S = 25.0
PING_S = 5.0
LOOK_READY_S = 2.0  # between looks at a gang that is up
LOOK_PENDING_S = 0.5
LOOK_PLACED_S = 0.1  # its agents are on their way
LOOK_UNKNOWN_S = 5.0
FRESH_S = 2.0  # what an agent said is of this look
IMPOSSIBLE_AFTER_S = 5.0  # a node that has just joined may not have told all its resources


class RayGang:
    """`look` never raises; what does something raises what Ray raised, and the supervisor tries again."""

    def __init__(self, spec: RunSpec, run: RunDir) -> None:
        self.spec, self.run, self.home = spec, run, OrchHome(spec.home)
        self._caller = BoundedCaller("ray-calls")
        self._head = PodEye(run, spec.pods[0].name, spec.pods[0].ranks)
        self._others: dict[str, tuple[Sequence[RankFacts], PodFacts, float]] = {}  # pod -> facts, and when
        self._asked: dict[str, float] = {}
        self._seen = GangSeen(GangState.UNKNOWN)
        self._next_look = 0.0
        self._pending_since: float | None = None

    # looking

    def look(self, now: float) -> GangSeen:
        """The gang as it was seen at most a few seconds ago. `now`: monotonic seconds."""
        if now < self._next_look:
            return self._seen
        try:
            self._seen = self._look(now)
        except Exception as e:  # whatever Ray raises: it was not seen, and the loop must live
            log.warning("Ray could not be asked: %s: %s", type(e).__name__, str(e)[:500])
            self._seen = GangSeen(GangState.UNKNOWN)
        waits = {
            GangState.READY: LOOK_READY_S,
            GangState.UNKNOWN: LOOK_UNKNOWN_S,
            GangState.NONE: 0.0,
            GangState.PLACED: LOOK_PLACED_S,
        }
        self._next_look = time.monotonic() + waits.get(self._seen.state, LOOK_PENDING_S)
        return self._seen

    def _look(self, now: float) -> GangSeen:
        state = self._ray(lambda: group_state(self.spec.run_id), CALL_S)
        if state in (None, "REMOVED"):
            self._pending_since = None
            return GangSeen(GangState.NONE)
        if state != "CREATED":
            return self._pending(now)
        self._pending_since = None
        return GangSeen(GangState.READY if self._agents_answer() else GangState.PLACED)

    def _pending(self, now: float) -> GangSeen:
        since = self._pending_since = now if self._pending_since is None else self._pending_since
        totals = self._ray(node_totals, CALL_S)
        why = behind.impossible(self.spec, totals)
        if why and now - since > IMPOSSIBLE_AFTER_S:
            return GangSeen(GangState.IMPOSSIBLE, why)
        reason, runs = behind.explain(self.spec, totals, behind.holders(self.home, self.spec))
        return GangSeen(GangState.PENDING, reason, runs)

    def _agents_answer(self) -> bool:
        """False when one is missing; raises when one is there and silent."""
        import ray

        names = [agent_name(self.spec.run_id, pod.name) for pod in self.pods]
        handles = self._ray(lambda: [actor_of(name) for name in names], CALL_S)
        if any(h is None for h in handles):
            return False
        self._ray(lambda: ray.get([h.ping.remote() for h in handles], timeout=PING_S), CALL_S)
        return True

    @property
    def pods(self) -> Sequence[PodPart]:
        return self.spec.pods

    def ranks(self, attempt: int) -> tuple[tuple[RankSeen, ...], Figures, int]:
        """(ranks by number, figures, best step). The head pod is read here; a silent agent's ranks are unknown."""
        seen = self._head.look(attempt)
        figures, best = self._head.figures(), self._head.best_step()
        for pod in self.pods[1:]:
            try:
                rows, others, other_best, facts, of_pod = self._ask(pod, "look", attempt)
                self._others[pod.name] = (facts, of_pod, time.monotonic())
            except Exception as e:  # unreachable is not dead
                log.warning("agent of %s could not be asked: %s", pod.name, type(e).__name__)
                rows = [RankSeen(rank, pod.name, RankPhase.UNKNOWN) for rank in pod.ranks]
                others, other_best = Figures(), -1
            seen += rows
            figures = figures if figures.step is not None else others
            best = max(best, other_best)
        return tuple(sorted(seen, key=lambda r: r.rank)), figures, best

    def health(self, now: float) -> tuple[Sequence[RankFacts], Sequence[PodFacts]]:
        """Of the look just made. What a silent agent said last grows old; its ranks are unknown, never dead."""
        ranks, head = self._head.facts(now)
        pods = [head]
        for pod in self.pods[1:]:
            first = self._asked.setdefault(pod.name, now)
            facts, of_pod, at = self._others.get(pod.name, ((), PodFacts(pod.name), first))
            fresh = now - at < FRESH_S
            ranks += facts if fresh else [RankFacts(rank, pod.name, ProcessState.UNKNOWN) for rank in pod.ranks]
            pods.append(replace(of_pod, age_s=of_pod.age_s + max(now - at, 0.0)))
            self._others[pod.name] = ([replace(f, beats=()) for f in facts], of_pod, at)  # beats are news once
        return ranks, pods

    def strays(self) -> tuple[int, ...] | None:
        """Living processes of the run on any pod; None when a pod could not be asked."""
        found = list(self._head.strays())
        try:
            for pod in self.pods[1:]:
                found += self._ask(pod, "strays")
        except Exception as e:
            log.warning("strays could not be looked for: %s", type(e).__name__)
            return None
        return tuple(found)

    def busy(self) -> Mapping[str, str] | str:
        """Devices of the gang that somebody leases -> who; or, in words, why that cannot be told."""
        if not self.spec.gpus_per_rank:
            return {}
        try:
            rows = [self._ask(pod, "busy") for pod in self.pods]
        except Exception as e:
            log.warning("leases could not be looked at: %s: %s", type(e).__name__, str(e)[:500])
            return escape(str(e).splitlines()[-1] if str(e) else type(e).__name__, 300)
        return {device: holder for row in rows for device, holder in row.items()}

    def gpu_used(self) -> Mapping[str, float]:
        """MiB used on each device of the gang; {} where that cannot be told."""
        try:
            rows = [self._ask(pod, "gpu_used") for pod in self.pods] if self.spec.gpus_per_rank else []
        except Exception as e:
            log.warning("GPU memory could not be looked at: %s: %s", type(e).__name__, str(e)[:500])
            return {}
        return {device: mib for row in rows for device, mib in row.items()}

    def gpu_left(self, before: Mapping[str, float]) -> Sequence[str]:
        """Sentences about GPU memory that did not come back; one that says so when it could not be looked at."""
        if not self.spec.gpus_per_rank:
            return ()
        try:
            rows = [self._ask(pod, "gpu_left", dict(before), timeout_s=GPU_LEFT_S) for pod in self.pods]
        except Exception as e:
            log.warning("GPU memory could not be looked at: %s: %s", type(e).__name__, str(e)[:500])
            return (f"GPU memory could not be looked at ({type(e).__name__})",)
        return [words for row in rows for words in row]

    # doing

    def place(self) -> None:
        """Create the placement group. Its bundles hold what the ranks use; Ray's books follow the gang."""
        self._ray(self._place, CALL_S)
        self._next_look = 0.0

    def _place(self) -> None:
        from ray.util import placement_group

        placement_group(
            [self.spec.bundle(pod) for pod in self.pods], strategy="PACK", name=self.spec.run_id, lifetime="detached"
        )

    def prepare(self) -> None:
        """Have the agents created that are missing; the next look says when they answer."""
        self._ray(self._make_agents, CALL_S)
        self._next_look = 0.0

    def _make_agents(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = group_of(self.spec.run_id)
        if group is None:
            raise LookupError("the placement group is gone")
        for index, pod in enumerate(self.pods):
            bundle = self.spec.bundle(pod)
            options = ray.remote(PodAgent).options(
                name=agent_name(self.spec.run_id, pod.name), namespace=NAMESPACE, lifetime="detached",
                get_if_exists=True, max_restarts=-1, max_concurrency=4,
                num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
                runtime_env=worker_env(self.spec),
            )  # fmt: skip
            options.remote(self.spec.run_id, pod.name, pod.ranks, str(pod.root), pod.orch_python, str(self.spec.tree))

    def devices(self) -> Mapping[str, Sequence[str]]:
        if not self.spec.gpus_per_rank:
            return {}
        return {pod.name: self._ask(pod, "devices") for pod in self.pods}

    def free_port(self) -> int:
        """On the pod of rank 0."""
        pod = next(p for p in self.pods if 0 in p.ranks)
        port: int = self._ask(pod, "free_port")
        return port

    def spawn(self, orders: Mapping[str, Sequence[str]]) -> None:
        """pod -> order files whose shims are to be started."""
        for pod in self.pods:
            if orders.get(pod.name):
                self._ask(pod, "spawn", list(orders[pod.name]), timeout_s=SPAWN_S)

    def sweep(self, mark: str) -> None:
        for pod in self.pods:
            self._ask(pod, "sweep", mark, timeout_s=SPAWN_S)

    def release(self) -> None:
        """Give the placement back and end the agents. Ranks are not touched: there are none."""
        self._ray(lambda: remove_gang(self.spec.run_id, [p.name for p in self.pods]), CALL_S)
        self._next_look = 0.0

    def recode(self, spec: RunSpec) -> None:
        """The run goes on with other code."""
        self.spec = replace(spec)

    def _ray(self, call: Callable[[], T], timeout_s: float) -> T:
        """One bounded call. Whatever Ray itself raises becomes a RemoteError."""
        from ray.exceptions import RayError

        try:
            return self._caller(call, timeout_s)
        except RayError as e:
            first = (str(e).strip().splitlines() or [""])[-1]
            raise RemoteError("E-SUP-010", f"Ray: {type(e).__name__}: {escape(first, 300)}") from e

    def _ask(self, pod: PodPart, method: str, *args: Any, timeout_s: float = CALL_S) -> Any:
        import ray

        def call() -> Any:
            handle = actor_of(agent_name(self.spec.run_id, pod.name))
            if handle is None:
                raise LookupError(f"the agent of {pod.name} is gone")
            return ray.get(getattr(handle, method).remote(*args), timeout=timeout_s)

        return self._ray(call, timeout_s + 5.0)
