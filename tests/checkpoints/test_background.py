"""Saves beside training: what is saved is the state of their moment, and every rule of a save holds for them too."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.checkpoints.killer import NEW, NEWEST, OLD
from tests.checkpoints.saver import FileState, begin, checkpointer, content, leftovers, make_run, save, verified
from tests.train.harness import exactness, launch_ranks, train
from tests.train.harness import make_run as make_training
from workloads.contract.beats import BeatReader
from workloads.contract.config.job import CheckpointSpec
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase
from workloads.contract.trouble import Word, read_troubles
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.hostmemory import available_bytes
from workloads.runtime.newest import choose
from workloads.runtime.state import TorchState
from workloads.train.saves import Saves


def assert_waits(go: threading.Event) -> None:
    assert go.wait(20)


def loaded(run: RunDir, path: Path) -> bytes:
    state = FileState()
    saver = checkpointer(run, 9, state=state)
    saver.load(path)
    return state.read_bytes


def test_what_is_saved_is_the_state_of_the_moment_it_was_begun(tmp_path: Path) -> None:
    run, go = make_run(tmp_path), threading.Event()
    saver = checkpointer(run)
    begin(saver, OLD, lambda: assert_waits(go))
    assert (saver.underway, saver.finished, verified(run)) == (OLD, False, [])
    saver._state.step = NEW  # type: ignore[attr-defined]  # training goes on
    with pytest.raises(RuntimeError, match="under way"):
        begin(saver, NEW)
    with pytest.raises(RuntimeError, match="under way"):
        save(saver, NEW)
    go.set()
    done = saver.collect()
    assert done is not None and (done.step, done.path) == (OLD, run.checkpoint(OLD))
    assert done.blocked_s < done.seconds + done.blocked_s and saver.underway is None
    assert verified(run) == [OLD] and loaded(run, run.checkpoint(OLD)) == content(OLD, 60_000)
    assert saver.collect() is None and save(saver, OLD) == run.checkpoint(OLD)


def test_one_that_fails_is_told_and_the_next_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run)

    def refuse() -> None:
        raise OSError("3 lines are not written")

    begin(saver, OLD, refuse)
    done = saver.collect()
    assert done is not None and done.path is None and leftovers(run) == []
    assert f"warning: checkpoint of step {OLD} was not saved: rank 0: 3 lines" in capsys.readouterr().err
    begin(saver, NEWEST)
    done = saver.collect()
    assert done is not None and done.path == run.checkpoint(NEWEST) and verified(run) == [NEWEST]
    assert [t.what for t in read_troubles(run)[0]] == [Word.UNSAVED, Word.SAVED_AGAIN]


def test_a_newer_attempt_is_met_in_the_background(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    saver = checkpointer(run)
    assert save(saver, OLD)

    def arrive() -> None:
        run.epoch.write_text("2\n")

    begin(saver, NEW, arrive)
    with pytest.raises(StaleEpochError):
        saver.collect()
    assert verified(run) == [OLD] and leftovers(run) == [] and saver.underway is None


def test_what_else_goes_wrong_is_raised_where_it_is_collected(tmp_path: Path) -> None:
    saver = checkpointer(make_run(tmp_path))

    def fail() -> None:
        raise RuntimeError("gloo/transport: peer")

    begin(saver, OLD, fail)
    with pytest.raises(RuntimeError, match="peer"):
        saver.collect()


def torch_saver(run: RunDir, attempt: int = 1) -> tuple[Checkpointer, torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = TorchState(0, Agreement(), model, optimizer)
    return checkpointer(run, attempt, state=state), model, optimizer


def a_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 32)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_tensors_moments_and_generators_are_those_of_the_moment(tmp_path: Path) -> None:
    run, go = make_run(tmp_path), threading.Event()
    saver, model, optimizer = torch_saver(run)
    a_step(model, optimizer)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    generator = torch.get_rng_state()
    write = saver._state.write_all  # type: ignore[attr-defined]
    saver._state.write_all = lambda *a: (go.wait(20), write(*a))[1]  # type: ignore[attr-defined]
    begin(saver, OLD)
    for _ in range(3):
        a_step(model, optimizer)
    go.set()
    done = saver.collect()
    assert done is not None and done.path is not None

    other, twin, its = torch_saver(run, 2)
    other.load(done.path)
    assert all(torch.equal(v, weights[k]) for k, v in twin.state_dict().items())
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(its.state.values(), moments, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_the_copy_is_made_into_the_same_memory_again(tmp_path: Path) -> None:
    saver, model, optimizer = torch_saver(make_run(tmp_path))
    a_step(model, optimizer)
    state = saver._state
    assert isinstance(state, TorchState)
    first = state.capture().tensors["model"]  # type: ignore[attr-defined]
    places = {k: v.data_ptr() for k, v in first.items()}
    a_step(model, optimizer)
    again = state.capture().tensors["model"]  # type: ignore[attr-defined]
    assert {k: v.data_ptr() for k, v in again.items()} == places
    assert not set(places.values()) & {v.data_ptr() for v in model.state_dict().values()}
    assert state.copy_bytes() == 3 * 4 * sum(p.numel() for p in model.parameters())


def test_without_room_for_the_copies_saves_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    for spec, free, in_background in (("async", 1 << 30, True), ("async", 100_000, False), ("sync", 1 << 30, False)):
        monkeypatch.setattr("workloads.runtime.checkpoint.available_bytes", lambda free=free: free)
        saver = checkpointer(run)
        saves = Saves(saver, CheckpointSpec(mode=spec))  # type: ignore[arg-type]
        saves.open()
        step = 10 * (len(verified(run)) + 1)
        saver._state.step = step  # type: ignore[attr-defined]
        assert saves.save(step, {"v": 1}, lambda: None, stay=False)
        assert (saver.underway is not None) == in_background
        saves.wait()
    err = capsys.readouterr().err
    assert err.count("checkpoint.mode is sync: rank 0: 0 MiB for copies, 0 MiB available") == 1


def test_one_is_due_by_the_clock_and_not_while_one_is_under_way_unless_that_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, go = make_run(tmp_path), threading.Event()
    saver = checkpointer(run)
    saves = Saves(saver, CheckpointSpec(every_s=1e-6))
    saves.open()
    assert saves.says_due() and saves.says_finished == 0.0
    assert saves.save(10, {"v": 1}, lambda: assert_waits(go), stay=False)
    assert not saves.says_due() and saves.says_finished == 0.0
    monkeypatch.setattr("workloads.train.saves.LATE_S", 0.0)
    assert saves.says_due()
    go.set()
    assert saver._flight is not None and saver._flight.work.wait(20)
    assert saves.says_finished == 10.0
    saves.hear_finished(20.0)  # of a save of another step, as a sum that is a step late may be
    saves.take_note()
    assert [saver.underway] == [10]
    saves.hear_finished(10.0)
    saves.take_note()
    assert [saver.underway] == [None] and verified(run) == [10]


def test_memory_of_host_and_container(tmp_path: Path) -> None:
    assert available_bytes() is not None
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    assert available_bytes(proc, cgroup) is None
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes(proc, cgroup) == 4000 << 10
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert available_bytes(proc, cgroup) == 4000 << 10
    (cgroup / "memory.max").write_text("5000\n")
    assert available_bytes(proc, cgroup) == 4000


SLOW = [sys.executable, "-m", "tests.checkpoints.slow"]
JOB = {"train": {"steps": 4000, "log_every": 4000}, "checkpoint": {"every_s": None, "every_steps": 100}}


@pytest.mark.long
def test_steps_go_on_while_a_save_is_under_way_and_a_halt_waits_for_it(tmp_path: Path) -> None:
    run, gate = make_training(tmp_path, JOB), tmp_path / "gate"
    with launch_ranks(run, argv=SLOW, env={"TEST_GATE": str(gate)}) as ranks:
        ranks.until(lambda: run.staged_checkpoint(100, 1).is_dir())
        ranks.until_step(110)  # what is under way does not end before the gate opens
        run.halt.touch()
        ranks.until(lambda: BeatReader(run.heartbeat(0), 0).read()[-1].msg is Phase.CHECKPOINTING)
        assert verified(run) == [] and not run.halt_ack(0).exists()
        gate.touch()
        assert ranks.wait() == [75, 75]
    ack = read_json(run.halt_ack(0))
    assert verified(run) == [ack["step"], 100] and ack["checkpoint"] == f"step_{ack['step']:08d}" and not leftovers(run)
    beats = BeatReader(run.heartbeat(0), 0).read()
    began = next(i for i, b in enumerate(beats) if b.msg is Phase.CHECKPOINTING)
    after = beats[began + 1]  # the copy is made: training again, long before the checkpoint is there
    assert after.msg is Phase.PROGRESS and after.get("step") == 100
    assert after.ts < run.manifest(run.checkpoint(100)).stat().st_mtime
    assert "checkpoint: step_00000100 in " in ranks.log() and " s of it before the next step" in ranks.log()


@pytest.mark.long
def test_both_modes_compute_the_same_bit_for_bit_and_keep_the_same(tmp_path: Path) -> None:
    found = []
    for mode in ("sync", "async"):
        job = {"train": {"steps": 60}, "checkpoint": {"every_s": None, "every_steps": 7, "mode": mode}}
        run = make_training(tmp_path / mode, job)
        assert train(run) == [0, 0]
        found.append((exactness(run), verified(run)))
        assert choose(checkpointer_of(run)) == run.checkpoint(60)
    assert found[0] == found[1] and found[0][1] == [60, 56]


def checkpointer_of(run: RunDir) -> Checkpointer:
    run.epoch.write_text("2\n")
    return checkpointer(run, 2)
