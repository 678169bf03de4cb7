"""The keeper's work: one tick looks at the runs, asks `policy.decide` and carries out what it says.

Called by `__main__` about once a second and at every poke. Everything it knows is in files; see the package docstring.
"""

from __future__ import annotations

import shlex
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from pods.keeper import policy
from pods.keeper.jobsapi import JobsApiError
from pods.keeper.raynode import RayNode
from pods.keeper.runs import Runs, RunWatch, Submission, pending_requests, tree_of
from pods.remote.dump import dump_run, group
from pods.remote.reap import reap_lost
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.records import Ack, as_wire
from workloads.contract.rundir import OrchHome, RunDir

MAX_DUMP_THREADS = 4
SUBMIT_PATIENCE_S = 60.0


def say(text: str) -> None:
    """One line in keeper.log (standard output is that file)."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)


@dataclass
class Keeper:
    home: OrchHome
    node: RayNode | None = None
    runs: Runs = field(init=False)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _idle_since: float | None = None
    _dumping: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.runs = Runs(self.home, say)

    def tick(self, now: float) -> None:
        """One look, one decision. `now` is monotonic seconds."""
        with self.lock:
            seen = [self._with_job_status(r) for r in self.runs.look(now)]
            self._find_node(seen)
            if any(r.needs_supervisor for r in seen) or self._idle_since is None:
                self._idle_since = now
            for action in policy.decide(seen, self._ray_seen(), now - self._idle_since):
                self._act(action, now)
        for watch in self.runs.active():
            self._care(watch)

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
        return policy.RaySeen(self.node.state, cluster, self.node.generation)

    def _find_node(self, seen: list[policy.RunSeen]) -> None:
        """After a restart: the Ray node that an earlier keeper of this home started."""
        if self.node is not None:
            return
        for run in reversed(seen):
            node = self._node_for(run.cluster)
            if node.adopt():
                self.node = node
                say(f"found Ray of cluster {run.cluster} again")
                return

    def _node_for(self, cluster: str) -> RayNode:
        watch = next(w for w in self.runs.watches.values() if w.spec.get("cluster") == cluster)
        pod = watch.spec["pods"][0]
        return RayNode(self.home, cluster, pod["name"], pod.get("orch_python") or pod["python"], say)

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

    def _care(self, watch: RunWatch) -> None:
        """Per run: lost shims, dump requests."""
        attempts = _attempts(watch.run)
        for attempt in attempts[-1:]:
            for rank in reap_lost(watch.run, attempt):
                say(
                    f"{watch.run.run_id}: the shim of rank {rank} (attempt {attempt}) was lost; its record was finished"
                )
        for request in pending_requests(watch.run, "dump"):
            if request.name not in self._dumping and len(self._dumping) < MAX_DUMP_THREADS:
                self._dumping.add(request.name)
                threading.Thread(target=self._dump, args=(watch.run, request.name), daemon=True).start()

    def _dump(self, run: RunDir, name: str) -> None:
        path = run.requests / name
        try:
            request = try_read_json(path) or {}
            ack = carry_out_dump(run, request)
        except Exception as e:  # a dump must be answered, whatever went wrong
            ack = Ack(False, "keeper", time.time(), f"{type(e).__name__}: {e}")
        try:
            atomic_write_json(RunDir.ack_of(path), as_wire(ack))
        except OSError as e:
            say(f"{run.run_id}: the dump could not be answered: {e}")
        finally:
            self._dumping.discard(name)


def carry_out_dump(run: RunDir, request: dict[str, Any]) -> Ack:
    """Dump the ranks a request names (all by default) and say how it went."""
    args = request.get("args")
    ranks = args.get("ranks") if isinstance(args, dict) else None
    if ranks is not None and not (isinstance(ranks, list) and all(type(r) is int for r in ranks)):
        return Ack(False, "keeper", time.time(), "args.ranks is not a list of rank numbers")
    dumps = dump_run(run, ranks=ranks, why=str(request.get("why", ""))[:200], by=str(request.get("who", ""))[:80])
    if not dumps:
        return Ack(False, "keeper", time.time(), "no living rank of this run is on this pod")
    data = {
        "groups": [{"ranks": list(rs), "text": text} for rs, text in group(dumps)],
        "files": sorted({d.file for d in dumps if d.file}),
        "notes": [f"rank {d.rank} pid {d.pid}: {d.note}" for d in dumps if d.note],
    }
    return Ack(any(d.how != "none" for d in dumps), "keeper", time.time(), "", data)


def _attempts(run: RunDir) -> list[int]:
    try:
        names = [p.name for p in run.ranks.iterdir()]
    except OSError:
        return []
    return sorted(int(n[1:]) for n in names if n[:1] == "a" and n[1:].isdigit())
