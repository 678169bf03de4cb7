"""`orch watch`: looks at runs again and again, tells what changes, has runs go on that may.

It holds nothing that a run needs: killed, stopped or asleep, it changes nothing for any run, and started again it
begins with how things stand. What it does (waking a keeper, resuming) is a request like any other, made in a thread of
its own, so that a pod that hangs never holds up a look. Called by `orch watch`.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.runs.events import read_events
from orchestrator.runs.fleet import far_pods, has_far_pods
from orchestrator.runs.index import IndexRow, list_runs
from orchestrator.runs.render import one_line
from orchestrator.runs.source import LocalSource, Source
from orchestrator.runs.views import RunView, state_of
from orchestrator.runs.watch import Change, Glance, changes, glance
from orchestrator.runs.watcheyes import EVERY_S, SLOWEST_S, PodEye, wait_all
from orchestrator.runs.watchresume import WHO, Plan, asked_by_person, plan
from workloads.contract.errors import ConflictError, OrchError
from workloads.contract.records import Event
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import ENDED

HERE_S = 1.0  # between looks, where no pod has to be asked
SHARE = 20  # at most this part of one core
GAP_S = 15.0
FIRST_S = 40.0  # connect and answer of `fleet`
AGAIN_S = 60.0
WAKE_EVERY_S = 30.0
Say = Callable[[Change], None]


@dataclass
class Watch:
    """`runs`: ids to look at (none: all that have not ended, and new ones). `pod`: those of this pod alone."""

    home: OrchHome
    say: Say
    runs: frozenset[str] = frozenset()
    pod: str | None = None
    auto_resume: bool = False
    protect: Callable[[Source], None] = lambda _: None
    glances: dict[str, Glance] = field(default_factory=dict)
    views: dict[str, RunView] = field(default_factory=dict)
    eyes: dict[str, PodEye] = field(default_factory=dict)
    cost_s: float = 0.0  # processor time of the last look
    _inventory: tuple[int, int] | None = None
    _events: dict[str, tuple[tuple[int, int, int], list[Event]]] = field(default_factory=dict)
    _looked: tuple[float, float] = (0.0, 0.0)
    _rested: bool = False
    _told: dict[str, str] = field(default_factory=dict)  # run -> why it is not resumed
    _busy: dict[str, float] = field(default_factory=dict)  # what is being done, or was: not again before then
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _notes: queue.SimpleQueue[Change] = field(default_factory=queue.SimpleQueue)  # of other threads; said by a look

    def first(self) -> None:
        """Have every pod asked once."""
        self._find_pods()
        wait_all(list(self.eyes.values()), FIRST_S)

    def look(self) -> None:
        """One look at everything; what is new is said."""
        began, self._rested = time.thread_time(), self._was_away()
        self._find_pods()
        self.drain()
        for row in list_runs(self.home, note=lambda _: None):
            source = self._source(row)
            if source is not None:
                self._look_at(row, source)
            elif not row.present and row.run in self.glances:
                gone = self.glances.pop(row.run)
                self.say(Change(time.time(), row.run, gone.pod, "gone", "its directory is gone from this machine"))
        self.cost_s = time.thread_time() - began

    def _was_away(self) -> bool:
        """This look is far from the last one: a machine asleep, a process stopped. Monotonic time stops in a sleep."""
        now, last = (time.monotonic(), time.time()), self._looked
        self._looked = now
        return last != (0.0, 0.0) and max(now[0] - last[0], now[1] - last[1]) > GAP_S

    def _find_pods(self) -> None:
        """The inventory as it is now; trouble with it is said once and leaves the pods that are known."""
        try:
            st = self.home.inventory.stat()
        except OSError:
            return
        if (st.st_ino, st.st_mtime_ns) == self._inventory or not has_far_pods(self.home):
            return
        self._inventory = (st.st_ino, st.st_mtime_ns)
        try:
            pods = far_pods(self.home)
        except OrchError as e:
            self._note("", "local", "note", f"the inventory cannot be read: {e.what}")
            return
        for name in self.eyes.keys() - pods.keys():
            self.eyes.pop(name).close()
        for name, spec in pods.items():
            if self.pod in (None, name) and name not in self.eyes:
                self.eyes[name] = PodEye(self.home, name, spec)

    def _source(self, row: IndexRow) -> Source | None:
        """None for a run that is not looked at now."""
        where = row.pod or "local"
        if (self.runs and row.run not in self.runs) or self.pod not in (None, where):
            return None
        if not row.pod:
            run = self.home.run(row.run)
            return LocalSource(self.home, run) if row.present and self._wanted(run) else None
        eye = self.eyes.get(row.pod)
        if eye is None or not eye.asked or row.run in eye.elsewhere:
            return None
        source = eye.source(row.run)
        return source if source.run.path.is_dir() and self._wanted(source.run) else None

    def _wanted(self, run: RunDir) -> bool:
        return run.run_id in self.runs or run.run_id in self.glances or state_of(run) not in ENDED

    def _look_at(self, row: IndexRow, source: Source) -> None:
        before, here = self.glances.get(row.run), time.time()
        if before is None:
            self.protect(source)
        events, view = self._events_of(source.run), source.view(here)
        now = glance(view, events, source.pod, here, before, rested=self._rested)
        for change in changes(before, now, view, events, here):
            self.say(change)
        self.glances[row.run], self.views[row.run] = now, view
        if now.reachable:
            self._care(source, view, events)

    def _events_of(self, run: RunDir) -> list[Event]:
        """Read again only when there are new ones: hundreds of kilobytes a look and run are not nothing."""
        try:
            st = run.events.stat()
        except OSError:
            return []
        stamp = (st.st_ino, st.st_size, st.st_mtime_ns)
        if run.run_id not in self._events or self._events[run.run_id][0] != stamp:
            self._events[run.run_id] = (stamp, read_events(run))
        return self._events[run.run_id][1]

    def _care(self, source: Source, view: RunView, events: Sequence[Event]) -> None:
        if not view.ended and not view.supervised:
            self._wake(source)
        if not self.auto_resume:
            return
        found = self.plan(source, view, events)
        if found.resume:
            self._resume(source, found)
        elif found.why and self._told.get(view.run.run_id) != found.why:
            self._told[view.run.run_id] = found.why
            self._note(view.run.run_id, source.pod, "note", found.why)

    def plan(self, source: Source, view: RunView, events: Sequence[Event]) -> Plan:
        return plan(
            view, events, person=asked_by_person(source.run, events, view.attempt or 0),
            anomaly=source.run.anomaly_type.is_file(),
        )  # fmt: skip

    def _wake(self, source: Source) -> None:
        """As any contact: a keeper that is missing is started where the run lies."""

        def act() -> None:
            self._wake_now(source)

        self._do(f"wake {source.pod}", WAKE_EVERY_S, act, source, "the keeper could not be woken")

    def _resume(self, source: Source, found: Plan) -> None:
        run = source.run.run_id

        def act() -> None:
            self._wake_now(source)
            try:
                source.ask("resume", run=run, tree=None, why=found.why, who=WHO)
            except ConflictError:
                return  # somebody was quicker
            self._note(run, source.pod, "resume", f"asked to resume: {found.why}")

        self._do(f"resume {run}", AGAIN_S, act, source, "it could not be resumed")

    def _wake_now(self, source: Source) -> None:
        if not source.is_awake():
            source.wake(self._own)

    def _own(self) -> tuple[str, Path]:
        """Interpreter and tree of this process, for a keeper that no run can tell."""
        from pods.tree import ensure_tree

        return sys.executable, ensure_tree(self.home)

    def _do(self, key: str, every_s: float, act: Callable[[], None], source: Source, failed: str) -> None:
        """In a thread: it may wait for a pod. At most one of a kind at once, and not again before `every_s`."""
        now = time.monotonic()
        with self._lock:
            if now < self._busy.get(key, 0.0):
                return
            self._busy[key] = now + every_s

        def work() -> None:
            try:
                act()
            except OrchError as e:
                if self._told.get(key) != e.code:
                    self._note(source.run.run_id, source.pod, "note", f"{failed}: {one_line(e.what)}")
                self._told[key] = e.code

        threading.Thread(target=work, name=f"orch-{key}", daemon=True).start()

    def _note(self, run: str, pod: str, kind: str, text: str) -> None:
        self._notes.put(Change(time.time(), run or "-", pod, kind, text))

    def drain(self) -> None:
        """Say what was noted since."""
        while not self._notes.empty():
            self.say(self._notes.get())

    @property
    def over(self) -> bool:
        """Every run that was named has ended, and none of them is to be resumed."""
        views = [self.views.get(run) for run in self.runs]
        if not self.runs or not all(v is not None and v.over for v in views):
            return False
        return not self.auto_resume or not any(self._may_go_on(v) for v in views if v is not None)

    def _may_go_on(self, view: RunView) -> bool:
        source = self.eyes[view.sight.pod].source(view.run.run_id) if view.sight else LocalSource(self.home, view.run)
        found = self.plan(source, view, read_events(view.run))
        return found.resume or found.wait_s > 0

    def close(self) -> None:
        for eye in self.eyes.values():
            eye.close()


def pause(watch: Watch, ended: Callable[[], bool] = lambda: False) -> None:
    """Until the next look is due: sooner where a pod has not been asked yet."""
    step_s = HERE_S if not watch.eyes else EVERY_S if all(e.asked for e in watch.eyes.values()) else 0.5
    deadline = time.monotonic() + max(step_s, min(watch.cost_s * SHARE, SLOWEST_S))
    while not ended() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))


def pods_not_asked(watch: Watch) -> list[str]:
    """Names of pods that could not be asked, for `--once`."""
    return sorted(name for name, eye in watch.eyes.items() if eye.error is not None or not eye.asked)
