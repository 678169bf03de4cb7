"""`orch watch`: tells what changes in runs, has those go on that may; or guards a directory that orch did not start.

Needs nobody and holds nothing: killed at any moment, it changes nothing for a run.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.complete import complete_pods, complete_runs
from orchestrator.cli.shared import RUN_HELP, Json, as_the_person, emit, hint, home, protect, say
from workloads.contract.errors import UsageError
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.watch import Change
    from orchestrator.runs.watchloop import Watch
    from orchestrator.runs.watchnotify import Notifier

Runs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN]...", help=f"{RUN_HELP} Default: all.", autocompletion=complete_runs),
]


def watch(
    runs: Runs = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Runs on this pod alone.", autocompletion=complete_pods),
    ] = None,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Resume what a watchdog halted or a signal killed; never what you halted."),
    ] = False,
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="CMD|URL",
            envvar="ORCH_NOTIFY",
            help="A command that gets each change as JSON on stdin, or a URL it is posted to.",
        ),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Look once. Exit 1: one is sick, failed, halted by a rule; 4: a pod is lost."),
    ] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="PATH", help="Guard a directory of beats that orch did not start.")
    ] = None,
    halt: Annotated[
        str, typer.Option("--halt", metavar="0|1", help="With --dir: write .HALT when a rule says so.")
    ] = "0",
    json: Json = False,
) -> None:
    """Tell what changes in runs, a line a change, until Ctrl-C or until the runs that were named have ended."""
    if halt not in ("0", "1"):
        raise UsageError("E-CLI-004", f"--halt cannot be '{halt}'", where="orch watch", value=halt, expected="0 or 1")
    _refuse_clash(directory, runs, pod, auto_resume=auto_resume, halt=halt)
    from orchestrator.runs.watchnotify import Notifier

    notifier = Notifier(notify, hint) if notify else None
    try:
        if directory is not None:
            code = _guard(directory, notifier, halt=halt == "1", once=once, json=json)
        else:
            code = _watch(runs or [], pod, notifier, auto_resume=auto_resume, once=once, json=json)
    finally:
        if notifier is not None:
            notifier.close()
    if code:
        raise typer.Exit(code)


def _refuse_clash(
    directory: Path | None, runs: list[str] | None, pod: str | None, *, auto_resume: bool, halt: str
) -> None:
    if directory is not None and (runs or pod or auto_resume):
        raise UsageError(
            "E-WATCH-001", "--dir looks at files alone: it takes no RUN, --pod or --auto-resume", where="orch watch",
            fix="orch watch --dir PATH",
        )  # fmt: skip
    if directory is None and halt == "1":
        raise UsageError(
            "E-WATCH-001", "--halt is for --dir: runs of orch have rules of their own", where="orch watch",
            fix="orch watch --dir PATH --halt 1",
        )  # fmt: skip


def _watch(
    refs: list[str], pod: str | None, notifier: Notifier | None, *, auto_resume: bool, once: bool, json: bool
) -> int:
    from orchestrator.runs.watchbeat import Beat
    from orchestrator.runs.watchloop import Watch, pause

    names = _ids(refs)
    watch = Watch(home(), _teller(notifier, json=json), names, _pod(pod), auto_resume and not once, protect)
    beat = None if once else Beat(home(), sorted(names) or ["all"])
    try:
        with _until_asked() as ended:
            watch.first()
            while not ended():
                watch.look()
                if beat is not None:
                    if not beat.begun and not json:
                        hint(_words(watch))
                    beat.beat()
                if once or watch.over:
                    break
                pause(watch, ended)
            if beat is not None and not ended.killed:
                beat.end()
        watch.drain()
        return _code(watch, once=once)
    finally:
        watch.close()


def _words(watch: Watch) -> str:
    count, pods = len(watch.glances), ", ".join(["this machine", *sorted(watch.eyes)])
    return f"{count} run{'' if count == 1 else 's'} on {pods}; a line a change from here on; Ctrl-C ends it"


def _ids(refs: list[str]) -> frozenset[str]:
    from orchestrator.runs.find import pick
    from orchestrator.runs.index import list_runs

    rows = list_runs(home()) if refs else []
    return frozenset(pick(rows, ref).run for ref in refs)


def _pod(name: str | None) -> str | None:
    if name is None or name == "local":
        return name
    from pods.access import find_spec

    return "local" if find_spec(home(), name).local else name


def _teller(notifier: Notifier | None, *, json: bool) -> Callable[[Change], None]:
    def tell(change: Change) -> None:
        from orchestrator.runs.render import redacted

        if json:
            emit(change.as_json())
        else:
            say(change.line())
        _flush()
        if notifier is not None and change.kind != "first":
            notifier.tell(redacted(change.as_json()))

    return tell


def _flush() -> None:
    import sys

    sys.stdout.flush()


class _Ended:
    """Whether Ctrl-C or SIGTERM has come. `killed`: by SIGTERM, which a machine sends that goes down."""

    def __init__(self) -> None:
        self._event, self.killed = threading.Event(), False

    def __call__(self) -> bool:
        return self._event.is_set()

    def hear(self, number: int, _frame: object) -> None:
        self.killed = self.killed or number == signal.SIGTERM
        if self._event.is_set():
            raise KeyboardInterrupt  # a second one: whatever it is doing
        self._event.set()


@contextlib.contextmanager
def _until_asked() -> Iterator[_Ended]:
    ended = _Ended()
    old = {number: signal.signal(number, ended.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _code(watch: Watch, *, once: bool) -> int:
    """Of the runs that were named, or under --once of all: how they stand."""
    from orchestrator.runs.watchloop import pods_not_asked
    from workloads.contract.states import RunState

    views = [v for run, v in watch.views.items() if once or run in watch.runs]
    if not once and not watch.over:
        return CliExit.OK
    states = {v.state for v in views}
    ill = any(g.ill or g.alone for g in watch.glances.values()) or any(_sick(v) for v in views)
    if RunState.FAILED in states or (once and ill):
        return CliExit.RUN_FAILED
    if once and pods_not_asked(watch):
        return CliExit.UNREACHABLE
    return CliExit.HALTED if RunState.HALTED in states and not once else CliExit.OK


def _sick(view: object) -> bool:
    from orchestrator.runs.events import read_events
    from orchestrator.runs.views import RunView
    from orchestrator.runs.watchresume import by_watchdog
    from orchestrator.runs.whysick import away, episodes
    from workloads.contract.states import RunState

    assert isinstance(view, RunView)
    if view.state == RunState.HALTED:
        return by_watchdog(view, read_events(view.run), anomaly=view.run.anomaly_type.is_file())
    if view.state != RunState.RUNNING or view.stale_s is not None:
        return False
    events, attempt = read_events(view.run), view.attempt or 0
    return away(events, attempt) is not None or any(not e.cleared for e in episodes(events, attempt))


def _guard(path: Path, notifier: Notifier | None, *, halt: bool, once: bool, json: bool) -> int:
    from orchestrator.runs.watchdir import DirGuard

    guard = DirGuard(path, _teller(notifier, json=json), halt=halt)
    if not json:
        hint(guard.words())
    with _until_asked() as ended, as_the_person():  # what it writes there is read by somebody else's script
        while not ended():
            guard.look(time.monotonic(), time.time())
            if once or guard.over:
                break
            deadline = time.monotonic() + guard.every_s
            while not ended() and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, 0.5))
    return CliExit.HALTED if guard.halted else CliExit.OK
