"""`Run` in a user's own script: heartbeats that cost nothing, halting together, harmless outside orch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.harness import launch_ranks, make_run, rank_env
from workloads.contract.beats import BeatReader
from workloads.contract.files import read_json
from workloads.contract.states import Phase
from workloads.runtime import Run, heartbeat
from workloads.runtime.fence import newest_epoch
from workloads.runtime.haltwatch import is_halt_request
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.reduction import StepReduction

SCRIPT = """
import sys, time
import torch, torch.distributed as dist
from workloads.runtime import Run, heartbeat
run = Run.from_env()
run.phase("loading")
dist.init_process_group("gloo")
for step in range(1, 100000):
    t = torch.ones(1)
    dist.all_reduce(t)
    time.sleep(0.01 * (1 + dist.get_rank()))
    run.beat(step=step, loss=torch.tensor(1.5), lr=None)
    if run.should_halt(step):
        raise SystemExit(run.halted(step, checkpoint=None))
"""


def test_a_plain_script_halts_at_one_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with launch_ranks(run, argv=[sys.executable, "-c", SCRIPT], env={"GLOO_SOCKET_IFNAME": "lo"}) as ranks:
        ranks.until(
            lambda: all(b'"step":5' in run.heartbeat(k).read_bytes() for k in (0, 1) if run.heartbeat(k).exists())
        )
        time.sleep(1.2)
        run.halt.write_text("maintenance")
        assert ranks.wait() == [75, 75], ranks.log(0)
    acks = [read_json(run.halt_ack(k)) for k in (0, 1)]
    assert acks[0]["step"] == acks[1]["step"] > 0 and "checkpoint" not in acks[0]
    beats = BeatReader(run.heartbeat(1), 1).read()
    assert beats[0].msg is Phase.STARTING and beats[-1].msg is Phase.HALTING
    assert any(b.get("loss") == 1.5 and b.get("lr") is None for b in beats)


def test_without_torch_pydantic_or_numpy(tmp_path: Path) -> None:
    """A user's Python may have none of them: -S hides site-packages."""
    run = make_run(tmp_path)
    code = (
        "import sys; from workloads.runtime import Run; r = Run.from_env(); r.beat(step=1, loss=2.0); "
        "assert not r.should_halt(1); assert not r.should_halt(2); r.done(2); "
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-S", "-c", code], env=rank_env(run, 0, 1, 1, 1), check=True, timeout=120)
    assert [b.msg for b in BeatReader(run.heartbeat(0), 0).read()] == [Phase.STARTING, Phase.PROGRESS, Phase.DONE]


def test_outside_orch_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    run = Run.from_env()
    run.beat(step=1, loss=1.0)
    run.phase("loading")
    run.check_epoch()
    assert not run.should_halt(1) and run.halted(1) == 75 and run.done() == 0
    assert list(tmp_path.iterdir()) == []


def local_env(tmp_path: Path) -> RankEnv:
    env = RankEnv.read(rank_env(make_run(tmp_path), 0, 1, 3, 1))
    assert env is not None
    return env


def test_a_beat_costs_microseconds(tmp_path: Path) -> None:
    run = Run(local_env(tmp_path))
    began = time.thread_time()  # of this thread alone: what else runs on the machine does not count
    for step in range(20_000):
        run.beat(step=step, steps=20_000, loss=1.0, lr=1e-3, grad_norm=0.5, toks_per_s=1e5, step_time_s=0.1)
        run.should_halt(step)
    assert (time.thread_time() - began) / 20_000 <= 50e-6
    run.done()


def test_beats_are_limited_and_phases_are_not(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    run = Run(env)
    for step in range(1000):
        run.beat(step=step)
    run.phase("checkpointing")
    run.beat(step=1000)
    run.phase("no such phase")
    run.done(1001)
    beats = BeatReader(env.run.heartbeat(0), 0).read()
    assert [b.msg.value for b in beats] == ["starting", "progress", "checkpointing", "progress", "done"]
    assert [b.get("step") for b in beats] == [None, 0, 999, 1000, 1001]
    assert all(b.attempt == 3 for b in beats)


def test_the_last_beat_of_a_script_is_told(tmp_path: Path) -> None:
    code = """
import warnings
import torch
from workloads.runtime import Run
warnings.simplefilter("error")
run = Run.from_env()
weight = torch.ones((), requires_grad=True)
for step in range(1, 4):
    run.step(step, loss=weight * step)
"""
    run = make_run(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=rank_env(run, 0, 1, 1, 29500), timeout=600, check=True)
    beats = BeatReader(run.heartbeat(0), 0).read()
    assert (beats[-1].msg, beats[-1].get("step"), beats[-1].get("loss")) == (Phase.PROGRESS, 3, 3.0)
    assert [row.split(",")[1] for row in run.training_csv.read_text().splitlines()[1:]] == ["1.0", "2.0", "3.0"]


def test_a_long_phase_still_gives_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(heartbeat, "_TICK_S", 0.05)
    env = local_env(tmp_path)
    run = Run(env)
    run.beat(step=4, loss=1.0)
    run.phase("compiling")
    time.sleep(1.0)
    run.done(4)
    beats = BeatReader(env.run.heartbeat(0), 0).read()
    assert [b.msg for b in beats[3:-1]].count(Phase.COMPILING) >= 2
    assert all(b.fields.keys() == {"step"} for b in beats[3:])


def test_a_nan_loss_leaves_the_halt_flag_alone() -> None:
    torch = pytest.importorskip("torch")
    reduction: StepReduction[int] = StepReduction(2)
    assert reduction.push([0.0, 1.0], 1, on_device={0: torch.tensor(float("nan"))}) is None
    landed = reduction.push([0.0, 0.0], 2)
    assert landed is not None and landed[1] == 1 and landed[0][0] != landed[0][0] and landed[0][1] == 1.0
    assert reduction.drain() == ([0.0, 0.0], 2) and reduction.drain() is None
    with pytest.raises(ValueError, match="lanes"):
        reduction.push([0.0], 3)


def test_odd_values_are_left_out_and_nan_is_told(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    run = Run(env)
    run.beat(step=1, loss=float("nan"), lr="high", grad_norm=1e30, toks_per_s=None, pod="x" * 5000, mine=3)
    beat = BeatReader(env.run.heartbeat(0), 0).read()[-1]
    assert beat.get("loss") != beat.get("loss")
    assert set(beat.fields) == {"step", "loss", "pod"}


def test_a_beat_survives_a_directory_that_is_gone(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    env.run.path.rename(tmp_path / "away")
    run = Run(env)
    run.beat(step=1)
    run.phase("loading")
    assert run._beats is not None and run._beats.lost == 0
    (tmp_path / "away").rename(env.run.path)
    run.phase("evaluating")
    told = [b.msg for b in BeatReader(env.run.heartbeat(0), 0).read()]
    assert told == [Phase.STARTING, Phase.PROGRESS, Phase.LOADING, Phase.EVALUATING]


def test_a_forked_child_is_not_the_rank(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    run = Run(env)
    pid = os.fork()
    if pid == 0:
        run.phase("done")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [b.msg for b in BeatReader(env.run.heartbeat(0), 0).read()] == [Phase.STARTING]


def test_what_counts_as_a_halt_request(tmp_path: Path) -> None:
    halt = make_run(tmp_path).halt
    assert not is_halt_request(halt)
    halt.symlink_to(tmp_path)
    assert not is_halt_request(halt)
    halt.unlink()
    os.mkfifo(halt)
    assert not is_halt_request(halt)
    halt.unlink()
    halt.write_bytes(b"any text")
    assert is_halt_request(halt)
    if os.geteuid() == 0:
        os.chown(halt, 12345, 12345)
        assert not is_halt_request(halt)


def test_a_halt_is_a_latch_one_step_late(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    run = Run(env)
    assert not run.should_halt(1)
    env.run.halt.touch()
    deadline = time.monotonic() + 60
    while not run.asked_to_halt:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    env.run.halt.unlink()
    assert not run.should_halt(2)
    assert run.should_halt(3) and run.should_halt(4)


def test_the_ack_names_checkpoint_and_hash(tmp_path: Path) -> None:
    env = local_env(tmp_path)
    own = tmp_path / "model.pt"
    own.write_bytes(b"weights")
    assert Run(env).halted(7, checkpoint=own) == 75
    ack = json.loads(env.run.halt_ack(0).read_text())
    assert ack["step"] == 7 and ack["attempt"] == 3 and ack["checkpoint"] == str(own) and len(ack["hash"]) == 64


@pytest.mark.parametrize(("text", "stale"), [("3\n", False), ("4", True), ("x", False), ("", False), ("-1", False)])
def test_the_epoch_fence(tmp_path: Path, text: str, stale: bool) -> None:
    env = local_env(tmp_path)
    assert newest_epoch(env) is None
    env.run.epoch.write_text(text)
    if stale:
        with pytest.raises(SystemExit) as e:
            Run(env).check_epoch()
        assert e.value.code == 76
    else:
        Run(env).check_epoch()
