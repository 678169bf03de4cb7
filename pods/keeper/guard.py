"""The memory guard of a pod: GPU memory of each card that a run leases, and the memory of the machine or its cgroup.

Two threads of the keeper (a driver that hangs must not keep the other from looking), so it works with Ray and the
supervisor dead. A breach is written to `guard.jsonl` first, then the stacks are dumped, then what the job allows is
done: `.anomaly_type` and `.HALT`, or the end of the rank. Only processes with the run's own mark are ever ended, and
nothing is done to a run for memory that others hold. What cannot be seen is not above any limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pods.keeper.guardacts import dump_within, halt, kill
from pods.keeper.guardbreach import Breach, Peers, gpu_breach, host_breach
from pods.keeper.guarded import RankHere, RanksHere, over_meanwhile, tightest_for
from pods.keeper.guardrules import Episode, Limits
from pods.keeper.troubles import KEEPER, Troubles
from pods.remote.cgroup import Level
from pods.remote.gpueye import GpuEye
from pods.remote.gpustate import GpuState
from workloads.contract.files import append_line
from workloads.contract.health import Mode, Rule, Rung
from workloads.contract.jobchanges import job_of
from workloads.contract.rundir import RunDir

IDLE_S = 1.0
GPU_LOOK_S = 5.0
EYE_CLOSED_AFTER_S = 60.0  # without a run that leases a card; an open driver keeps GPUs from being reset
DUMP_S = 10.0
DUMP_AGAIN_S = 600.0  # where nothing is ended: a run that lives at its limit is not dumped for ever
RUNGS_WORDS = {Rung.NOTE: "nothing", Rung.DUMP: "dump", Rung.HALT: "halt", Rung.KILL: "kill"}

Active = Callable[[], Iterable[tuple[RunDir, Mapping[str, Any]]]]
"""Runs on this pod that have not ended, each with its run.json."""


@dataclass
class Watched:
    """One active run as the guard remembers it."""

    run: RunDir
    limits: Limits
    ranks: RanksHere
    episodes: dict[tuple[int, str], Episode] = field(default_factory=dict)  # by attempt and UUID; "" is the machine
    dumped: dict[Rule, float] = field(default_factory=dict)
    acting: threading.Lock = field(default_factory=threading.Lock)  # one after the other: no end before its dump
    _stamp: tuple[int, int] = (0, 0)

    def limits_of_attempt(self, spec: Mapping[str, Any]) -> None:
        """Those of the newest attempt, whose resume may have changed them. `spec`: run.json."""
        stamp = attempt, _ = self.ranks.stamp()
        if stamp != self._stamp:
            self._stamp, self.limits = stamp, Limits.of({"job": job_of(self.run, attempt, spec)})

    def episode(self, attempt: int, key: str) -> Episode:
        """A new attempt begins anew: it may fill a card as fast as the one before."""
        return self.episodes.setdefault((attempt, key), Episode())


class Guard:
    def __init__(
        self,
        active: Active,
        say: Callable[[str], None],
        ended: threading.Event,
        troubles: Troubles | None = None,
    ) -> None:
        self._active, self._say, self._ended = active, say, ended
        self._troubles = troubles or Troubles(say)
        self._eye = GpuEye()
        self._watched: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self._acting: list[threading.Thread] = []
        self._leased_at = time.monotonic()

    def start(self) -> None:
        for name, look in (("guard-gpu", self.look_at_gpus), ("guard-host", self.look_at_memory)):
            threading.Thread(target=self._loop, args=(look,), daemon=True, name=name).start()

    def _loop(self, look: Callable[[float], None]) -> None:
        while not self._ended.is_set():
            wait_s = IDLE_S
            with self._troubles.of(KEEPER, f"{look.__name__} (guard)"):
                look(time.monotonic())
                wait_s = min((w.limits.poll_s for w in self.watched()), default=IDLE_S)
            self._ended.wait(wait_s)

    def watched(self) -> list[Watched]:
        """Active runs that are guarded, whose episodes are remembered while they are active."""
        with self._lock:
            active = {run.run_id: (run, spec) for run, spec in self._active()}
            for run_id, (run, spec) in active.items():
                if run_id not in self._watched:
                    with self._troubles.of(run_id, "reading its run.json (guard)"):
                        self._watched[run_id] = Watched(run, Limits.of(spec), RanksHere(run))
                if run_id in self._watched:
                    with self._troubles.of(run_id, "reading its limits (guard)"):
                        self._watched[run_id].limits_of_attempt(spec)
            for run_id in self._watched.keys() - active.keys():
                del self._watched[run_id]
            return [w for w in self._watched.values() if w.limits.mode != Mode.OFF]

    def settle(self, timeout_s: float) -> None:
        """Wait for what is being done about breaches."""
        for thread in self._acting:
            thread.join(timeout_s)

    def _living(self) -> list[tuple[Watched, list[RankHere]]]:
        """Guarded runs with ranks that live here. One that cannot be looked at is left out."""
        found: list[tuple[Watched, list[RankHere]]] = []
        for watched in self.watched():
            with self._troubles.of(watched.run.run_id, "finding its ranks (guard)"):
                if ranks := watched.ranks.look():
                    found.append((watched, ranks))
        return found

    # GPUs

    def look_at_gpus(self, now: float) -> None:
        """`now`: monotonic seconds."""
        here = [(w, ranks) for w, ranks in self._living() if any(r.devices for r in ranks)]
        uuids = sorted({d for _, ranks in here for r in ranks for d in r.devices})
        if not uuids:
            if now - self._leased_at > EYE_CLOSED_AFTER_S:
                self._eye.close()
            return
        self._leased_at = now
        states = self._eye.look(uuids, GPU_LOOK_S).states
        for watched, ranks in here:
            with self._troubles.of(watched.run.run_id, "guarding its GPUs"):
                for rank in ranks:
                    for uuid in rank.devices:
                        self._gpu(watched, ranks, rank, states.get(uuid, GpuState(uuid)), now)

    def _gpu(self, w: Watched, ranks: list[RankHere], rank: RankHere, state: GpuState, now: float) -> None:
        limit = w.limits.gpu_limit_mib(state.total_mib)
        if state.used_mib is None or limit is None:
            return
        episode = w.episode(rank.attempt, state.uuid)
        if episode.look(state.used_mib, limit, w.limits.over_s, now):
            over_s = episode.over_s(now)
            self._begin(w, ranks, episode, lambda: gpu_breach(w.run, ranks, rank, state, limit, over_s))

    # memory

    def look_at_memory(self, now: float) -> None:
        """`now`: monotonic seconds."""
        here = self._living()
        for watched, ranks in here:
            with self._troubles.of(watched.run.run_id, "guarding the memory"):
                level = tightest_for(ranks)
                if level is not None:
                    peers = [(other.run, theirs) for other, theirs in here if other is not watched]
                    self._memory(watched, ranks, level, peers, now)

    def _memory(self, w: Watched, ranks: list[RankHere], level: Level, peers: Peers, now: float) -> None:
        limits, episode = w.limits, w.episode(ranks[0].attempt, "")
        due = episode.look(level.fraction, limits.host_fraction, limits.host_over_s, now)
        over_s = episode.over_s(now)

        def find() -> Breach:
            return host_breach(w.run, ranks, level, limits.host_fraction, over_s, peers)

        if due:
            self._begin(w, ranks, episode, find)
        elif episode.fired_at is not None and not episode.last_resort and level.fraction >= limits.host_last_resort:
            episode.last_resort = True
            if limits.mode == Mode.ACT and limits.action == Rung.HALT:
                self._begin(w, ranks, episode, find, last_resort=True)

    # acting

    def _begin(
        self,
        w: Watched,
        ranks: list[RankHere],
        episode: Episode,
        find: Callable[[], Breach],
        *,
        last_resort: bool = False,
    ) -> None:
        """In a thread of its own: a dump takes seconds, and other runs are to be guarded meanwhile."""
        args = (w, ranks, episode, find, last_resort)
        thread = threading.Thread(target=self._act, args=args, daemon=True, name="guard-act")
        self._acting = [t for t in self._acting if t.is_alive()] + [thread]
        thread.start()

    def _act(
        self, w: Watched, ranks: list[RankHere], episode: Episode, find: Callable[[], Breach], last_resort: bool
    ) -> None:
        try:
            with w.acting:
                breach = find()
                rungs = w.limits.rungs(ours=breach.ours, halting=w.run.halt.exists())
                if last_resort:  # the stacks were dumped when the halt was asked for
                    rungs = [Rung.NOTE, Rung.KILL] if breach.ours and not episode.innocent else []
                elif rungs and rungs[-1] == Rung.DUMP and not self._may_dump(w, breach.rule):
                    rungs = [Rung.NOTE]
                episode.innocent = not breach.ours
                self._carry_out(w, ranks, breach, rungs)
        except Exception as e:  # what could not be done is said; the run itself must not suffer from its guard
            self._say(f"{w.run.run_id}: guard: {type(e).__name__}: {e}")

    def _may_dump(self, w: Watched, rule: Rule) -> bool:
        now = time.monotonic()
        if now - w.dumped.get(rule, -DUMP_AGAIN_S) < DUMP_AGAIN_S:
            return False
        w.dumped[rule] = now
        return True

    def _carry_out(self, w: Watched, ranks: list[RankHere], breach: Breach, rungs: list[Rung]) -> None:
        if not rungs:
            return
        did = ", ".join(RUNGS_WORDS[r] for r in rungs[1:]) or RUNGS_WORDS[Rung.NOTE]
        self._say(f"{w.run.run_id}: guard: {breach.why}: {did}")
        self._line(w.run, breach, breach.why, did)
        if Rung.DUMP in rungs:
            summary = dump_within(w.run, breach.why, DUMP_S)
            self._line(w.run, breach, summary, "dumped")
        if rungs[-1] not in (Rung.HALT, Rung.KILL):
            return
        if over := over_meanwhile(w.run, ranks):  # a dump takes seconds, and the next attempt did nothing wrong
            self._say(f"{w.run.run_id}: guard: {over}: no {RUNGS_WORDS[rungs[-1]]}")
            self._line(w.run, breach, over, f"no {RUNGS_WORDS[rungs[-1]]}")
        elif rungs[-1] == Rung.HALT:
            halt(w.run, breach.rule, breach.why)
        else:
            kill(w.run, [r for r in ranks if r.rank == breach.who.rank])

    def _line(self, run: RunDir, breach: Breach, why: str, did: str) -> None:
        """A full disk must not keep the guard from acting."""
        row = {
            "v": 1, "ts": time.time(), "rule": breach.rule.value, "why": why, "rank": breach.who.rank,
            "pid": breach.who.pid, "device": breach.device, "used_mib": round(breach.used, 1),
            "total_mib": None if breach.total is None else round(breach.total, 1),
            "limit_mib": round(breach.limit, 1), "did": did,
        }  # fmt: skip
        try:
            append_line(run.guard_log, {k: v for k, v in row.items() if v is not None})
        except OSError as e:
            self._say(f"{run.run_id}: guard: its line could not be written: {e}")
