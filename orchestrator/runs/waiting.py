"""Waiting for a run while telling a person what happens: the loop under `launch --follow` and `halt`.

It only reads the run directory, or its copy after asking the pod, and, while nobody looks after the run, asks for the
keeper to be woken. It may be cut off at any moment: nothing depends on it. The screen is a `Live`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from orchestrator.runs.events import read_events
from orchestrator.runs.judged import wrong_so_far
from orchestrator.runs.render import clip, duration, figure, one_line, progress, screen_width
from orchestrator.runs.report import event_words
from orchestrator.runs.source import FAR_POLL_S, Contact, Source, as_source
from orchestrator.runs.views import RunView
from workloads.contract.errors import LocalError, OrchError, UnreachableError
from workloads.contract.records import Event
from workloads.contract.rundir import OrchHome, RunDir

POLL_S = 0.3
WAKE_EVERY_S = 10.0
PLAIN_EVERY_S = 10.0


@dataclass
class Live:
    """One line that is rewritten on a terminal, or a plain line now and then elsewhere; and lines that stay."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    silent: bool = False
    _shown: int = 0
    _said: str = ""
    _next_plain: float = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.silent:
            return
        self._wipe()
        self.out.write(text + "\n")
        self.out.flush()

    def status(self, text: str, now: float) -> None:
        """The line that is true now."""
        if self.silent:
            return
        if not self.out.isatty():
            if text != self._said and now >= self._next_plain:
                self._said, self._next_plain = text, now + PLAIN_EVERY_S
                self.line(text)
            return
        text = clip(text, max(screen_width(self.out) - 1, 20))
        self.out.write("\r" + text + " " * max(self._shown - len(text), 0))
        self._shown = len(text)
        self.out.flush()

    def _wipe(self) -> None:
        if self._shown:
            self.out.write("\r" + " " * self._shown + "\r")
            self._shown = 0


def pulse(view: RunView) -> str:
    """The live line of a run."""
    step = view.figure("step")
    if step is None or view.state in ("queued", "preparing", "starting", "resuming"):
        return one_line(f"{view.words}: {view.reason}" if view.reason else view.words)
    rows = {"parity": view.run.parity_rows, "bench": view.run.bench_rows}.get(str(view.info.get("kind")))
    if rows is not None:
        done = f"{'cell' if rows == view.run.parity_rows else 'case'} {progress(step, view.figure('steps'))}"
        return one_line(f"{view.words} | {done} | {wrong_so_far(rows)} wrong | eta {duration(view.eta_s)}")
    if view.info.get("kind") == "decode":
        done = f"token {progress(step, view.figure('steps'))}"
        rate = f"{figure(view.figure('toks_per_s'), 3)} tokens/s"
        return one_line(f"{view.words} | {done} | {rate} | eta {duration(view.eta_s)}")
    if view.info.get("kind") == "data":
        return one_line(" | ".join([view.words, *data_words(view)]))
    parts = [
        view.words,
        f"step {progress(step, view.figure('steps'))}",
        f"loss {figure(view.figure('loss'))}",
        f"{figure(view.figure('toks_per_s'), 3)} tokens/s",
        f"eta {duration(view.eta_s)}",
    ]
    return one_line(" | ".join(parts))


def data_words(view: RunView) -> list[str]:
    """How far a run of kind `data` is: a bar where the end is known, documents, tokens and their rate."""
    tokens, most, documents = (view.figure(name) for name in ("step", "steps", "documents"))
    known = isinstance(tokens, int) and isinstance(most, int) and most > 0
    told = [bar(tokens / most)] if known and isinstance(tokens, int) and isinstance(most, int) else []
    told += [f"{documents} documents"] if documents is not None else []
    told += [f"{figure(tokens, 3)} tokens", f"{figure(view.figure('toks_per_s'), 3)} tokens/s"]
    return [*told, f"eta {duration(view.eta_s)}"] if known else told


def bar(share: float, cells: int = 20) -> str:
    """`[######--------------]  30 %`"""
    share = min(max(share, 0.0), 1.0)
    full = int(share * cells)
    return f"[{'#' * full}{'-' * (cells - full)}] {share * 100:3.0f} %"


def watch(run: RunDir | Source, live: Live, *, seen: int = -1) -> Iterator[RunView]:
    """A fresh view every 0.3 s (0.5 s of a pod), for ever; new events are told as they come; the keeper is woken when
    nobody looks after the run.

    Events up to sequence number `seen` are not told. The caller decides when it has seen enough.
    """
    source = as_source(run)
    contact, waker = Contact(source, lambda text: live.line(f"  {text}")), waker_of(source)
    while True:
        more = contact.refresh()
        if not source.far and not source.run.path.is_dir():
            raise LocalError(
                "E-RUN-003", f"the directory of run {source.run.run_id} is gone", where=str(source.run.path)
            )
        for event in read_events(source.run):
            if event.seq > seen:
                seen = event.seq
                _tell(event, live)
        view = source.view()
        if view.sight is not None and view.sight.missing:
            raise LocalError("E-RUN-003", f"the directory of run {source.run.run_id} is gone", where=view.sight.path)
        if not view.over:
            waker.look(view.supervised, time.monotonic(), live.line)
            live.status(pulse(view), time.monotonic())
        yield view
        if not more:
            time.sleep(FAR_POLL_S if source.far else POLL_S)


def _tell(event: Event, live: Live) -> None:
    seconds = event.data.get("seconds")
    if event.what == "stage" and isinstance(seconds, int | float):
        live.line(f"  {one_line(str(event.data.get('stage'))):<16} {duration(float(seconds))}")
    else:
        live.line(f"  {event_words(event)}")


def last_seq(run: RunDir) -> int:
    return max((e.seq for e in read_events(run)), default=-1)


@dataclass
class Waker:
    """Wakes the keeper at most every 10 s while no supervisor lives and no keeper runs."""

    home: OrchHome
    wake: Callable[[OrchHome], None] | None = None
    awake: Callable[[], bool] | None = None
    _next: float = 0.0
    _told: bool = False

    def look(self, supervised: bool, now: float, say: Callable[[str], None]) -> None:
        if supervised or now < self._next:
            return
        first, self._next = self._next == 0.0, now + WAKE_EVERY_S
        if first or self._is_awake():
            return  # a launch has just poked it; or it is there and will see to the run
        try:
            (self.wake or _wake)(self.home)
        except UnreachableError:
            return  # that is told by who follows
        except OrchError as e:
            if not self._told:
                say(f"  the keeper could not be woken: {one_line(e.what)}")
            self._told = True

    def _is_awake(self) -> bool:
        if self.awake is not None:
            return self.awake()
        from pods.keeper.client import running

        return running(self.home) is not None


def waker_of(source: Source) -> Waker:
    return Waker(source.home, lambda _: source.wake(), source.is_awake) if source.far else Waker(source.home)


def _wake(home: OrchHome) -> None:
    from pods.remote import control
    from pods.tree import ensure_tree

    control.wake(home, lambda: (sys.executable, ensure_tree(home)))
