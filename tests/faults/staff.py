"""Orch's own processes for a run without Ray: the real engine and the real keeper's care, each a forked process.

They die with the process that made them (PDEATHSIG), are killed and stopped for real, and know nothing of the cell. The
gang is `tests.supervisor.direct.DirectGang`: real shims, double-forked, on this machine.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.supervisor import actor
from orchestrator.supervisor.engine import Engine
from orchestrator.supervisor.journal import Journal
from orchestrator.supervisor.observe import Figures
from orchestrator.supervisor.seen import RankSeen
from orchestrator.supervisor.spec import parse_spec
from pods.keeper.keeper import Keeper
from pods.keeper.policy import Action
from pods.keeper.spawn import clean_env, spawn_detached
from tests.supervisor.direct import DirectGang
from tests.supervisor.runs import ROOT
from workloads.contract.files import read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome, RunDir
from workloads.shim.spawn import PR_SET_PDEATHSIG, prctl

TICK_S = 0.05
FILE_OPERATIONS = frozenset({"os.rename", "os.mkdir", "os.remove", "os.truncate", "subprocess.Popen"})


@dataclass
class Forked:
    """A child of the cell's process."""

    name: str
    main: Callable[[], None]
    log: Path
    pid: int = 0
    status: int | None = None

    def start(self) -> ProcId:
        assert not self.alive(), f"{self.name} lives"
        sys.stdout.flush()
        sys.stderr.flush()
        mother = os.getpid()
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            self._child(mother)
        ident = ProcId.of(self.pid)
        assert ident is not None
        return ident

    def _child(self, mother: int) -> None:
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != mother:
                os._exit(1)
            out = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            self.main()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def alive(self) -> bool:
        if self.pid and self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return bool(self.pid) and self.status is None

    def signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]


@dataclass
class Gang(DirectGang):
    """The keeper is a process of its own here, so nothing is reaped on its behalf."""

    prefix: tuple[str, ...] = ()
    """put before the command of a shim: a memory limit"""

    def ranks(self, attempt: int) -> tuple[tuple[RankSeen, ...], Figures, int]:
        return tuple(self._eye.look(attempt)), self._eye.figures(), self._eye.best_step()

    def spawn(self, orders: Mapping[str, Sequence[str]]) -> None:
        for path in (p for paths in orders.values() for p in paths):
            env = clean_env(os.environ, PYTHONPATH=str(ROOT))
            argv = [*self.prefix, sys.executable, "-s", "-m", "workloads.shim", path]
            spawn_detached(sys.executable, argv, env=env, log=self.run.logs / "spawn.log")


@dataclass
class Ways:
    """How a supervisor is, where it is not plain. Read at each start of one."""

    prefix: tuple[str, ...] = ()
    seen: Any = None
    """what the gang says of its placement, in place of `ready`"""
    clock: Callable[[], float] = time.time
    die_at: Iterator[int] | None = None
    """each life ends by SIGKILL before its n-th file operation"""
    before: list[Callable[[], None]] = field(default_factory=list)
    """called in the new process"""


def supervise(run: RunDir, ways: Ways, die_at: int | None) -> None:
    """What `orchestrator.supervisor.actor` does, with this gang and in the foreground."""
    os.umask(0o077)
    for step in ways.before:
        step()
    held = actor.take_lock(run.supervisor_lock)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    if die_at is not None:
        _die_before(die_at)
    spec = parse_spec(read_json(run.run_json))
    journal = Journal(run, ways.clock)
    journal.load()
    gang = Gang(spec.resumed(journal.memory), run, prefix=ways.prefix)
    if ways.seen is not None:
        gang.seen = ways.seen
    engine = Engine(spec, run, gang, journal, ways.clock)
    while True:
        try:
            if engine.tick(time.monotonic()):
                break
        except Exception:  # as the actor does: the next look starts from the files
            logging.exception("a look failed")
        time.sleep(TICK_S)
    os.close(held)


def _die_before(n: int) -> None:
    """SIGKILL to this process before its n-th operation that changes a file or starts a process."""
    left = n

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        probe = writes and str(args[0]).endswith((".lock", "/dev/null"))
        if (writes and not probe) or event in FILE_OPERATIONS:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class HomeKeeper(Keeper):
    """The keeper without Ray: lost shims, dumps, guards; it starts neither Ray nor supervisors."""

    def _find_node(self, seen: Any) -> None:
        pass

    def _act(self, action: Action, now: float) -> None:
        pass


def keep(home: OrchHome) -> None:
    keeper = HomeKeeper(home)
    while True:
        try:
            keeper.tick(time.monotonic())
        except Exception:
            traceback.print_exc()
        time.sleep(TICK_S)


@contextmanager
def stopped(ident: ProcId) -> Iterator[None]:
    """SIGSTOP, and SIGCONT behind."""
    assert ident.signal(signal.SIGSTOP), f"{ident} is gone"
    try:
        yield
    finally:
        ident.signal(signal.SIGCONT)
