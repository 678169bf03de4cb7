"""The keeper's work: one tick looks at the runs, asks `policy.decide` and carries out what it says.

Called by `__main__` about once a second and at every poke. Everything it knows is in files; see the package docstring.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pods.keeper import policy
from pods.keeper.dumping import Dumper
from pods.keeper.jobsapi import JobsApiError
from pods.keeper.pythons import Pythons, candidates, stamp_of
from pods.keeper.raynode import RayNode
from pods.keeper.runs import Runs, RunWatch, Submission, goes_on_with_todays, tree_of
from pods.keeper.spawn import clean_env, interpreter, spawn_detached
from pods.keeper.troubles import KEEPER, Troubles
from pods.remote.rankrecords import newest_attempt
from pods.remote.reap import reap_lost, wake_stopped
from workloads.contract.records import NO_SUPERVISOR
from workloads.contract.rundir import OrchHome

SUBMIT_PATIENCE_S = 60.0
LAST_WORD_AGAIN_S = 30.0
TREE = Path(__file__).resolve().parents[2]
"""The files that this keeper runs from."""


def say(text: str) -> None:
    """One line in keeper.log (standard output is that file); dropped where the disk is full."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)


@dataclass
class Keeper:
    home: OrchHome
    node: RayNode | None = None
    runs: Runs = field(init=False)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _idle_since: float | None = None
    dumper: Dumper = field(default_factory=lambda: Dumper(say))
    troubles: Troubles = field(default_factory=lambda: Troubles(say))
    pythons: Pythons = field(default_factory=Pythons)
    looked: float = field(default_factory=time.monotonic)  # when the last look ended

    def __post_init__(self) -> None:
        self.runs = Runs(self.home, self.troubles)

    def tick(self, now: float) -> None:
        """One look, one decision. `now` is monotonic seconds. Never raises: what is wrong is in `troubles`."""
        with self.troubles.of(KEEPER, "a look"), self.lock:
            self._look_and_act(now)
        for watch in self.runs.active():  # also where nothing could be decided: dumps and lost shims do not wait
            with self.troubles.of(watch.run.run_id, "looking after its ranks"):
                self._care(watch)
        self.looked = time.monotonic()

    def _look_and_act(self, now: float) -> None:
        seen = []
        for run in self.runs.look(now):
            told = run
            with self.troubles.of(run.run_id, "asking Ray for its submission"):
                told = self._with_job_status(run)
            seen.append(told)
        self._find_node(seen)
        seen = self._with_stranded(seen, now)
        if any(r.needs_supervisor and not r.stranded for r in seen) or self._idle_since is None:
            self._idle_since = now
        for action in policy.decide(seen, self._ray_seen(), now - self._idle_since):
            with self.troubles.of(getattr(action, "run_id", KEEPER), type(action).__name__.lower()):
                self._act(action, now)

    def down(self) -> dict[str, Any]:
        """Stop Ray and end, unless a run has not ended: then `{"busy": [run ids]}`."""
        with self.lock:
            seen = self.runs.look(time.monotonic())
            busy = [r.run_id for r in seen if r.needs_supervisor]
            if busy:
                return {"busy": busy}
            self._find_node(seen)
            stayed = self.node.stop() if self.node else []
            if self.node:
                shutil.rmtree(self.node.temp, ignore_errors=True)
            say("going down on request")
            self.ended.set()
            return {"stopped": True, "stayed": stayed}

    def ray(self) -> dict[str, Any]:
        return self.node.view() if self.node else {"state": "down"}

    def _ray_seen(self) -> policy.RaySeen:
        if self.node is None:
            return policy.RaySeen("down", None, "")
        cluster = None if self.node.state == "down" else self.node.cluster_id
        lame = self.node.state == "up" and bool(self.node.python) and stamp_of(self.node.python) is None
        return policy.RaySeen(self.node.state, cluster, self.node.generation, lame)

    def _find_node(self, seen: list[policy.RunSeen]) -> None:
        """After a restart: the Ray node that an earlier keeper of this home started."""
        if self.node is not None:
            return
        for cluster in dict.fromkeys(run.cluster for run in reversed(seen)):
            node = self._node_for(cluster)
            if node.adopt():
                self.node = node
                say(f"found Ray of cluster {cluster} again")
                return

    def _node_for(self, cluster: str) -> RayNode:
        pods = [w.pod for w in self.runs.of_cluster(cluster)]
        return RayNode(self.home, cluster, pods[0], lambda: self._fit(cluster), say)

    def _fit(self, cluster: str) -> list[str]:
        """Pythons that can run Ray for this cluster, best first. LookupError when there is none."""
        watches = self.runs.of_cluster(cluster)
        waits, over = [w for w in watches if w.active], [w for w in reversed(watches) if not w.active]
        todays = any(goes_on_with_todays(w.run) for w in waits)
        return self.pythons.fit(candidates([w.spec for w in waits], [w.spec for w in over], any_ray=todays))

    def _with_stranded(self, seen: list[policy.RunSeen], now: float) -> list[policy.RunSeen]:
        """Each run with why no supervisor can be started for it, where that is so."""
        ray, why_not = self._ray_seen(), dict[str, str]()
        found = []
        for run in seen:
            watch, why = self.runs.watches[run.run_id], ""
            if run.needs_supervisor and not run.supervised:
                with self.troubles.of(run.run_id, "finding a Python for its supervisor"):
                    why = self._lost_tree(watch) or self._no_ray(run.cluster, ray, why_not)
            watch.stranded_since = (watch.stranded_since or now) if why else None
            if why:
                self.troubles.note(run.run_id, NO_SUPERVISOR, why)
            else:
                self.troubles.clear(run.run_id, NO_SUPERVISOR)
            for_s = now - watch.stranded_since if watch.stranded_since is not None else 0.0
            found.append(replace(run, stranded=why, stranded_s=for_s))
        return found

    def _lost_tree(self, watch: RunWatch) -> str:
        tree = tree_of(self.home, watch.run, watch.spec)
        return (
            "" if Path(tree).is_dir() else f"orch's own files that it was launched with are gone: {tree or 'unnamed'}"
        )

    def _no_ray(self, cluster: str, ray: policy.RaySeen, known: dict[str, str]) -> str:
        if ray.cluster == cluster and ray.state in ("starting", "up") and not ray.lame:
            return ""
        if cluster not in known:
            known[cluster] = ""
            try:
                self._fit(cluster)
            except LookupError as e:
                known[cluster] = str(e)
        return known[cluster]

    def _with_job_status(self, run: policy.RunSeen) -> policy.RunSeen:
        """Ask Ray about the last submission, but only where the answer can matter."""
        node = self.node
        if node is None or node.state != "up" or run.lock_free_s < policy.LOCK_FREE_S:
            return run
        if run.submitted_to != node.generation:
            return run
        directory = self.home.run(run.run_id)
        last = Submission.read(directory)
        try:
            status, message = node.api().status(f"{run.run_id}.{last.n}")
        except JobsApiError:
            return run
        if status in ("FAILED", "STOPPED") and last.error != message[:2000]:
            replace(last, error=message[:2000]).write(directory, f"the job is {status}")
            say(f"{run.run_id}: submission {last.n} {status}: {message[:300]}")
        return replace(run, job_status=status)

    def _act(self, action: policy.Action, now: float) -> None:
        match action:
            case policy.WantRay(cluster):
                if self.node is None or self.node.cluster_id != cluster:
                    self.node = self._node_for(cluster)
                self.node.tick(now)
            case policy.StopRay(why):
                if self.node is not None:
                    say(f"stopping Ray: {why}")
                    self.node.stop()
                    self.node = None
            case policy.Submit(run_id, why) if self.node is not None and self.node.state == "up":
                self._submit(self.runs.watches[run_id], why, now)
            case policy.LastWord(run_id, why):
                self._last_word(self.runs.watches[run_id], why, now)
            case policy.EndKeeper(why):
                say(f"ending: {why}")
                self.ended.set()

    def _submit(self, watch: RunWatch, why: str, now: float) -> None:
        """Submit `<run id>.<n>`. n grows only when the one before was taken: a lost reply is asked for again."""
        assert self.node is not None
        run, last = watch.run, Submission.read(watch.run)
        next_one = Submission(n=last.n + 1 if last.taken else last.n, taken=False)
        watch.tries = watch.tries + 1 if last.generation == self.node.generation else 0
        entrypoint = shlex.join([self.node.python, "-s", "-m", "orchestrator.supervisor", str(run.path)])
        env = {"PYTHONPATH": tree_of(self.home, run, watch.spec), "ORCH_HOME": str(self.home.path)}
        next_one.write(run, why)
        try:
            self.node.api().submit(f"{run.run_id}.{next_one.n}", entrypoint, env)
        except JobsApiError as e:  # just after a start Ray has no agent for jobs yet: the next tick asks again
            if e.status != 500 or now - self.node.since > SUBMIT_PATIENCE_S:
                replace(next_one, error=str(e)).write(run, why)
                say(f"{run.run_id}: submission {next_one.n} was not taken: {e}")
            return
        replace(next_one, taken=True, mono=now, generation=self.node.generation).write(run, why)
        say(f"{run.run_id}: submission {next_one.n} sent ({why})")

    def _last_word(self, watch: RunWatch, why: str, now: float) -> None:
        """By a process that needs no Ray, from the keeper's own tree: older ones have none such."""
        if watch.last_word is not None and now - watch.last_word < LAST_WORD_AGAIN_S:
            return
        watch.last_word = now
        say(f"{watch.run.run_id}: it is given up")
        python = interpreter()
        argv = [python, "-s", "-m", "orchestrator.supervisor.lastword", str(watch.run.path), why]
        spawn_detached(python, argv, env=clean_env(os.environ, PYTHONPATH=str(TREE)), log=watch.run.supervisor_log)

    def _care(self, watch: RunWatch) -> None:
        """Per run: lost and stopped shims, dump requests."""
        attempt = newest_attempt(watch.run)
        if attempt:
            for rank in wake_stopped(watch.run, attempt):
                say(f"{watch.run.run_id}: the shim of rank {rank} (attempt {attempt}) was stopped (T); it was woken")
            for rank in reap_lost(watch.run, attempt):
                say(
                    f"{watch.run.run_id}: the shim of rank {rank} (attempt {attempt}) was lost; its record was finished"
                )
        self.dumper.care(watch.run)
