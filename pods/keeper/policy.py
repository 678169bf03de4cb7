"""What a keeper should do next: a pure function of what it saw. Time is given, nothing is read or written.

Rules. A run that has not ended, or has an unanswered resume request, needs a supervisor. While one needs it, Ray is
kept up. A supervisor is submitted when its lock is free and nothing submitted earlier can still become one. A run for
which none can be started keeps no other waiting, and is given up after a while. Ray stops 10 minutes after the last
run; the keeper ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass

IDLE_LIMIT_S = 600.0
LOCK_FREE_S = 10.0
STRANDED_S = 30.0  # an environment may be about to be made anew
SUBMIT_GRACE_S = 60.0
RETRY_BACKOFF_S = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
DONE_JOB = frozenset({"SUCCEEDED", "FAILED", "STOPPED", "UNKNOWN"})


@dataclass(frozen=True)
class RunSeen:
    run_id: str
    cluster: str
    needs_supervisor: bool
    supervised: bool  # its supervisor.lock is held
    lock_free_s: float  # how long the lock has been seen free; 0 while held
    submitted_to: str | None = None  # generation of the cluster it was submitted to last
    submitted_age_s: float = float("inf")
    job_status: str | None = None  # of the last submission, when it was asked for
    tries: int = 0  # submissions to this generation that brought no supervisor
    asked_again: bool = False  # it has ended, and a resume was requested after the last submission
    stranded: str = ""  # why no supervisor can be started for it here
    stranded_s: float = 0.0  # for how long

    @property
    def alone(self) -> bool:
        """It has no supervisor, and none will come back by itself."""
        return self.needs_supervisor and not self.supervised and (self.fresh or self.lock_free_s >= LOCK_FREE_S)

    @property
    def fresh(self) -> bool:
        return self.submitted_to is None or self.asked_again


@dataclass(frozen=True)
class RaySeen:
    state: str  # down, starting, up, failed
    cluster: str | None
    generation: str
    lame: bool = False  # its Python is gone: what lives in it lives on, but it starts nothing any more


@dataclass(frozen=True)
class WantRay:
    cluster: str


@dataclass(frozen=True)
class StopRay:
    why: str


@dataclass(frozen=True)
class Submit:
    run_id: str
    why: str


@dataclass(frozen=True)
class EndKeeper:
    why: str


@dataclass(frozen=True)
class LastWord:
    """Have the end of a run written that nobody can supervise."""

    run_id: str
    why: str


Action = WantRay | StopRay | Submit | LastWord | EndKeeper


def decide(runs: list[RunSeen], ray: RaySeen, idle_s: float) -> list[Action]:
    """Actions in order. `idle_s`: how long no run has needed a supervisor that it can have."""
    stranded = [r for r in runs if r.needs_supervisor and r.stranded]
    needing = [r for r in runs if r.needs_supervisor and not r.stranded]
    words: list[Action] = [
        LastWord(r.run_id, r.stranded) for r in stranded if r.alone and r.stranded_s >= STRANDED_S
    ]  # fmt: skip
    if not needing:
        if idle_s < IDLE_LIMIT_S:
            return words
        why = f"no run for {IDLE_LIMIT_S:.0f} s"
        if ray.state != "down":
            return [*words, StopRay(why)]
        return words if stranded else [EndKeeper(why)]
    return words + _serve(needing, ray)


def _serve(needing: list[RunSeen], ray: RaySeen) -> list[Action]:
    wanted = _wanted_cluster(needing, ray)
    if ray.cluster not in (None, wanted):
        return [StopRay(f"cluster {wanted} is wanted")]
    if ray.lame and any(r.alone for r in needing if r.cluster == wanted):
        return [StopRay("its Python is gone, and a run needs a supervisor")]
    actions: list[Action] = [WantRay(wanted)]
    if ray.state == "up":
        for run in needing:
            reason = _submit_why(run, ray)
            if run.cluster == wanted and reason:
                actions.append(Submit(run.run_id, reason))
    return actions


def _wanted_cluster(needing: list[RunSeen], ray: RaySeen) -> str:
    """The cluster that is up as long as a run needs it, else that of the oldest run that waits."""
    if any(r.cluster == ray.cluster for r in needing):
        assert ray.cluster is not None
        return ray.cluster
    return needing[0].cluster


def _submit_why(run: RunSeen, ray: RaySeen) -> str | None:
    """Why this run is submitted now, or None."""
    if run.supervised:
        return None
    if run.submitted_to is None:
        return "first submission"
    if run.asked_again:
        return "a resume was requested"
    if run.submitted_to != ray.generation:
        return "Ray was restarted"
    wait_s = RETRY_BACKOFF_S[min(run.tries, len(RETRY_BACKOFF_S) - 1)]
    if run.lock_free_s < LOCK_FREE_S or run.submitted_age_s < LOCK_FREE_S + wait_s:
        return None
    if run.job_status in DONE_JOB:
        return f"no supervisor although the last submission is {run.job_status}"
    return "the last submission brought no supervisor" if run.submitted_age_s > SUBMIT_GRACE_S + wait_s else None
