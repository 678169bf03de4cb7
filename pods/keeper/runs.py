"""The keeper's view of the runs on its pod, read from their directories and nothing else.

A run directory that cannot be read is skipped and said once. Ended runs cost two `stat` calls a look.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.keeper.policy import RunSeen
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir
from workloads.contract.states import ENDED

ACK_SUFFIX = ".ack.json"


def lock_is_held(path: Path) -> bool:
    """True while another process holds the `flock`. A shared probe, released at once; False when the file is absent."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def run_ids(home: OrchHome) -> set[str]:
    """Ids of the runs on disk."""
    try:
        return {name for name in os.listdir(home.runs) if RUN_ID_PATTERN.fullmatch(name)}
    except OSError:
        return set()


def pending_requests(run: RunDir, verb: str) -> list[Path]:
    """Requests of this verb that nobody has answered, oldest first."""
    try:
        names = sorted(os.listdir(run.requests))
    except OSError:
        return []
    known = set(names)
    return [
        run.requests / n
        for n in names
        if f"-{verb}-" in n and n.endswith(".json") and not n.endswith(ACK_SUFFIX)
        and n.removesuffix(".json") + ACK_SUFFIX not in known
    ]  # fmt: skip


def tree_of(home: OrchHome, run: RunDir, spec: dict[str, Any]) -> str:
    """Orch's own tree for this run: of the newest `resume --code current`, else the one it was launched with."""
    try:
        names = sorted((n for n in os.listdir(run.requests) if "-resume-" in n), reverse=True)
    except OSError:
        names = []
    for name in names:
        args = (try_read_json(run.requests / name) or {}).get("args")
        tree = Path(str(args.get("tree", ""))) if isinstance(args, dict) else Path()
        if tree.parent == home.trees and tree.is_dir():
            return str(tree)
    return str(spec.get("tree", ""))


@dataclass(frozen=True)
class Submission:
    """The last Ray job submitted for a run, as `submissions.json` tells it. A foreign or torn file is like none."""

    n: int = 0
    taken: bool = True  # False: the number may still be unused
    generation: str | None = None  # the life of Ray that took it
    mono: float | None = None  # monotonic seconds of that moment, on this boot
    error: str = ""

    @classmethod
    def read(cls, run: RunDir) -> Submission:
        row = try_read_json(run.submissions) or {}
        n, generation, mono = row.get("n"), row.get("generation"), row.get("mono")
        return cls(
            n=n if type(n) is int and n >= 0 else 0,
            taken=row.get("taken") is not False,
            generation=generation if isinstance(generation, str) else None,
            mono=float(mono) if isinstance(mono, int | float) and abs(mono) < 1e12 else None,
            error=str(row.get("error", "")),
        )

    def write(self, run: RunDir, why: str) -> None:
        row = {"v": 1, "n": self.n, "ts": time.time(), "why": why, "taken": self.taken}
        told = {"generation": self.generation, "mono": self.mono, "error": self.error or None}
        atomic_write_json(run.submissions, row | {k: v for k, v in told.items() if v is not None})


@dataclass
class RunWatch:
    """One run directory, looked at again and again."""

    run: RunDir
    spec: dict[str, Any]
    active: bool = True
    resume: Path | None = None  # the newest unanswered request to resume, once the run has ended
    free_since: float | None = None
    tries: int = 0
    _stamp: tuple[int, int] = (-1, -1)

    def look(self, now: float) -> RunSeen:
        stamp = (_mtime_ns(self.run.status), _mtime_ns(self.run.requests))
        if stamp != self._stamp:
            self._stamp = stamp
            status = try_read_json(self.run.status) or {}
            ended = str(status.get("state")) in ENDED
            self.resume = next(iter(pending_requests(self.run, "resume")[-1:]), None) if ended else None
            self.active = not ended or self.resume is not None
        supervised = self.active and lock_is_held(self.run.supervisor_lock)
        if supervised or not self.active:
            self.free_since, self.tries = None, 0
        elif self.free_since is None:
            self.free_since = now
        submission = Submission.read(self.run) if self.active and not supervised else Submission()
        return RunSeen(
            run_id=self.run.run_id,
            cluster=str(self.spec.get("cluster", "")),
            needs_supervisor=self.active,
            supervised=supervised,
            lock_free_s=now - self.free_since if self.free_since is not None else 0.0,
            submitted_to=submission.generation,
            submitted_age_s=float("inf") if submission.mono is None else now - submission.mono,
            tries=self.tries,
            asked_again=self.resume is not None and _mtime_ns(self.resume) > _mtime_ns(self.run.submissions),
        )


@dataclass
class Runs:
    home: OrchHome
    say: Callable[[str], None]
    watches: dict[str, RunWatch] = field(default_factory=dict)
    _bad: set[str] = field(default_factory=set)

    def look(self, now: float) -> list[RunSeen]:
        """Every run on this pod, oldest first."""
        for name in run_ids(self.home):
            if name not in self.watches:
                self._add(name)
        for name in [n for n in self.watches if not self.watches[n].run.path.is_dir()]:
            del self.watches[name]
        return [w.look(now) for w in sorted(self.watches.values(), key=_created)]

    def active(self) -> Iterator[RunWatch]:
        return (w for w in list(self.watches.values()) if w.active)

    def _add(self, name: str) -> None:
        run = self.home.run(name)
        spec = try_read_json(run.run_json)
        if spec is not None and isinstance(spec.get("cluster"), str) and isinstance(spec.get("pods"), list):
            self.watches[name] = RunWatch(run, spec)
        elif name not in self._bad:
            self._bad.add(name)
            self.say(f"{name}: its run.json cannot be read; left alone")


def _created(watch: RunWatch) -> float:
    created = watch.spec.get("created")
    return float(created) if isinstance(created, int | float) else 0.0


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
