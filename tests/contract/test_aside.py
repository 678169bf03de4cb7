"""Heartbeats while the run directory is full, read-only or gone: they wait in memory, are read there, and move back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.supervisor.observe import RankEye
from workloads.contract import aside
from workloads.contract.aside import aside_of, move_back, put_aside
from workloads.contract.beats import BeatReader
from workloads.contract.rundir import RunDir
from workloads.runtime.heartbeat import Heartbeat
from workloads.runtime.rankenv import RankEnv

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    made = RunDir(tmp_path / f"aside-20261121T000000Z-{os.urandom(2).hex()}")
    made.path.mkdir()
    yield made
    for left in aside.ASIDE.glob(f"*{made.run_id}*"):
        left.unlink()


def env_of(run: RunDir) -> RankEnv:
    return RankEnv(run, run.run_id, 0, 0, 1, 1, 1, "local", None)


def steps(run: RunDir) -> list[int | None]:
    return [b.get("step") for b in BeatReader(run.heartbeat(0), 0).read()]


def seqs(run: RunDir) -> list[int]:
    return [b.seq for b in BeatReader(run.heartbeat(0), 0).read()]


def test_a_directory_that_goes_and_comes_back_loses_no_beat(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    beats = Heartbeat(env_of(run))
    run.path.rename(run.path.with_name("away"))
    run.path.with_name("away").joinpath(run.heartbeat(0).name).unlink()  # written to still, and read by nobody
    for phase in ("loading", "compiling", "evaluating"):
        beats.phase(phase)
    told = capfd.readouterr().err
    assert told.count("heartbeats cannot be written") == 1 and str(aside_of(run, 0)) in told
    assert aside_of(run, 0).stat().st_mode & 0o777 == 0o600 and aside_of(run, 0).read_bytes().count(b"\n") == 3
    run.path.with_name("away").rename(run.path)
    beats.phase("checkpointing")
    assert seqs(run) == [1, 2, 3, 4] and beats.lost == 0 and not aside_of(run, 0).exists()
    assert "are written to" in (said := capfd.readouterr().err) and "3 were moved there" in said
    beats.close()


FULL = """
import json, resource, sys
from workloads.runtime.heartbeat import Heartbeat
from workloads.runtime.rankenv import RankEnv
env = RankEnv.read()
path = env.run.heartbeat(0)
size = path.stat().st_size
beats = Heartbeat(env)
soft = path.stat().st_size + 40  # the next line is written in part, all others not at all
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
for word in ("loading", "compiling"):
    beats.phase(word)
print(json.dumps([path.stat().st_size - soft, beats.lost]), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
beats.phase("evaluating")
print(json.dumps([beats.lost]), flush=True)
"""


def test_a_line_that_the_disk_took_in_part_is_not_lost(run: RunDir) -> None:
    run.heartbeat(0).write_bytes(b"x" * 8000 + b"\n")  # the file aside is below the limit that this one meets
    env = {**os.environ, "ORCH_RUN_DIR": str(run.path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FULL], env=env, capture_output=True, text=True, timeout=60)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first, second) == ([0, 0], [0]), done.stderr
    reader = BeatReader(run.heartbeat(0), 0)
    assert [b.msg.value for b in reader.read()] == ["starting", "loading", "compiling", "evaluating"]
    assert reader.bad == 2, "the filler and the torn line"
    assert "File too large" in done.stderr or "No space left" in done.stderr


def test_the_supervisor_reads_what_waits_and_each_beat_once(run: RunDir) -> None:
    eye = RankEye(run, 0, "local")
    beats = Heartbeat(env_of(run))
    eye.look(1)
    assert [b.msg.value for b in eye.facts().beats] == ["starting"]
    beats._drop_writer()
    hidden = run.path.with_name("away")
    run.path.rename(hidden)
    beats.phase("loading")
    beats.beat(step=7)
    eye.look(1)
    assert [(b.seq, b.get("step")) for b in eye.facts().beats] == [(1, None), (2, 7)]
    hidden.rename(run.path)
    beats.phase("evaluating")
    assert eye.look(1).step == 7
    assert [b.seq for b in eye.facts().beats] == [3]
    beats.close()


def test_the_next_program_of_a_rank_is_heard_after_one_whose_beats_waited(run: RunDir) -> None:
    """It counts from 0 again: `a.py; b.py` is one attempt."""
    eye = RankEye(run, 0, "local")
    first = Heartbeat(env_of(run))
    for _ in range(5):
        first.phase("loading")
    first._drop_writer()
    hidden = run.path.with_name("away")
    run.path.rename(hidden)
    first.phase("compiling")
    eye.look(1)
    assert [b.seq for b in eye.facts().beats] == [6]
    hidden.rename(run.path)
    first.close()
    second = Heartbeat(env_of(run))  # it moves back what waits
    second.phase("evaluating")
    eye.look(1)
    assert [(b.seq, b.msg.value) for b in eye.facts().beats] == [
        *((0, "starting"), *((n, "loading") for n in range(1, 6))),
        *((0, "starting"), (1, "evaluating")),
    ]
    second.close()


def test_what_waits_is_bounded_and_keeps_the_newest(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "MAX_ASIDE_BYTES", 4000)
    for i in range(1000):
        put_aside(run, 0, b'{"i": %d}\n' % i)
    assert aside_of(run, 0).stat().st_size <= 4000
    assert move_back(run, 0) > 100
    rows = [json.loads(line)["i"] for line in run.heartbeat(0).read_bytes().splitlines()]
    assert rows == list(range(rows[0], 1000))


@pytest.mark.parametrize("kind", ["link", "other", "directory"])
def test_what_is_not_ours_in_shared_memory_is_left_alone(run: RunDir, tmp_path: Path, kind: str) -> None:
    path, victim = aside_of(run, 0), tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "directory":
        path.mkdir()
    elif os.geteuid() == 0:
        path.write_bytes(b'{"forged": 1}\n')
        os.chown(path, 12345, 12345)
    else:
        pytest.skip("only root can make another user's file")
    with pytest.raises(OSError):
        put_aside(run, 0, b"{}\n")
    assert move_back(run, 0) == 0 and victim.read_bytes() == b"precious\n"
    RankEye(run, 0, "local").look(1)
    if kind == "directory":
        path.rmdir()


def test_a_shim_moves_back_what_its_dead_rank_left(tmp_path: Path) -> None:
    from tests.pod.shimlab import Lab

    lab = Lab.make(tmp_path)
    try:
        put_aside(lab.run, 0, b'{"v":1,"seq":0,"ts":1.0,"msg":"loading","rank":0,"world_size":1,"attempt":1}\n')
        lab.sh("exit 3")
        assert lab.ended()["exit_code"] == 3
        assert [b.msg.value for b in BeatReader(lab.run.heartbeat(0), 0).read()] == ["loading"]
        assert not aside_of(lab.run, 0).exists()
    finally:
        lab.close()


def test_a_beat_costs_microseconds(run: RunDir) -> None:
    beats = Heartbeat(env_of(run))
    began = time.process_time()
    for _ in range(500):
        beats.phase("loading")
    assert (time.process_time() - began) / 500 < 2e-3
    beats.close()
