"""Event files: every step once, after a resume too; a step never waits; a full disk ends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.adapters.conftest import STEPS, WAIT_S, Make, halt
from tests.supervisor.runs import request
from workloads.runtime import tb
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.run import Run
from workloads.runtime.tb import TAGS, Board

EventAccumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a page shows of a folder of event files."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(s.step, s.value) for s in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_the_figures_of_a_step_are_shown(tmp_path: Path) -> None:
    board = Board(tmp_path / "tb", 1)
    figures = {"loss": 2.5, "lr": 0.1, "grad_norm": 1.0, "toks_per_s": 9.0, "mfu": None, "gpu_mem_alloc": 512}
    board.note(1, {**figures, "data_source": "stdlib", "steps": 100})
    board.note(2, {"loss": 2.25})
    board.close()
    shown = scalars(tmp_path / "tb")
    assert shown[TAGS["loss"]] == [(1, 2.5), (2, 2.25)] and shown[TAGS["gpu_mem_alloc"]] == [(1, 512.0)]
    assert set(shown) == {TAGS[k] for k in ("loss", "lr", "grad_norm", "toks_per_s", "gpu_mem_alloc")}
    (file,) = (tmp_path / "tb").iterdir()
    assert file.name.startswith("events.out.tfevents.") and file.name.endswith(".a1")


def test_steps_that_are_made_again_are_shown_once(tmp_path: Path) -> None:
    for attempt, (first, last, loss) in enumerate([(1, 100, 1.0), (61, 120, 2.0), (111, 130, 3.0)], 1):
        board = Board(tmp_path / "tb", attempt)
        for step in range(first, last + 1):
            board.note(step, {"loss": loss})
        board.close()
        time.sleep(1.1)  # files are read in the order of their names, which have seconds
    shown = scalars(tmp_path / "tb")[TAGS["loss"]]
    assert [step for step, _ in shown] == list(range(1, 131))
    assert [value for step, value in shown if step in (60, 61, 110, 111)] == [1.0, 2.0, 2.0, 3.0]


def test_a_step_does_not_wait_for_a_disk_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(tb, "MAX_WAITING", 50)
    monkeypatch.setattr(tb.RowFile, "write", lambda self, line: stuck.wait(60))
    board = Board(tmp_path / "tb", 1)
    board._queue.maxsize = 50
    worst = 0.0
    for step in range(1, 500):
        began = time.perf_counter()
        board.note(step, {"loss": 1.0})
        worst = max(worst, time.perf_counter() - began)
    assert board.dropped >= 300 and worst < 0.5
    began = time.monotonic()
    board.close(0.5)
    assert time.monotonic() - began < 30
    stuck.set()


def test_a_full_disk_leaves_a_file_that_can_be_read_and_what_waited_follows(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel cuts the write in the middle of a record."""
    code = """
import resource, signal, sys, time
from pathlib import Path
from workloads.runtime.tb import Board
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
board = Board(Path(sys.argv[1]), 1)
for step in range(1, 101):
    board.note(step, {"loss": 1.0 / step})
    time.sleep(0.01)
time.sleep(1.5)
print("full", sum(p.stat().st_size for p in Path(sys.argv[1]).iterdir()), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
board.note(101, {"loss": 0.0})
board.close()
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tb")],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert int(done.stdout.split()[1]) <= 2000 and done.stderr.count("warning: ") == 1
    assert [step for step, _ in scalars(tmp_path / "tb")[TAGS["loss"]]] == list(range(1, 102))


@pytest.mark.parametrize(
    ("info", "rank", "shown"),
    [
        ({"kind": "train", "job": {"train": {"tensorboard": True}}}, 0, True),
        ({"kind": "train", "job": {"train": {"tensorboard": False}}}, 0, False),
        ({"kind": "train", "job": {"train": {}}}, 0, True),  # of an orch that knew no such key
        ({"kind": "train", "job": {}}, 1, False),
        ({"kind": "command", "job": {}}, 0, True),
        ({"kind": "bench", "job": {}}, 0, False),
    ],
)
def test_rank_0_of_a_training_writes_them(tmp_path: Path, info: dict[str, object], rank: int, shown: bool) -> None:
    (tmp_path / "run.json").write_text(json.dumps(info))
    env = RankEnv.read({"ORCH_RUN_DIR": str(tmp_path), "RANK": str(rank), "WORLD_SIZE": "2"})
    run = Run(env)
    run.beat(step=1, steps=10)  # the trainer's first beat has no figures: they come a step later
    run.beat(step=1, loss=3.0)
    run.beat(step=2, loss=2.0)
    run.beat(step=2, loss=2.0)
    run.done(2)
    assert (tmp_path / "tb").exists() == shown
    if shown:
        assert scalars(tmp_path / "tb")[TAGS["loss"]] == [(1, 3.0), (2, 2.0)]


def test_without_the_package_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tb.importlib.util, "find_spec", lambda name: None)
    board = Board(tmp_path / "tb", 1)
    board.note(1, {"loss": 1.0})
    board.close()
    assert not (tmp_path / "tb").exists()


@pytest.mark.long
def test_a_resumed_script_shows_each_step_once(make: Make) -> None:
    desk = make("plain_orch.py", str(STEPS), "0.02", name="shown")
    halt(desk, 20)
    request(desk.run, "resume", "efgh", why="go on")
    desk.until("succeeded", timeout_s=WAIT_S)
    shown = scalars(desk.run.tensorboard)
    assert [step for step, _ in shown[TAGS["loss"]]] == list(range(1, STEPS + 1))
    rows = [row.split(",") for row in desk.run.training_csv.read_text().splitlines()[1:]]
    assert [value for _, value in shown[TAGS["loss"]]] == pytest.approx([float(row[1]) for row in rows], rel=1e-6)
    assert {"train/lr", "speed/tokens_per_s", "speed/step_time_s"} <= set(shown)
