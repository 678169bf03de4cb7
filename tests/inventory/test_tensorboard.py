"""`orch tensorboard` with the real TensorBoard: the scalars of a run over the port that is told, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tests.cli.conftest import ROOT, Orch, make_run
from tests.inventory.conftest import MakeSshd
from tests.inventory.test_commands import add
from tests.inventory.test_pages import gone
from tests.lab.sshd import Sshd, pids
from workloads.contract.files import dump_json, read_json
from workloads.contract.rundir import OrchHome, RunDir

TAG = "train/loss"


def write_scalars(run: RunDir, first: int, last: int) -> None:
    writer = EventFileWriter(str(run.tensorboard))
    for step in range(first, last + 1):
        value = Summary.Value(tag=TAG, simple_value=1 / step)
        writer.add_event(Event(wall_time=1.8e9 + step, step=step, summary=Summary(value=[value])))
    writer.close()


@pytest.fixture
def run_here(home: OrchHome) -> RunDir:
    home.runs.mkdir(parents=True, mode=0o700)
    run = make_run(home).run
    write_scalars(run, 1, 3)
    return run


@pytest.fixture
def run_there(orch: Orch, make_sshd: MakeSshd, tmp_path: Path) -> tuple[RunDir, Sshd]:
    """A run on a pod whose interpreter is this one, which has TensorBoard."""
    there = OrchHome(tmp_path / "orch there")
    there.runs.mkdir(parents=True, mode=0o700)
    sshd = make_sshd()
    assert add(orch, "box", sshd, "--root", str(there.path), "--python", sys.executable).code == 0
    run = make_run(there, "far").run
    with_python(run, sys.executable)
    write_scalars(run, 1, 3)
    assert orch("runs", "--from", "box").code == 0
    return run, sshd


def with_python(run: RunDir, python: str) -> None:
    info = read_json(run.run_json)
    info["pods"][0]["python"] = python
    run.run_json.write_bytes(dump_json(info))


class Opened:
    """The command while it runs, and what it told."""

    def __init__(self, orch: Orch, run: RunDir) -> None:
        self.process = orch.start("tensorboard", run.run_id, "--json")
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.told = json.loads(line)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.told["url"] + path, timeout=60) as answer:
            return json.load(answer)

    def steps(self) -> list[int]:
        """Of the scalars that it serves; [] while it has not read them."""
        if TAG not in self.get("/data/plugin/scalars/tags").get(".", {}):
            return []
        return [row[1] for row in self.get(f"/data/plugin/scalars/scalars?run=.&tag={TAG}")]

    def serves(self, steps: list[int], timeout_s: float = 60.0) -> bool:
        return gone(lambda: self.steps() != steps, timeout_s)

    def is_deaf(self) -> bool:
        try:
            self.get("/data/runs")
        except (urllib.error.URLError, ConnectionError):
            return True
        return False

    def end(self, by: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(by)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


def reading(folder: Path) -> list[int]:
    """Processes that were started with a path below `folder`."""
    found = []
    for pid in pids():
        try:
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_of_a_run_here(orch: Orch, run_here: RunDir, by: signal.Signals) -> None:
    page = Opened(orch, run_here)
    assert page.told["where"] == "local" and page.told["url"].startswith("http://127.0.0.1:")
    assert page.serves([1, 2, 3]) and page.get("/data/runs") == ["."]
    assert reading(run_here.tensorboard)
    code, err = page.end(by)
    assert (code, err) == ((0, "") if by in (signal.SIGINT, signal.SIGTERM) else (-by, ""))
    assert gone(lambda: reading(run_here.tensorboard)) and page.is_deaf()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_of_a_run_on_a_pod_that_has_it(orch: Orch, run_there: tuple[RunDir, Sshd], by: signal.Signals) -> None:
    run, sshd = run_there
    page = Opened(orch, run)
    assert page.told["where"] == "box" and page.serves([1, 2, 3])
    assert set(reading(run.tensorboard)) & set(sshd.commands())
    code, _ = page.end(by)
    assert code == (0 if by == signal.SIGINT else -by)
    assert gone(lambda: sshd.commands() or reading(run.tensorboard)) and page.is_deaf()


def test_a_cut_ends_it_on_both_sides(orch: Orch, run_there: tuple[RunDir, Sshd]) -> None:
    run, sshd = run_there
    page = Opened(orch, run)
    assert page.serves([1, 2, 3])
    sshd.drop_connections()
    code, err = page.wait()
    assert code == 4 and "box" in err and err.count("error[") == 1
    assert gone(lambda: sshd.commands() or reading(run.tensorboard)) and page.is_deaf()


def test_it_is_said_when_tensorboard_ends(orch: Orch, run_here: RunDir) -> None:
    page = Opened(orch, run_here)
    for pid in reading(run_here.tensorboard):
        os.kill(pid, signal.SIGKILL)
    code, err = page.wait()
    assert code == 7 and "E-PODS-088" in err


@pytest.mark.long
def test_of_a_copy_that_goes_on(orch: Orch, home: OrchHome, run_there: tuple[RunDir, Sshd]) -> None:
    """The pod has none: here, over a copy that is brought up to date while it is looked at."""
    run, sshd = run_there
    with_python(run, "/nowhere/python")
    page = Opened(orch, run)
    assert page.told["where"] == "local" and page.serves([1, 2, 3])
    write_scalars(run, 4, 6)
    assert page.serves([1, 2, 3, 4, 5, 6], timeout_s=45)
    copy = home.mirrored(run.run_id).tensorboard
    assert reading(copy)
    assert page.end(signal.SIGINT) == (0, "")
    assert gone(lambda: reading(copy)) and gone(sshd.commands)


def test_a_run_without_event_files(orch: Orch, run_here: RunDir) -> None:
    shutil.rmtree(run_here.tensorboard)
    page = Opened(orch, run_here)
    assert page.get("/data/runs") == []
    code, err = page.end(signal.SIGINT)
    assert code == 0 and "no event files so far" in err


def test_installed_nowhere(orch: Orch, run_here: RunDir, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    env = {**orch.env(), "PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    process = orch.start("tensorboard", run_here.run_id, env=env, stdout=subprocess.DEVNULL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3 and "E-PODS-087" in err and "pip install tensorboard" in err
