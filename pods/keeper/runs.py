"""The keeper's view of the runs on its pod, read from their directories and nothing else.

A run directory that cannot be read is skipped and said once; what is wrong with one run is its own trouble. Ended runs
cost two `stat` calls a look.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.keeper.policy import RunSeen
from pods.keeper.troubles import Troubles
from workloads.contract.errors import escape
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome, RunDir, verb_of_request
from workloads.contract.states import ENDED

CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""It names a folder."""
READING = "reading its run.json"


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
        if verb_of_request(n) == verb and RunDir.ack_of(run.requests / n).name not in known
    ]


def tree_of(home: OrchHome, run: RunDir, spec: dict[str, Any]) -> str:
    """Orch's own tree for this run: of the newest `resume --code current`, else the one it was launched with."""
    for args in _resumes(run):
        tree = Path(str(args.get("tree", "")))
        if tree.parent == home.trees and tree.is_dir():
            return str(tree)
    return str(spec.get("tree", ""))


def goes_on_with_todays(run: RunDir) -> bool:
    """The newest resume asked for the orch of that day."""
    return next((args.get("code") == "current" for args in _resumes(run)), False)


def _resumes(run: RunDir) -> Iterator[dict[str, Any]]:
    """What each request to resume asked for, newest first."""
    try:
        names = sorted((n for n in os.listdir(run.requests) if verb_of_request(n) == "resume"), reverse=True)
    except OSError:
        return
    for name in names:
        args = (try_read_json(run.requests / name) or {}).get("args")
        if isinstance(args, dict):
            yield args


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
    stranded_since: float | None = None  # monotonic seconds; kept for the keeper, as the next
    last_word: float | None = None
    _stamp: tuple[int, int] = (-1, -1)

    @property
    def cluster(self) -> str:
        return str(self.spec.get("cluster", ""))

    @property
    def pod(self) -> str:
        """The name of this machine's pod, by run.json."""
        pods = self.spec.get("pods")
        first = pods[0] if isinstance(pods, list) and pods else None
        return str(first.get("name", "local")) if isinstance(first, dict) else "local"

    def unseen(self) -> RunSeen:
        """Of a run that could not be looked at: as it was, and nothing is to be done."""
        return RunSeen(self.run.run_id, self.cluster, self.active, supervised=True, lock_free_s=0.0)

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
            cluster=self.cluster,
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
    troubles: Troubles
    watches: dict[str, RunWatch] = field(default_factory=dict)

    def look(self, now: float) -> list[RunSeen]:
        """Every run on this pod, oldest first."""
        there = run_ids(self.home)
        for name in there - self.watches.keys():
            self._add(name)
        for name in [n for n in self.watches if _is_gone(self.watches[n].run.path)]:
            del self.watches[name]
        self.troubles.forget(there)
        found = []
        for watch in sorted(self.watches.values(), key=_created):
            seen = watch.unseen()
            with self.troubles.of(watch.run.run_id, "a look at it"):
                seen = watch.look(now)
            found.append(seen)
        return found

    def of_cluster(self, cluster: str) -> list[RunWatch]:
        """Oldest first."""
        return sorted((w for w in self.watches.values() if w.cluster == cluster), key=_created)

    def active(self) -> Iterator[RunWatch]:
        return (w for w in list(self.watches.values()) if w.active)

    def _add(self, name: str) -> None:
        run = self.home.run(name)
        spec = try_read_json(run.run_json)
        wrong = _not_ours(spec, self.home)
        if spec is not None and not wrong:
            self.watches[name] = RunWatch(run, spec)
            self.troubles.clear(name, READING)
        else:
            self.troubles.note(name, READING, f"{wrong}; left alone")


def _not_ours(spec: dict[str, Any] | None, home: OrchHome) -> str:
    """Why a run of this home is not looked after; "" when it is. What a copied home holds is the other home's: its
    supervisor would work there."""
    cluster = spec.get("cluster") if spec is not None else None
    pods = spec.get("pods") if spec is not None else None
    if not isinstance(cluster, str) or not CLUSTER.fullmatch(cluster) or not isinstance(pods, list):
        return "its run.json cannot be read"
    root = pods[0].get("root") if pods and isinstance(pods[0], dict) else None
    if isinstance(root, str) and not _is_same(root, home.path):
        return f"it belongs to the home {escape(root, 200)}, of which this one seems to be a copy"
    return ""


def _is_same(one: str, other: Path) -> bool:
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _is_gone(path: Path) -> bool:
    """What cannot be seen is not gone."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _created(watch: RunWatch) -> float:
    created = watch.spec.get("created")
    return float(created) if isinstance(created, int | float) and abs(created) < 1e12 else 0.0


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
