"""Which Python runs Ray, and the supervisors in it: one that exists and has Ray.

A run's directory outlives its environment: people delete checkouts with their `.venv`. So the Python is chosen anew at
each start of Ray, out of those of the runs and the keeper's own, and one that is gone is passed over. Called by the
keeper; it asks interpreters by a short process, and remembers what they said.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pods.keeper.spawn import clean_env
from workloads.contract.errors import escape

ASK_S = 30.0
ASK_AGAIN_S = 30.0  # of one that was not fit: somebody may be installing into it
MAX_TOLD = 3
_ASK = (
    "import importlib.metadata as m\n"
    "try:\n v = m.version('ray')\n"
    "except m.PackageNotFoundError:\n v = ''\n"
    "print('ray=' + v)"
)


@dataclass(frozen=True)
class Candidate:
    python: str
    version: str | None = None  # the Ray it must have; None: any, for it is a run's own


def orch_python_of(spec: Mapping[str, Any]) -> str:
    """The interpreter of orch's own parts on this pod, as a run.json names it; "" where it names none."""
    pods = spec.get("pods")
    pod = pods[0] if isinstance(pods, list) and pods and isinstance(pods[0], dict) else {}
    return next((p for p in (pod.get("orch_python"), pod.get("python")) if isinstance(p, str) and p), "")


def candidates(
    waiting: Iterable[Mapping[str, Any]], ended: Iterable[Mapping[str, Any]], *, any_ray: bool = False
) -> list[Candidate]:
    """Pythons for Ray out of the run.jsons of one cluster, best first: those of the runs that wait, the keeper's own,
    those of runs that have ended. Unless `any_ray`, a foreign one must have the Ray that the runs were launched with.
    """
    waits, over = list(waiting), list(ended)
    version = None if any_ray else next((v for spec in [*waits, *over] if (v := _ray_of(spec))), None)
    found = [Candidate(orch_python_of(spec)) for spec in waits]
    found.append(Candidate(sys.executable, version))
    found += [Candidate(orch_python_of(spec), version) for spec in over]
    first: dict[str, Candidate] = {}
    for c in found:
        if c.python:
            first.setdefault(c.python, c)
    return list(first.values())


def _ray_of(spec: Mapping[str, Any]) -> str | None:
    versions = spec.get("versions")
    told = versions.get("ray") if isinstance(versions, dict) else None
    return told if isinstance(told, str) and told[:1].isdigit() else None


@dataclass(frozen=True)
class _Said:
    """What an interpreter said of itself: its Ray, or why there is none."""

    stamp: tuple[int, int, int]
    at: float  # monotonic seconds
    ray: str = ""
    problem: str = ""


@dataclass
class Pythons:
    _said: dict[str, _Said] = field(default_factory=dict)

    def fit(self, found: Iterable[Candidate]) -> list[str]:
        """Those that can run Ray, in order. LookupError says of the first ones why none can."""
        good, bad = [], []
        for c in found:
            problem = self.problem(c)
            if problem:
                bad.append(f"{escape(c.python, 200)} {problem}")
            else:
                good.append(c.python)
        if not good:
            more = f", and {len(bad) - MAX_TOLD} more" if len(bad) > MAX_TOLD else ""
            raise LookupError(f"no Python here can run Ray: {'; '.join(bad[:MAX_TOLD]) or 'no run names one'}{more}")
        return good

    def problem(self, c: Candidate) -> str:
        """Why it cannot run Ray; "" when it can."""
        stamp = stamp_of(c.python)
        if stamp is None:
            self._said.pop(c.python, None)
            return "is gone"
        said = self._said.get(c.python)
        if said is None or said.stamp != stamp or (said.problem and time.monotonic() - said.at > ASK_AGAIN_S):
            said = self._said[c.python] = _ask(c.python, stamp)
        wrong = f"has Ray {said.ray}, not {c.version}" if c.version not in (None, said.ray) else ""
        return said.problem or wrong


def stamp_of(python: str) -> tuple[int, int, int] | None:
    """Changes when the program behind this path does; None when there is none."""
    try:
        st = Path(python).stat()
    except (OSError, ValueError):
        return None
    return (st.st_dev, st.st_ino, st.st_mtime_ns) if stat.S_ISREG(st.st_mode) else None


def _ask(python: str, stamp: tuple[int, int, int]) -> _Said:
    try:
        done = subprocess.run(
            [python, "-s", "-c", _ASK], env=clean_env(os.environ), cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, timeout=ASK_S, check=False,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        return _Said(stamp, time.monotonic(), problem=f"does not start: {escape(e, 200)}")
    told = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0 or not told.startswith("ray="):
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return _Said(stamp, time.monotonic(), problem=f"does not work: {escape(last, 200)}")
    version = escape(told.removeprefix("ray="), 40)
    return _Said(stamp, time.monotonic(), version, "" if version else "has no Ray")
