"""Runs in every condition that `orch why` has to explain, as facts in memory: no file, no process, no clock."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.runs.health import judge
from orchestrator.runs.views import RankView, RunView, Sight
from orchestrator.runs.why import Facts
from orchestrator.runs.whyfigures import Evidence
from orchestrator.runs.whysick import last_fall, suspect_of
from orchestrator.runs.whywork import CheckpointSeen
from workloads.contract.beats import Beat
from workloads.contract.records import Event, HaltAck, RankRecord, Status
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase

T = 1_795_000_000.0
RUN = "llama-20261118T110640Z-1a2b"
STACK = (
    "Current thread 0x00007f21 (most recent call first):",
    '  File "data.py", line 88 in next',
    '  File "train.py", line 140 in main',
)


class Scene:
    """One run, told in the order in which it happened. `at`: seconds since `T`."""

    def __init__(self, state: str, reason: str, *, world: int = 2, kind: str = "train", attempt: int = 1) -> None:
        self.state, self.reason, self.world, self.kind, self.attempt = state, reason, world, kind, attempt
        self.events: list[Event] = []
        self.beats: dict[int, list[Beat]] = {k: [] for k in range(world)}
        self.records: dict[int, RankRecord] = {k: self._record(k) for k in range(world)}
        self.more: dict[str, Any] = {}
        self.supervised, self.restarts, self.now = True, 0, T + 1000.0
        self.checkpoints: tuple[CheckpointSeen, ...] = ()
        self.acks: tuple[HaltAck, ...] = ()
        self.sight: Sight | None = None
        self.behind: list[str] = []
        self.alive: bool | None = True
        self.log: tuple[str, ...] = ()
        self.stack: tuple[str, ...] = ()
        self.started = True

    def _record(self, rank: int, **more: Any) -> RankRecord:
        return RankRecord(RUN, self.attempt, rank, "box", 90 + rank, 7, "boot", ["train"], more.pop("ts", T),
                          pid=100 + rank, start_time=8, **more)  # fmt: skip

    def end(self, rank: int, at: float, **more: Any) -> None:
        self.records[rank] = self._record(rank, ended=T + at, **more)

    def event(self, at: float, what: str, why: str = "", *, to: str | None = None, frm: str | None = None,
              attempt: int | None = None, **data: Any) -> None:  # fmt: skip
        number = self.attempt if attempt is None else attempt
        self.events.append(Event(len(self.events), T + at, number, "supervisor", what, why, frm, to, data))

    def steps(self, rank: int, first: int, last: int, at: float, each: float = 1.2, **more: Any) -> None:
        """Beats of steps `first` to `last`, the last one at `at`."""
        for step in range(first, last + 1):
            ts = T + at - (last - step) * each
            fields = {"step": step, "steps": 1000, "loss": 4.0 - step / 500, "step_time_s": each, **more}
            self.beats[rank].append(Beat(step, ts, Phase.PROGRESS, rank, self.world, self.attempt, fields))

    def facts(self) -> Facts:
        attempt = self.attempt if self.started else 0
        status = Status(
            RUN, "llama", self.state, self.reason, attempt, T, self.now - (0.4 if self.supervised else 100.0), ["box"],
            restarts=self.restarts, behind=self.behind,
        )  # fmt: skip
        ranks = tuple(self._rank(k) for k in range(self.world)) if self.started else ()
        info = {"name": "llama", "kind": self.kind, "world_size": self.world, "pods": [{"name": "box"}]}
        newest = next((c.step for c in self.checkpoints), None)
        view = RunView(
            RunDir(Path("/home/ann/.orch/runs") / RUN), self.now, info, status, ranks, self.supervised, None, False,
            newest, self.sight,
        )  # fmt: skip
        events = tuple(self.events)
        suspect = suspect_of(view, events)
        evidence = Evidence()
        if suspect is not None and suspect.rank is not None:
            k = suspect.rank
            lines = (suspect.exit or {}).get("lines")
            log = tuple(lines) if lines else self.log
            evidence = Evidence(self.records[k], tuple(self.beats[k]), self.stack, "from the dump for watchdog", log)
        return Facts(view, events, suspect, last_fall(events, attempt), evidence, self.checkpoints, self.acks)

    def _rank(self, rank: int) -> RankView:
        record, beats = self.records[rank], self.beats[rank]
        return RankView(rank, "box", judge(record, self.alive, beats, self.now), record, tuple(beats))


def _started(s: Scene, attempt: int = 1, at: float = 0.0) -> Scene:
    s.event(at, "state", f"attempt {attempt}", frm="preparing", to="starting", attempt=attempt, base_step=-1)
    s.event(at + 8, "state", "the first step was made", frm="starting", to="running", attempt=attempt)
    return s


def well() -> Scene:
    s = _started(Scene("running", "the first step was made"))
    for k in (0, 1):
        s.steps(k, 393, 412, 999.2)
    s.checkpoints = (CheckpointSeen(400, checked="bytes"),)
    return s


def _hang(s: Scene) -> Scene:
    _started(s)
    for k in range(8):
        s.steps(k, 393, 412, 955.0)
    s.event(985, "health", "rank 0 has made no new step for 30 s (limit 30 s)", rule="no_step", rung="note", rank=0,
            value=30.0, limit=30.0, unit="s", since_s=0.0, level=0)  # fmt: skip
    s.event(985, "health", "rank 0 has made no new step for 30 s (limit 30 s)", rule="no_step", rung="dump", rank=0,
            value=30.0, limit=30.0, unit="s", since_s=0.0, level=0)  # fmt: skip
    summary = "7 ranks in all_reduce at train.py:212; rank 3 in next(loader) at data.py:88"
    s.event(985.6, "dump", summary, by="watchdog", request="20261118T112305Z-dump-ab12cd34.json", seconds=0.6,
            summary=summary, files=["watchdog_stackdump_rank3_20261118T112305Z.txt"],
            groups=[{"ranks": [3], "where": "next(loader) at data.py:88"},
                    {"ranks": [0, 1, 2, 4, 5, 6, 7], "where": "all_reduce at train.py:212"}])  # fmt: skip
    s.stack, s.checkpoints = STACK, (CheckpointSeen(400),)
    return s


def sick_hang() -> Scene:
    return _hang(Scene("running", "the first step was made", world=8))


def sick_stopped() -> Scene:
    """Two ranks make no step, since one of them is stopped: it is named, and how it is woken."""
    s = Scene("running", "the first step was made")
    for k in (0, 1):
        s.steps(k, 1, 184, 980)
    why = "rank 0 has made no step for 10 s (limit 10 s); its last step is 184; the same is true of rank 1"
    held = "the process of rank 1 has been stopped (state T: SIGSTOP or a debugger) for 10 s (limit 10 s), at step 184"
    for rung in ("note", "dump"):
        s.event(990, "health", why, rule="no_step", rung=rung, rank=0, others=[1], level=0)
    s.event(990, "health", held, rule="stopped", rung="note", rank=1, level=0)
    summary = "rank 0 in backward at step.py:38; rank 1 in backward at step.py:38 (state T)"
    s.event(990.6, "dump", summary, by="watchdog", files=[],
            groups=[{"ranks": [0], "where": "backward at step.py:38"},
                    {"ranks": [1], "where": "backward at step.py:38 (state T)"}])  # fmt: skip
    s.stack = STACK
    return s


def sick_loader() -> Scene:
    """Of two ranks in two places, the one that waits for nobody."""
    s = Scene("running", "the first step was made")
    for k in (0, 1):
        s.steps(k, 1, 184, 980)
    why = "rank 0 has made no step for 30 s (limit 30 s); its last step is 184; the same is true of rank 1"
    for rung in ("note", "dump"):
        s.event(990, "health", why, rule="no_step", rung=rung, rank=0, others=[1], level=0)
    s.event(990.6, "dump", "rank 0 in backward at train.py:51; rank 1 in next(loader) at train.py:47", by="watchdog",
            files=[], groups=[{"ranks": [0], "where": "backward at train.py:51"},
                              {"ranks": [1], "where": "next(loader) at train.py:47"}])  # fmt: skip
    s.stack = STACK
    return s


def sick_unsupervised() -> Scene:
    s = well()
    s.supervised = False
    return s


def sick_disk() -> Scene:
    s = well()
    s.event(700, "health", "pod box has 1.2 GiB free of 100 GiB where the run lies (limit 2 GiB)", rule="disk_low",
            rung="note", pod="box", value=1.2, limit=2.0, unit="GiB", level=0, since_s=0.0)  # fmt: skip
    return s


def sick_full_disk() -> Scene:
    s = well()
    why = "the run directory takes no writes: No space left on device"
    s.event(990, "note", f"{why}; nothing is ended for that, and the rules of health rest", away=True)
    return s


def sick_frozen() -> Scene:
    s = well()
    s.beats = {k: [b for b in beats if b.ts < T + 950] for k, beats in s.beats.items()}
    s.steps(0, 350, 370, 949.0)
    s.steps(1, 350, 370, 949.0)
    s.event(960, "health", "rank 1 is in state T (stopped by a signal) for 10 s", rule="stopped", rung="note", rank=1,
            since_s=10.0, level=0)  # fmt: skip
    return s


def restarted() -> Scene:
    s = Scene("running", "the first step was made", attempt=3)
    _started(s, 1)
    for n, at in ((1, 300.0), (2, 600.0)):
        s.event(at, "rank-exit", f"rank 1 was killed by signal 9 (SIGKILL) at step {n * 150}", attempt=n, rank=1,
                signal=9, cause="signalled", pod="box", lines=["boom"])  # fmt: skip
        why = f"rank 1 was killed by signal 9 (SIGKILL) at step {n * 150}; restarting from the newest checkpoint now"
        s.event(at + 1, "state", f"{why} (1 of 3)", frm="running", to="resuming", attempt=n, spent=1)
        s.event(at + 3, "state", f"attempt {n + 1}", frm="resuming", to="starting", attempt=n + 1, base_step=n * 150)
        s.event(at + 9, "state", "the first step was made", frm="starting", to="running", attempt=n + 1)
    for k in (0, 1):
        s.steps(k, 480, 500, 999.5)
    s.restarts, s.checkpoints = 2, (CheckpointSeen(500, checked="sizes"),)
    return s


def redone() -> Scene:
    """A person resumed what a signal had ended; it is not yet where it was."""
    s = _started(Scene("running", "the first step was made", attempt=2))
    fall = "rank 1 was killed by signal 9 (SIGKILL) at step 470"
    s.event(300, "rank-exit", fall, attempt=1, rank=1, signal=9, cause="signalled", pod="box")
    s.event(301, "state", f"{fall}; restarts are off (restart.max is 0)", frm="running", to="failed", attempt=1)
    s.event(
        700, "state", "resumed by ann@laptop", frm="failed", to="resuming", attempt=1, request="r", who="ann@laptop"
    )
    s.event(703, "state", "attempt 2", frm="resuming", to="starting", attempt=2, base_step=470)
    s.event(709, "state", "the first step was made", frm="starting", to="running", attempt=2)
    for k in (0, 1):
        s.steps(k, 401, 412, 999.0)
    s.checkpoints = (CheckpointSeen(400, checked="bytes"),)
    return s


def halted_by_person() -> Scene:
    why = "halted by ann@laptop: lunch"
    s = _started(Scene("halted", why))
    for k in (0, 1):
        s.steps(k, 393, 412, 899.0)
        s.end(k, 900.0, exit_code=75, cause="exited", max_rss_mib=2210.0)
    s.event(898, "halt", why, who="ann@laptop", now=False, ts=T + 898)
    s.event(898, "state", why, frm="running", to="halting")
    s.event(901, "verdict", "clean", stayed=[])
    s.event(901, "state", why, frm="halting", to="halted")
    s.checkpoints = (CheckpointSeen(412, checked="bytes"),)
    s.acks = tuple(HaltAck(RUN, k, 1, 412, T + 899, "step_00000412", "ab" * 32) for k in (0, 1))
    return s


def halted_by_watchdog() -> Scene:
    said = "rank 0 told a loss of nan at step 412 (limit: a finite one)"
    why = f"halted by watchdog: {said} (nan)"
    s = _started(Scene("halted", why))
    for k in (0, 1):
        s.steps(k, 393, 411, 897.0)
        s.steps(k, 412, 412, 898.0, loss=float("nan"), grad_norm=float("nan"))
        s.end(k, 902.0, exit_code=75, cause="exited")
    s.event(898, "health", said, rule="nan", rung="dump", rank=0, level=0, since_s=0.0)
    s.event(899, "dump", "2 ranks in forward at model.py:31", by="watchdog", seconds=0.2, files=[],
            groups=[{"ranks": [0, 1], "where": "forward at model.py:31"}])  # fmt: skip
    s.event(899, "health", said, rule="nan", rung="halt", rank=0, level=0, since_s=1.0)
    s.event(899.5, "halt", why, who="watchdog", now=False, ts=T + 899)
    s.event(903, "verdict", "clean", stayed=[])
    s.event(903, "state", why, frm="halting", to="halted")
    s.stack = STACK
    s.checkpoints = (CheckpointSeen(412, "shard_0.bin has 12 of 400 bytes"), CheckpointSeen(400, checked="bytes"))
    return s


def halted_gpu_missing() -> Scene:
    said = "pod box: GPU GPU-1, one of 1 leased by this run, has not been there for 20 s (limit 10 s)"
    why = f"halted by watchdog: {said} (gpu_missing)"
    s = _started(Scene("halted", why))
    s.event(888, "health", said, rule="gpu_missing", rung="dump", pod="box", level=1)
    s.event(898, "health", said, rule="gpu_missing", rung="halt", pod="box", level=1)
    s.event(898, "halt", why, who="watchdog", now=False, ts=T + 898)
    s.event(903, "state", why, frm="halting", to="halted")
    s.checkpoints = (CheckpointSeen(412, checked="bytes"),)
    return s


def halted_nothing_to_resume() -> Scene:
    s = halted_by_person()
    s.checkpoints = (CheckpointSeen(412, "no manifest: it was never finished"), CheckpointSeen(400, "no trainer.json"))
    return s


def halted_by_guard() -> Scene:
    said = "rank 1: pid 101 holds 357 MiB; 379 MiB of 512 MiB of memory are used (74%, limit 70%) for 0 s"
    why = f"halted by watchdog: {said} (host_oom)"
    s = _started(Scene("halted", why))
    for k in (0, 1):
        s.steps(k, 393, 412, 899.0)
        s.end(k, 902.0, exit_code=75, cause="exited")
    s.event(898, "halt", why, who="watchdog", now=False, ts=T + 898)
    s.event(898, "guard", said, rule="host_memory", rank=1, pid=101, used_mib=379.0, total_mib=512.0, limit_mib=358.4,
            did="dump, halt")  # fmt: skip
    s.event(898, "guard", "stacks: rank 1 at oom.py:8", rule="host_memory", rank=1, pid=101, did="dumped")
    s.event(903, "state", why, frm="halting", to="halted")
    s.checkpoints = (CheckpointSeen(412, checked="bytes"),)
    return s


def failed_crash_loop() -> Scene:
    tail = "; 3 restarts brought no new step"
    fall = "rank 1 was killed by signal 11 (SIGSEGV) at step 412"
    s = Scene("failed", fall + tail, attempt=4)
    _started(s, 1)
    for n in range(1, 5):
        at = 100.0 * n
        s.event(at, "rank-exit", fall, attempt=n, rank=1, signal=11, cause="signalled", pod="box",
                lines=["step 412 | loss 3.17", "Fatal Python error: Segmentation fault"])  # fmt: skip
        if n < 4:
            s.event(at + 1, "state", f"{fall}; restarting from the newest checkpoint in {n} s ({n} of 3)",
                    frm="running", to="resuming", attempt=n, spent=n)  # fmt: skip
            s.event(at + 9, "state", f"attempt {n + 1}", frm="resuming", to="starting", attempt=n + 1, base_step=412)
    s.event(402, "state", fall + tail, frm="starting", to="failed")
    s.steps(1, 401, 412, 399.0)
    s.end(1, 400.0, signal=int(signal.SIGSEGV), cause="signalled", max_rss_mib=1800.5)
    s.end(0, 401.0, signal=15, cause="stopped")
    s.checkpoints, s.restarts = (CheckpointSeen(400, checked="bytes"),), 3
    return s


def failed_oom() -> Scene:
    fall = "rank 1 was killed by signal 9 (out of memory) at step 412"
    s = _started(Scene("failed", f"{fall}; restarts are off (restart.max is 0)"))
    for k in (0, 1):
        s.steps(k, 393, 412, 899.0, gpu_mem_reserved=71000.0)
    s.event(
        899.5,
        "guard",
        "pod box uses 61 GiB of 64 GiB (limit 60 GiB): rank 1 was ended, pid 101",
        rule="host_memory",
        rank=1,
        pid=101,
        used_mib=62464.0,
        total_mib=65536.0,
        limit_mib=61440.0,
        did="kill",
    )
    s.event(
        900,
        "rank-exit",
        fall,
        rank=1,
        signal=9,
        cause="signalled",
        oom=True,
        pod="box",
        max_rss_mib=60123.0,
        lines=["step 412 | loss 3.17", "\x1b[31mred\x1b[0m"],
    )
    s.end(1, 900.0, signal=9, cause="signalled", oom=True, max_rss_mib=60123.0)
    s.end(0, 901.0, signal=15, cause="stopped")
    return s


def failed_refused() -> Scene:
    why = "rank 0 refused its configuration or checkpoint (exit code 77)"
    s = Scene("failed", why, world=1)
    s.event(0, "state", "attempt 1", frm="preparing", to="starting", base_step=-1)
    s.event(4, "rank-exit", why, rank=0, exit_code=77, cause="exited", pod="box",
            lines=["error[E-TRAIN-005]: none of 2 checkpoints verifies"])  # fmt: skip
    s.event(5, "state", why, frm="starting", to="failed")
    s.end(0, 4.0, exit_code=77, cause="exited")
    return s


def failed_after_hang() -> Scene:
    why = "rank 0 was killed by signal 9 (SIGKILL, sent by orch) at step 412; 3 restarts brought no new step"
    s = _hang(Scene("failed", why, world=8))
    s.event(1135, "health", "rank 0 has made no new step for 180 s (limit 180 s)", rule="no_step", rung="give_up",
            rank=0, value=180.0, limit=180.0, unit="s", since_s=150.0, level=1)  # fmt: skip
    s.event(1141, "rank-exit", "rank 0 was killed by signal 9 (SIGKILL, sent by orch) at step 412", rank=0, signal=9,
            cause="stopped", pod="box", lines=["step 412 | loss 3.17"])  # fmt: skip
    s.event(1142, "state", why, frm="running", to="failed")
    for k in range(8):
        s.end(k, 1140.0, signal=9, cause="stopped")
    s.now = T + 1200.0
    return s


def queued() -> Scene:
    s = Scene("queued", "a device is in use outside this run: GPU-1 by gpt-20261118T100000Z-0001")
    s.started, s.behind = False, ["gpt-20261118T100000Z-0001"]
    s.event(0, "state", "submitted", to="queued")
    return s


def succeeded() -> Scene:
    s = _started(Scene("succeeded", "all 2 ranks ended well"))
    for k in (0, 1):
        s.steps(k, 981, 1000, 899.0)
        s.end(k, 900.0, exit_code=0, cause="exited")
    s.event(901, "state", "all 2 ranks ended well", frm="running", to="succeeded")
    return s


def _seen(s: Scene, reachable: bool | None, trouble: str = "unreachable") -> Scene:
    s.sight = Sight("box", "box:~/.orch/runs/x", T + 1000, T + 1185, reachable, False, {}, trouble)
    return s


def succeeded_far() -> Scene:
    return _seen(succeeded(), True)


def unreachable() -> Scene:
    return _seen(well(), False)


def unreachable_hang() -> Scene:
    return _seen(sick_hang(), False)


def cached() -> Scene:
    return _seen(well(), None)


def forgotten() -> Scene:
    return _seen(well(), False, "not in the inventory")


SCENES: tuple[Callable[[], Scene], ...] = (
    well, sick_hang, sick_stopped, sick_loader, sick_unsupervised, sick_disk, sick_full_disk, sick_frozen,
    restarted, redone, halted_by_person, halted_by_watchdog, halted_by_guard, halted_gpu_missing,
    halted_nothing_to_resume, failed_crash_loop, failed_oom, failed_refused, failed_after_hang, queued,
    succeeded, succeeded_far, unreachable, unreachable_hang, cached, forgotten,
)  # fmt: skip
