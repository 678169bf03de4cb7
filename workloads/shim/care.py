"""The loop while the rank lives: reap, look at what is asked, send what `halt.clocks` says, at least every 0.5 s.

SIGCHLD and SIGTERM are blocked and fetched with sigtimedwait(2): no handler, no race, woken at once.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from workloads.contract.haltfile import HaltProblem, read_halt
from workloads.contract.process import ProcId, descendants, is_detached, marked, rank_mark, sweep
from workloads.contract.records import HaltClocks, ShimOrder
from workloads.contract.rundir import RunDir
from workloads.shim import halt
from workloads.shim.halt import Asked, Send, Verdict
from workloads.shim.loglimit import LogLimit
from workloads.shim.record import ShimLog

LOOK_EVERY_S = 0.5
SWEEP_GRACE_S = 3.0
WAKING = frozenset({signal.SIGCHLD, signal.SIGTERM})


@dataclass(frozen=True)
class Ended:
    exit_code: int | None
    signal: int | None
    cause: str
    max_rss_mib: float
    killed_by_us: bool


class Care:
    """One rank, from its start to its end. The process that makes this must be its parent and single-threaded."""

    def __init__(self, order: ShimOrder, run: RunDir, rank: ProcId, limits: HaltClocks, log: ShimLog) -> None:
        self.order, self.run, self.rank, self.limits, self.log = order, run, rank, limits, log
        self.asked = Asked()
        self.sent = Verdict(Send.NOTHING)
        self.log_limit = LogLimit(order, run, log.say)
        self._refused_why = ""
        self._beaten = False

    def until_ended(self) -> Ended:
        while True:
            ended = self.reap()
            now = time.monotonic()
            self.log_limit.look(now)
            if ended is not None:
                self.log_limit.finish()
                return ended
            self._look(now)
            if self.asked != Asked():
                self._act(now)
            woken = signal.sigtimedwait(WAKING, LOOK_EVERY_S)
            if woken is not None and woken.si_signo == signal.SIGTERM and self.asked.told_at is None:
                self.log.say(f"SIGTERM from pid {woken.si_pid}: stopping the rank")
                self.asked = self.asked.told(time.monotonic())

    def reap(self) -> Ended | None:
        """Collect every dead child, adopted ones too. How the rank ended, when it was among them."""
        ended = None
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid == self.rank.pid:
                ended = self._ended(status, usage.ru_maxrss / 1024)

    def sweep(self) -> tuple[list[int], list[int]]:
        """End what the rank left behind: (gone, stayed)."""
        swept, stayed = sweep(self._others, SWEEP_GRACE_S, each_round=self.reap)
        self.reap()  # no zombie is left to a PID 1 that may not reap
        if swept or stayed:
            self.log.say(f"swept {swept}, stayed {stayed}")
        return swept, stayed

    def _ended(self, status: int, max_rss_mib: float) -> Ended:
        code = os.waitstatus_to_exitcode(status)
        cause = self.sent.cause or ("exited" if code >= 0 else "signalled")
        return Ended(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cause=cause,
            max_rss_mib=round(max_rss_mib, 1),
            killed_by_us=self.sent.send is Send.KILL,
        )

    def _others(self) -> set[ProcId]:
        """Children and their children, and every process with the rank's mark wherever it hangs. A keeper that the
        rank started (`orch launch`), and what that one keeps, are adopted here and no part of the rank."""
        mark = rank_mark(self.order.run, self.order.attempt, self.order.rank)
        return {*descendants(os.getpid(), without=is_detached), *marked(mark)} - {self.rank}

    def _look(self, now: float) -> None:
        if self.asked.now_at is None:
            self._look_at_halt(now)
        if self.asked.stop_at is None:
            stop = halt.look_at_stop(self.run.stop_order(self.order.attempt))
            if stop is not None:
                self.log.say(f"stop order: SIGTERM after {stop[0]:g} s, SIGKILL after {stop[1]:g} s")
                self.asked = self.asked.stopped(*stop, now)

    def _look_at_halt(self, now: float) -> None:
        seen = read_halt(self.run)
        if isinstance(seen, HaltProblem):
            if seen.text != self._refused_why:
                self._refused_why = seen.text
                self.log.say(seen.text)
        elif seen is not None:
            before, self.asked = self.asked, self.asked.halted(seen, now)
            if before != self.asked:
                self.log.say(f"halt requested by {seen.who}{' (now)' if seen.now else ''}: {seen.why or 'no reason'}")

    def _act(self, now: float) -> None:
        verdict = halt.clocks(self.asked, self.limits, has_beaten=self._has_beaten(), now=now)
        if verdict.send > self.sent.send:
            self.sent = verdict
            self.log.say(f"{verdict.cause}: SIG{verdict.send.name} to pid {self.rank.pid}")
            if verdict.send is Send.TERM:
                self._terminate()
        if self.sent.send is Send.KILL:  # each round: it may fork faster than we look
            for ident in (self.rank, *self._others()):
                ident.signal(signal.SIGKILL)

    def _terminate(self) -> None:
        """To the rank alone, which may want to write a checkpoint; its helpers must outlive that."""
        self.rank.signal(signal.SIGTERM)
        if self.rank.state() == "T":
            self.rank.signal(signal.SIGCONT)  # a stopped process would not hear it

    def _has_beaten(self) -> bool:
        """Asked only once there is something to decide; what was true stays true."""
        if not self._beaten and self.asked.halt_at is not None:
            rank = self.order.rank
            self._beaten = halt.has_beaten(self.run.heartbeat(rank), rank, self.order.attempt)
        return self._beaten
