"""The memory guard over real shims and ranks: cards through the library that answers from a file, memory through a real
cgroup. What it writes, whom it ends, and above all whom it leaves alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pods.keeper import guard as guard_module
from pods.keeper.guard import Guard
from pods.keeper.guardacts import halt
from pods.keeper.guardrules import Episode, Limits
from tests.lab.limits import MemoryLimit
from tests.lab.need import LabUnavailable
from tests.pod.fakenvml import A, B, FakeGpus, gpu, install
from tests.pod.shimlab import ROOT, Lab, until
from workloads.contract.config.health import GuardSpec, HealthSpec
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.haltfile import Halt, read_halt
from workloads.contract.health import Mode, Rule, Rung
from workloads.contract.rundir import OrchHome, RunDir

SLEEPER = "import time\ndef hold():\n    print('up', flush=True)\n    while True: time.sleep(0.05)\nhold()"
EATER = """
import time
def eat(mib):
    held = []
    for _ in range(mib // 10):
        held.append(bytearray(b'x' * (10 << 20)))
        time.sleep(0.02)
    print('full', flush=True)
    while True: time.sleep(0.05)
eat({mib})
"""
FAR = 1e6  # monotonic seconds, far beyond any start


def spec(**guard: Any) -> dict[str, Any]:
    """run.json with this guard, as a launch writes it."""
    health = HealthSpec(guard=GuardSpec.model_validate_json(json.dumps(guard)))
    return {"job": {"health": health.model_dump(mode="json")}}


class Desk:
    """A guard over labs, looked with by hand."""

    def __init__(self, runs: list[tuple[Lab, dict[str, Any]]]) -> None:
        self.runs, self.said, self.ended = runs, list[str](), threading.Event()
        self.guard = Guard(self._active, self.said.append, self.ended)

    def _active(self) -> list[tuple[Any, Mapping[str, Any]]]:
        return [(lab.run, row) for lab, row in self.runs]

    def look(self, now: float = FAR) -> None:
        self.guard.look_at_gpus(now)
        self.guard.settle(30.0)

    def close(self) -> None:
        self.ended.set()
        self.guard._eye.close()


def lines(lab: Lab) -> list[dict[str, Any]]:
    path = lab.run.guard_log
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def quiet(lab: Lab) -> bool:
    """Nothing was said about this run, and nothing done to it."""
    run = lab.run
    return not (lines(lab) or run.halt.exists() or run.anomaly_type.exists()) and lab.rank().alive()


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[list[Lab]]:
    made = [Lab.make(tmp_path), Lab.make(tmp_path)]
    yield made
    for lab in made:
        lab.close()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpus:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def desk(labs: list[Lab], gpus: FakeGpus) -> Iterator[Desk]:
    """Two runs with a card each; the guards of both may act."""
    for lab, uuid in zip(labs, (A, B), strict=True):
        lab.python(SLEEPER, devices=[uuid])
    for lab in labs:
        lab.says(b"up")
    made = Desk([(lab, spec(gpu_limit_gb=100)) for lab in labs])
    gpus.say(gpu(A, 90_000), gpu(B, 90_000))
    yield made
    made.close()


def test_the_limits_are_those_of_the_job() -> None:
    given = GuardSpec.model_validate_json('{"gpu_limit_gb": 100, "over_secs": 3, "action": "kill"}')
    assert Limits.of(spec(gpu_limit_gb=100, over_secs=3, action="kill")) == Limits(
        Mode.ACT, 100.0, given.gpu_limit_fraction, 3.0, given.poll_secs, given.host_limit_fraction,
        given.host_over_secs, Rung.KILL,
    )  # fmt: skip
    default = GuardSpec()
    assert Limits.of(spec()) == Limits.of({}) == Limits(default.mode, default.gpu_limit_gb)
    watched = HealthSpec(mode=Mode.OBSERVE, guard=GuardSpec(gpu_limit_gb=1.0, mode=Mode.ACT))
    assert Limits.of({"job": {"health": watched.model_dump(mode="json")}}).mode == Mode.OBSERVE
    assert Limits.of({"job": {"health": {"mode": "off", "guard": {"mode": "act"}}}}).mode == Mode.OFF


@pytest.mark.parametrize("job", [None, [], {"health": 3}, {"health": {"guard": {"poll_secs": "x", "action": "burn"}}}])
def test_a_job_that_cannot_be_read_is_guarded_as_one_that_says_nothing(job: object) -> None:
    assert Limits.of({"job": job}) == Limits()


def test_what_may_be_done() -> None:
    act = Limits(mode=Mode.ACT)
    assert act.rungs(ours=True, halting=False) == [Rung.NOTE, Rung.DUMP, Rung.HALT]
    assert act.rungs(ours=True, halting=True) == [Rung.NOTE, Rung.DUMP]
    assert act.rungs(ours=False, halting=False) == [Rung.NOTE]
    kill = Limits(mode=Mode.ACT, action=Rung.KILL)
    assert kill.rungs(ours=True, halting=True) == [Rung.NOTE, Rung.DUMP, Rung.KILL]
    assert Limits(action=Rung.KILL).rungs(ours=True, halting=False) == [Rung.NOTE, Rung.DUMP]
    assert Limits(action=Rung.NOTE).rungs(ours=True, halting=False) == [Rung.NOTE]
    assert Limits(mode=Mode.OFF).rungs(ours=True, halting=False) == []


def test_an_episode_fires_once_and_is_over_when_well_below_for_a_while() -> None:
    episode = Episode()
    assert [episode.look(v, 100, 2.0, t) for t, v in enumerate((101, 102, 99, 101, 101, 101, 101))] == [
        False, False, False, False, False, True, False,
    ]  # fmt: skip
    assert not any(episode.look(v, 100, 2.0, t) for t, v in ((70, 97), (71, 101), (80, 101)))  # 97 is not well below
    assert not episode.look(90, 100, 2.0, 90) and not episode.look(101, 100, 2.0, 91)
    assert episode.look(101, 100, 2.0, 94)


def test_memory_of_others_is_looked_at_again_after_a_while() -> None:
    episode = Episode()
    assert episode.look(101, 100, 0.0, 0)
    episode.innocent = True
    assert not episode.look(101, 100, 0.0, 599) and episode.look(101, 100, 0.0, 600)
    assert not episode.look(101, 100, 0.0, 1201)  # this time it was the run's own


def test_a_breach_is_written_dumped_and_halted_and_the_neighbour_lives(
    desk: Desk, labs: list[Lab], gpus: FakeGpus
) -> None:
    lab, other = labs
    pid = lab.rank().pid
    desk.look()
    assert quiet(lab) and quiet(other)
    gpus.say(gpu(A, 131_072), f"proc {A} {pid} 130048", gpu(B, 90_000))
    desk.look()
    breach, dumped = lines(lab)
    assert breach["why"] == (f"rank 0, {A}: 128 GiB of 141 GiB are used for 0 s (limit 100 GiB), 127 GiB by pid {pid}")
    assert breach.items() >= {
        "v": 1, "rule": "gpu_memory", "rank": 0, "pid": pid, "device": A, "used_mib": 131_072, "total_mib": 144_384,
        "limit_mib": 102_400, "did": "dump, halt",
    }.items()  # fmt: skip
    assert dumped["did"] == "dumped" and "hold" in dumped["why"]
    assert any("in hold" in p.read_text() for p in lab.run.stackdumps.glob("watchdog_stackdump_rank0_*.txt"))
    (request,) = [p for p in lab.run.requests.iterdir() if "ack" not in p.name]
    assert (try_read_json(lab.run.ack_of(request)) or {})["ok"] is True
    asked = read_halt(lab.run)
    assert isinstance(asked, Halt) and asked.who == "watchdog" and breach["why"] in asked.why
    assert lab.run.anomaly_type.read_text() == "gpu_oom\n"
    assert lab.ended()["cause"] == "halt-term" and quiet(other)


def test_a_breach_is_told_once(desk: Desk, labs: list[Lab], gpus: FakeGpus) -> None:
    lab, _ = labs
    desk.runs[0] = (lab, spec(mode="observe", gpu_limit_gb=100))
    gpus.say(gpu(A, 131_072), gpu(B))
    desk.look()
    desk.look(FAR + 1)
    assert [line["did"] for line in lines(lab)] == ["dump", "dumped"]
    assert not lab.run.halt.exists() and not lab.run.anomaly_type.exists() and lab.rank().alive()


def test_inside_a_container_the_lease_says_whose_card_it_is(desk: Desk, labs: list[Lab], gpus: FakeGpus) -> None:
    """The driver's pids mean nothing there; the card was given to the rank and to nobody else."""
    lab, other = labs
    gpus.say(gpu(A, 131_072), f"proc {A} 4000001 131000", gpu(B, 90_000))
    desk.look()
    assert lines(lab)[0]["pid"] == lab.rank().pid and lines(lab)[0]["did"] == "dump, halt"
    assert lab.run.halt.exists() and quiet(other)


def test_a_run_is_not_halted_for_what_a_stranger_holds(desk: Desk, labs: list[Lab], gpus: FakeGpus) -> None:
    lab, _ = labs
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        gpus.say(gpu(A, 131_072), f"proc {A} {stranger.pid} 41000", f"proc {A} {lab.rank().pid} 90000", gpu(B))
        desk.look()
        (told,) = lines(lab)
        assert told["did"] == "nothing" and f"pid {stranger.pid} (sleep 60" in told["why"]
        assert "40.0 GiB of it are held by" in told["why"] and "not this run's" in told["why"]
        assert not lab.run.halt.exists() and lab.rank().alive() and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(timeout=120)


def test_killing_ends_the_rank_of_the_card_and_its_helpers_alone(
    labs: list[Lab], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, _ = labs
    helper = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    lab.python(helper + SLEEPER, devices=[A])
    lab.python(SLEEPER, devices=[B], rank=1, env={"ORCH_MARK": f"{lab.run.run_id}/a1/r1", "RANK": "1"})
    lab.says(b"up")
    lab.says(b"up", rank=1)
    until(lambda: len(lab.marked()) == 2)
    desk = Desk([(lab, spec(gpu_limit_gb=100, action="kill"))])
    gpus.say(gpu(A, 131_072), gpu(B, 131))
    desk.look()
    desk.close()
    record = lab.ended()
    assert (record["signal"], record["cause"]) == (signal.SIGKILL, "signalled") and not lab.marked()
    assert [line["did"] for line in lines(lab)] == ["dump, kill", "dumped"]
    assert lab.rank(1).alive() and not lab.run.halt.exists()


@pytest.mark.parametrize("action", ["halt", "kill"])
@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "ended"])
def test_what_an_attempt_did_is_not_laid_to_the_next_one(
    labs: list[Lab], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch, action: str, restarted: bool
) -> None:
    """The kernel ends the rank while its stacks are dumped: a `.HALT` now would halt the attempt that follows."""
    lab, _ = labs
    lab.python(SLEEPER, devices=[A])
    lab.says(b"up")
    dump = guard_module.dump_within

    def dies_meanwhile(run: RunDir, why: str, timeout_s: float) -> str:
        lab.rank().signal(signal.SIGKILL)
        lab.ended()
        if restarted:
            run.attempt_dir(2).mkdir()
        return dump(run, why, timeout_s)

    monkeypatch.setattr(guard_module, "dump_within", dies_meanwhile)
    desk = Desk([(lab, spec(gpu_limit_gb=100, action=action))])
    gpus.say(gpu(A, 131_072), gpu(B, 131))
    desk.look()
    desk.close()
    assert [line["did"] for line in lines(lab)] == [f"dump, {action}", "dumped", f"no {action}"]
    over = "attempt 1 is over, and attempt 2 was begun" if restarted else "the ranks of attempt 1 ended"
    assert lines(lab)[-1]["why"] == f"{over} meanwhile"
    assert not lab.run.halt.exists() and not lab.run.anomaly_type.exists()


def test_a_driver_that_hangs_or_a_lost_card_is_no_breach(
    desk: Desk, labs: list[Lab], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "GPU_LOOK_S", 0.5)
    gpus.say(gpu(A, 131_072), f"lost {A}", gpu(B, 131_072), "hang nvmlDeviceGetTotalEccErrors")
    desk.look()
    assert all(quiet(lab) for lab in labs)


def test_a_halt_that_somebody_asked_for_stays_his(desk: Desk, labs: list[Lab], gpus: FakeGpus) -> None:
    lab, _ = labs
    halt(lab.run, Rule.GPU_MEMORY, "first")
    before = lab.run.halt.read_bytes()
    halt(lab.run, Rule.HOST_MEMORY, "second")
    assert lab.run.halt.read_bytes() == before and lab.run.anomaly_type.read_text() == "gpu_oom\n"


def test_in_a_keeper_whose_ray_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper itself, as a process: it needs neither Ray nor a supervisor to halt what fills a card."""
    gpus = install(monkeypatch, tmp_path)
    gpus.say(gpu(A, 131_072))
    home = OrchHome(tmp_path / "home")
    home.runs.mkdir(parents=True)
    lab = Lab.make(home.runs)
    pod = {"name": "local", "python": "/bin/false", "root": str(home.path)}
    row = {"v": 1, "cluster": "c1", "pods": [pod], "versions": {"ray": "0.0.1"}}  # a Ray that no Python here has
    atomic_write_json(lab.run.run_json, {**row, **spec(gpu_limit_gb=100)})
    atomic_write_json(lab.run.status, {"state": "running"})
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **gpus.env()}
    keeper = subprocess.Popen(
        [sys.executable, "-s", "-m", "pods.keeper", str(home.path)], env=env, stdout=subprocess.DEVNULL
    )  # fmt: skip
    try:
        lab.python(SLEEPER, devices=[A])
        until(lab.run.halt.exists, 30.0, lambda: lab.story())
        assert lab.ended()["cause"] == "halt-term" and lines(lab)[0]["did"] == "dump, halt"
    finally:
        keeper.terminate()
        keeper.wait(timeout=120)
        lab.close()


# memory


@pytest.fixture
def limit(labs: list[Lab]) -> Iterator[MemoryLimit]:
    try:
        made = MemoryLimit(f"orch-guard-{os.getpid()}", 240)
    except LabUnavailable as e:
        pytest.skip(str(e))
    yield made
    for lab in labs:  # a limit goes when nobody is below it
        lab.close()
    made.close()


def eat(lab: Lab, limit: MemoryLimit, mib: int) -> None:
    order = lab.order([sys.executable, "-c", EATER.format(mib=mib)])
    lab.start(order, prefix=tuple(limit.around([])))


@pytest.mark.lab
@pytest.mark.parametrize("action", ["kill", pytest.param("halt", marks=pytest.mark.long)])
def test_a_rank_that_eats_the_memory_is_ended_before_the_kernel_chooses(
    labs: list[Lab], limit: MemoryLimit, action: str
) -> None:
    lab, other = labs
    other.python(SLEEPER)
    lab.python(SLEEPER, rank=1, env={"ORCH_MARK": f"{lab.run.run_id}/a1/r1", "RANK": "1"})
    lab.says(b"up", rank=1)
    other.says(b"up")
    row = spec(action=action, host_limit_fraction=0.6, host_over_secs=0.2, poll_secs=0.05)
    desk = Desk([(lab, row), (other, row)])
    desk.guard.start()  # its own threads, as in the keeper
    eat(lab, limit, 170)
    pid = lab.rank().pid
    record = lab.ended(timeout_s=60)
    desk.close()
    desk.guard.settle(30.0)
    breach, dumped = lines(lab)[:2]
    assert (breach["rule"], breach["rank"], breach["pid"], breach["did"]) == ("host_memory", 0, pid, f"dump, {action}")
    words = (
        rf"rank 0: pid {pid} holds 1\d\d MiB; \d+ MiB of 240 MiB of memory are used \(\d+%, limit 60%\) for \d s in "
    )
    assert re.match(words, breach["why"]) and breach["why"].endswith(str(limit.path))
    assert breach["limit_mib"] == pytest.approx(144) and breach["used_mib"] > 144 and "eat" in dumped["why"]
    assert not record["oom"] and limit.oom_kills == 0
    if action == "kill":
        assert record["signal"] == signal.SIGKILL and not lab.run.halt.exists() and lab.rank(1).alive()
    else:
        assert record["cause"] == "halt-term" and lab.run.anomaly_type.read_text() == "host_oom\n"
    assert quiet(other)


@pytest.mark.lab
def test_a_run_is_not_ended_for_memory_that_is_not_its_own(labs: list[Lab], limit: MemoryLimit) -> None:
    lab, _ = labs
    stranger = subprocess.Popen(
        limit.around([sys.executable, "-c", EATER.format(mib=190)]), stdout=subprocess.PIPE
    )  # fmt: skip
    try:
        lab.start(lab.order([sys.executable, "-c", SLEEPER]), prefix=tuple(limit.around([])))
        lab.says(b"up")
        assert stranger.stdout is not None and stranger.stdout.readline() == b"full\n"
        desk = Desk([(lab, spec(action="kill", host_limit_fraction=0.6, host_over_secs=0))])
        desk.guard.look_at_memory(FAR)
        desk.guard.settle(30.0)
        (told,) = lines(lab)
        assert told["did"] == "nothing" and "is not what fills it" in told["why"] and lab.rank().alive()
    finally:
        stranger.kill()
        stranger.wait(timeout=120)


@pytest.mark.lab
@pytest.mark.long
def test_a_halt_does_not_wait_where_the_memory_is_about_to_end(
    labs: list[Lab], limit: MemoryLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank ignores SIGTERM and goes on eating: it is killed at the last resort, before the kernel does it."""
    lab, _ = labs
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + EATER.format(mib=210)
    clocks = {"term_s": 60.0, "kill_s": 90.0, "now_term_s": 60.0, "now_kill_s": 90.0}
    lab.start(lab.order([sys.executable, "-c", code], halt=clocks), prefix=tuple(limit.around([])))
    row = spec(action="halt", host_limit_fraction=0.5, host_over_secs=0, poll_secs=0.05)
    desk = Desk([(lab, row)])
    desk.guard.start()
    record = lab.ended(timeout_s=60)
    desk.close()
    desk.guard.settle(30.0)
    assert record["signal"] == signal.SIGKILL and not record["oom"] and limit.oom_kills == 0
    assert [line["did"] for line in lines(lab)] == ["dump, halt", "dumped", "kill"]


@pytest.mark.lab
def test_on_a_full_disk_it_halts_all_the_same(tmp_path: Path) -> None:
    """Neither its line nor `.anomaly_type` can be written any more, and an empty `.HALT` is one."""
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "t", str(disk)], check=True)
    lab = None
    try:
        lab = Lab.make(disk)
        lab.python(SLEEPER)
        lab.says(b"up")
        with contextlib.suppress(OSError), (disk / "big").open("wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
        halt(lab.run, Rule.HOST_MEMORY, "why" * 2000)
        until(lambda: isinstance(read_halt(lab.run), Halt))
        (disk / "big").unlink()
        assert lab.ended()["cause"] == "halt-term"
    finally:
        if lab is not None:
            lab.close()
        subprocess.run(["umount", "-l", str(disk)], check=True)
