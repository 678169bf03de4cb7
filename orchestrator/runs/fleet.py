"""All pods of the inventory asked at once what runs they have, each for a bounded time; the copies at home filled.

A pod that cannot be asked costs the others nothing: its runs are shown from their copies, and it is told in one line.
Called by `orch status`, `orch runs --from` and `orch halt --all`. SSH and YAML are imported only where the inventory
has a pod that needs them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.runs.index import LOCAL, IndexRow, list_runs, remember, row_of
from orchestrator.runs.mirror import Index, Mirror
from orchestrator.runs.render import one_line
from orchestrator.runs.source import FarSource, LocalSource, Source
from orchestrator.runs.sync import Ask, Listed, Round, sync
from orchestrator.runs.views import state_of
from workloads.contract.errors import OrchError, RemoteError, UnreachableError
from workloads.contract.files import try_read_json
from workloads.contract.rundir import OrchHome
from workloads.contract.states import ENDED

if TYPE_CHECKING:
    from pods.pod import Pod
    from workloads.contract.config.inventory import PodSpec

ENDED_SHOWN = 10
CONNECT_S = 7.0
ANSWER_S = 30.0
ROUND_BYTES = 2 << 20
MAX_ROUNDS = 200
Opener = Callable[[str, "PodSpec"], "Pod"]


@dataclass
class Look:
    """What one pod said."""

    name: str
    pod: Pod
    rounds: list[Round] = field(default_factory=list)
    error: OrchError | None = None
    home: OrchHome | None = None  # there
    connected: bool = False
    done: bool = False

    @property
    def elsewhere(self) -> dict[str, str]:
        return {run: pod for r in self.rounds for run, pod in r.elsewhere.items()}


def has_far_pods(home: OrchHome) -> bool:
    """Whether the inventory may name a pod on another machine: a look at its text, so that nothing is imported."""
    try:
        return "ssh" in home.inventory.read_text(errors="replace")
    except OSError:
        return False


def far_pods(home: OrchHome) -> dict[str, PodSpec]:
    """The pods on other machines. SpecError when the inventory is wrong."""
    from pods.inventory import load_inventory

    return {name: spec for name, spec in load_inventory(home).pods.items() if not spec.local}


def survey(
    home: OrchHome, pods: Mapping[str, PodSpec], open_pod: Opener | None = None, *, reach_s: float | None = None
) -> list[Look]:
    """Ask all of `pods` at once; copies and index are up to date then. The caller closes the pods (`close_all`).

    A pod that gives no sign of life for `reach_s`, is not connected after 7 s, or has not answered after 30 s, is not
    waited for.
    """
    opener = open_pod or _opener(home, reach_s)
    rows = list_runs(home)
    looks, threads = [], []
    for name, spec in pods.items():
        look = Look(name, opener(name, spec))
        asks = _asks(home, [r for r in rows if r.pod == name], name)
        thread = threading.Thread(target=_look, args=(home, look, asks), name=f"orch-{name}", daemon=True)
        thread.start()
        looks.append(look)
        threads.append(thread)
    began = time.monotonic()
    for look, thread in zip(looks, threads, strict=True):
        thread.join(max(began + CONNECT_S - time.monotonic(), 0))
        if look.connected:
            thread.join(max(began + ANSWER_S - time.monotonic(), 0))
        if not look.done and look.error is None:
            waited = ANSWER_S if look.connected else CONNECT_S
            look.error = UnreachableError("E-MIRROR-008", f"pod {look.name} did not answer in {waited:.0f} s")
    _remember(home, rows, looks)
    return looks


def _opener(home: OrchHome, reach_s: float | None) -> Opener:
    from pods.access import open_pod

    return lambda name, spec: open_pod(home, name, spec, reach_s=reach_s)


def _asks(home: OrchHome, rows: list[IndexRow], pod: str) -> dict[str, Ask]:
    """The runs of a pod of which there is a copy, but for the long ended ones."""
    copies = [home.mirrored(r.run) for r in rows if home.mirrored(r.run).path.is_dir()]
    ended = [c for c in copies if state_of(c) in ENDED]
    chosen = [c for c in copies if c not in ended] + ended[:ENDED_SHOWN]
    return {c.run_id: Ask(Mirror(c, pod)) for c in chosen}


def _look(home: OrchHome, look: Look, asks: dict[str, Ask]) -> None:
    try:
        look.home = look.pod.home  # connects
        look.connected = True
        for turn in range(MAX_ROUNDS):
            first = turn == 0
            done = sync(home, look.pod, asks, living=first, newest=ENDED_SHOWN if first else 0, listing=first,
                        budget=ROUND_BYTES)  # fmt: skip
            look.rounds.append(done)
            asks = {run: Ask(mirror) for run, mirror in done.mirrors.items()}
            if not done.more:
                break
        else:
            raise RemoteError("E-MIRROR-006", f"pod {look.name} sends without end")
    except OrchError as e:
        look.error = e
    except Exception as e:  # the top of a thread: whatever a pod brings about is told, and the others are shown
        look.error = RemoteError("E-MIRROR-009", f"pod {look.name} could not be read: {type(e).__name__}: {e}")
    look.done = True


def _remember(home: OrchHome, rows: list[IndexRow], looks: list[Look]) -> None:
    """New runs; and those of a pod that was forgotten, which lie on the pod that tells of them now."""
    known, asked = {r.run: r for r in rows}, {look.name for look in looks}
    names: set[str] | None = None  # of the inventory, which is read only for a run that another pod has
    new = []
    for look in looks:
        for told in (t for r in look.rounds for t in r.listed):
            row, old = row_of(told.run, told.kind, told.created, look.name), known.get(told.run)
            if old is not None and old.pod and old.pod not in asked:
                names = set(far_pods(home)) if names is None else names
                old = old if old.pod in names else None
            if old is None and row is not None:
                known[told.run] = row
                new.append(row)
    remember(home, new)


@dataclass(frozen=True)
class Double:
    """A run that a pod tells of and another machine has."""

    told: Listed
    look: Look
    owner: str  # the pod whose run is shown; `local` for this machine

    @property
    def words(self) -> str:
        local = self.owner == LOCAL
        both = f"on {'this machine' if local else f'pod {self.owner}'} and on pod {self.look.name}"
        return f"run {self.told.run} is {both}; only {'this machine' if local else self.owner}'s is shown"


def doubles(home: OrchHome, looks: list[Look]) -> list[Double]:
    """Runs that are spread over both are none."""
    found = []
    rows = {r.run: r for r in list_runs(home, note=lambda _: None)}
    for look in looks:
        for told in {t.run: t for r in look.rounds for t in r.listed}.values():
            row = rows.get(told.run)
            owner = "" if row is None or not row.present else row.pod or LOCAL
            if owner in ("", look.name) or look.name in _members(home, told.run):
                continue
            if owner != LOCAL or _created_here(home, told.run) != told.created:  # else this home, asked as a pod
                found.append(Double(told, look, owner))
    return found


def claims(home: OrchHome, looks: list[Look]) -> list[str]:
    """Of `doubles`: a line each."""
    return [f"note: {double.words}" for double in doubles(home, looks)]


def _created_here(home: OrchHome, run: str) -> object:
    return (try_read_json(home.run(run).run_json) or {}).get("created")


def _members(home: OrchHome, run: str) -> list[str]:
    here = home.run(run)
    pods = (try_read_json((here if here.path.is_dir() else home.mirrored(run)).run_json) or {}).get("pods")
    return [str(p.get("name")) for p in pods if isinstance(p, dict)] if isinstance(pods, list) else []


def troubles(looks: list[Look]) -> list[str]:
    """A line for each pod that could not be asked."""
    return [_trouble(look.name, look.error) for look in looks if look.error is not None]


def _trouble(pod: str, e: OrchError) -> str:
    what = one_line(e.what)
    told = what if what.startswith(f"pod {pod} ") else f"pod {pod}: {what}"
    return told + (f"; fix: {one_line(e.fix)}" if e.fix and not isinstance(e, UnreachableError) else "")


def sources(home: OrchHome, looks: list[Look], *, asked: bool = True) -> list[Source]:
    """Every run that is known, newest first; those on pods with the connections of `looks`. `asked`: for `--cached`."""
    by_name = {look.name: look for look in looks}
    rows, found = list_runs(home), list[Source]()
    forgotten = _forgotten(home, {r.pod for r in rows if r.pod} - by_name.keys()) if asked else {}
    for row in rows:
        if not row.pod:
            if row.present:
                found.append(LocalSource(home, home.run(row.run)))
            continue
        look = by_name.get(row.pod)
        source = FarSource(home, home.mirrored(row.run), row.pod, _connector(home, row.pod, look))
        source.reachable = None if not asked else look is not None and look.error is None
        source.error = look.error if look is not None else forgotten.get(row.pod)
        found.append(source)
    return found


def _forgotten(home: OrchHome, pods: set[str]) -> dict[str, OrchError]:
    """Of pods that were not asked: those that the inventory does not know."""
    from pods.access import find_spec

    found = {}
    for name in sorted(pods):
        try:
            find_spec(home, name)
        except OrchError as e:
            if e.code == "E-INV-020":
                found[name] = e
    return found


def _connector(home: OrchHome, name: str, look: Look | None) -> Callable[[], Pod]:
    def connect() -> Pod:
        from pods.access import find_pod

        return look.pod if look is not None else find_pod(home, name)[1]

    return connect


def newest(all_runs: list[Source]) -> list[Source]:
    """Those that have not ended, and the newest that have: what is shown without being asked for.

    Of a pod that was asked just now every run that has not ended has a copy; those without one are old.
    """
    over = [(s, state_of(s.run) in ENDED) for s in all_runs if not s.far or Index.read(s.run) is not None]
    unseen = [s for s in all_runs if isinstance(s, FarSource) and not s.reachable and Index.read(s.run) is None]
    return [s for s, e in over if not e] + [s for s, e in over if e][:ENDED_SHOWN] + unseen[:ENDED_SHOWN]


def close_all(looks: list[Look]) -> None:
    """Give back the connections; one that still hangs is left to end with this process."""
    for look in looks:
        if look.done:
            look.pod.close()
