"""One round with one pod: ask what is new in its runs, check the answer, write it into the copies at home.

Called by `orchestrator.runs.source` (one run, again and again) and `orchestrator.runs.fleet` (all runs of a pod, once).
Never retries and never waits longer than one call; knows no names of pods but the one it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.runs.index import LOCAL
from orchestrator.runs.mirror import Index, Mirror, News, nonsense, parse_news
from pods.remote.mirror import BUDGET_BYTES
from pods.remote.runfiles import STATUS
from workloads.contract.rundir import RUN_ID_PATTERN, OrchHome
from workloads.contract.states import RunState

if TYPE_CHECKING:
    from pods.pod import Pod

CALL_S = 60.0
MAX_RUNS = 10_000
MAX_OBSERVED = 8192
_STATES = frozenset(RunState)


@dataclass(frozen=True)
class Ask:
    """What is wanted of one run: groups of files, and of more files their last lines (None: all of them)."""

    mirror: Mirror
    groups: Sequence[str] = (STATUS,)
    extra: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Listed:
    """A run that lies on a pod, as the pod says."""

    run: str
    state: str
    created: float | None
    kind: str
    head: str | None


@dataclass
class Round:
    more: bool = False
    size_bytes: int = 0
    missing: set[str] = field(default_factory=set)
    listed: list[Listed] = field(default_factory=list)
    mirrors: dict[str, Mirror] = field(default_factory=dict)  # of every run in the answer that has a copy now
    elsewhere: dict[str, str] = field(default_factory=dict)  # run -> the pod, or `local`, that it is known from


def sync(
    home: OrchHome,
    pod: Pod,
    asks: Mapping[str, Ask],
    *,
    living: bool = False,
    newest: int = 0,
    listing: bool = False,
    budget: int = BUDGET_BYTES,
    timeout_s: float = CALL_S,
) -> Round:
    """One question and its answer. UnreachableError; RemoteError for an answer that is none; LocalError (a full disk).

    `living`, `newest`: also the runs of the pod that have not ended, and so many of those that have.
    """
    have = {run: ask.mirror.have() for run, ask in asks.items()}
    asked = {
        run: {"groups": list(ask.groups), "have": have[run], "extra": dict(ask.extra)} for run, ask in asks.items()
    }
    args = {"living": living, "newest": newest, "list": listing, "groups": [STATUS], "budget": budget}
    answer = pod.call("mirror.sync", args, json.dumps(asked).encode(), timeout_s=timeout_s)
    fields, runs = answer.fields, answer.fields.get("runs")
    pod_now = _number(fields.get("now"))
    if not isinstance(runs, dict) or len(runs) > MAX_RUNS or pod_now is None:
        raise nonsense(pod.name, "no runs and no time")
    done = Round(more=fields.get("more") is True, listed=_listed(pod.name, fields.get("listed")))
    common = {"pod_now": pod_now, "keeper": fields.get("keeper") is True, "root": str(pod.home.path)[:1000]}
    data, at = memoryview(answer.data), 0
    for run, told in runs.items():
        if not RUN_ID_PATTERN.fullmatch(run) or not isinstance(told, dict):
            raise nonsense(pod.name, "a run that is none", run)
        if told.get("missing") is True:
            done.missing.add(run)
            continue
        mirror = asks[run].mirror if run in asks else Mirror(home.mirrored(run), pod.name)
        news, used = parse_news(pod.name, told, data[at:], have.get(run, {}))
        at += used
        if run not in asks and _is_known_elsewhere(home, run, mirror, pod.name, done):
            continue
        sight = {**common, "observed": _observed(told.get("observed"))}
        done.size_bytes += _apply(mirror, news, told, sight, unasked=run not in asks)
        done.mirrors[run] = mirror
    if done.more and not data and not done.size_bytes:
        raise nonsense(pod.name, "the word that there is more, and nothing with it")
    for run in done.missing & asks.keys():
        asks[run].mirror.note_missing(pod_now)
    return done


def _apply(
    mirror: Mirror, news: list[News], told: Mapping[str, Any], sight: Mapping[str, Any], *, unasked: bool
) -> int:
    if unasked:
        mirror.expect_all()
    gone = told.get("gone")
    return mirror.apply(news, [g for g in gone if isinstance(g, str)] if isinstance(gone, list) else [], sight)


def _is_known_elsewhere(home: OrchHome, run: str, mirror: Mirror, pod: str, done: Round) -> bool:
    """Whether a run that the pod tells of is another pod's, or this machine's: it is then not mixed with that one."""
    if home.run(run).path.is_dir():
        done.elsewhere[run] = LOCAL
        return True
    known = Index.read(mirror.run)
    if known is None or known.pod in ("", pod):
        return False
    done.elsewhere[run] = known.pod
    return True


def _listed(pod: str, rows: object) -> list[Listed]:
    if not isinstance(rows, list) or len(rows) > MAX_RUNS:
        raise nonsense(pod, "a list of runs that is none")
    found = []
    for row in rows:
        if not isinstance(row, dict) or not RUN_ID_PATTERN.fullmatch(str(row.get("run"))):
            raise nonsense(pod, "a run that is none", row)
        state, head = row.get("state"), row.get("head")
        found.append(
            Listed(
                str(row["run"]), state if isinstance(state, str) and state in _STATES else RunState.QUEUED.value,
                _number(row.get("created")), str(row.get("kind"))[:40], head[:64] if isinstance(head, str) else None,
            )
        )  # fmt: skip
    return found


def _observed(row: object) -> dict[str, Any]:
    """What the pod saw of the processes, with nothing in it that is not what it should be."""
    told: Mapping[str, Any] = row if isinstance(row, dict) else {}
    alive, frozen, asleep = told.get("alive"), told.get("frozen"), told.get("asleep")
    lives = alive.items() if isinstance(alive, dict) and len(alive) <= MAX_OBSERVED else ()
    return {
        "supervised": told.get("supervised") is True,
        "alive": {k: v for k, v in lives if k.isascii() and k.isdigit() and len(k) < 8 and isinstance(v, bool)},
        "frozen": [k for k in frozen if type(k) is int][:MAX_OBSERVED] if isinstance(frozen, list) else [],
        "asleep": asleep[:1000] if isinstance(asleep, str) else None,
    }


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
    return float(value) if good and isinstance(value, int | float) and math.isfinite(value) else None
