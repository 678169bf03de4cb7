"""The rank of a parity run, a real process with real kernels in the interpreter; no supervisor, no Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kernels.parity import FAMILIES
from tests.parity.trees import BROKEN, CASES, FEW, SUITE, a_cell, change, make_tree, rows_of
from workloads.contract.config.job import SUITES
from workloads.contract.files import read_json
from workloads.contract.records import RankRecord, as_wire
from workloads.contract.rundir import RunDir
from workloads.judging.book import Book, Files, read_rows
from workloads.runtime.rankenv import RankEnv

RUN_ID = "parity-20261121T093000Z-00ff"
SLOW = (
    CASES,
    "    with torch.no_grad(), _poisoned():\n",
    "    __import__('time').sleep(0.5)\n    with torch.no_grad(), _poisoned():\n",
)
FATAL = (
    CASES,
    "    with torch.no_grad(), _poisoned():\n",
    "    if cell.id == cells(False)[1].id: __import__('os').kill(__import__('os').getpid(), 9)\n"
    "    with torch.no_grad(), _poisoned():\n",
)


@dataclass
class Desk:
    """One run directory, and one rank process after the other in it."""

    run: RunDir
    tree: Path

    def start(self, attempt: int = 1, **env: str) -> subprocess.Popen[str]:
        self.run.attempt_dir(attempt).mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        told = {
            "ORCH_RUN_DIR": str(self.run.path), "ORCH_RUN_ID": RUN_ID, "ORCH_ATTEMPT": str(attempt),
            "ORCH_POD": "local", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(self.tree),
            "RANK": "0", "WORLD_SIZE": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workloads.parity"], env={**kept, **told, **env}, cwd=self.run.path,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __call__(self, attempt: int = 1, code: int = 0, **env: str) -> str:
        process = self.start(attempt, **env)
        try:
            out, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode == code, out
        return out

    def died(self, attempt: int, cause: str = "signalled") -> None:
        """What the shim writes when a rank ended."""
        record = RankRecord(
            RUN_ID, attempt, 0, "local", 1, 1, "b", ["x"], 1.0, pid=2, start_time=1, ended=2.0, cause=cause
        )
        self.run.rank_record(attempt, 0).write_text(json.dumps(as_wire(record)))

    @property
    def cases(self) -> list[str]:
        return [r["case"] for r in rows_of(self.run.parity_rows)]


def make(tmp_path: Path, *changes: tuple[str, str, str], tree: Path | None = None, **asked: Any) -> Desk:
    run = RunDir(tmp_path / "home" / "runs" / RUN_ID)
    run.path.mkdir(parents=True)
    for folder in run.skeleton():
        folder.mkdir()
    code = tree or make_tree(tmp_path / "tree", *changes)
    job = {"name": "parity", "kind": "parity", "parity": {"suites": [SUITE], **asked}}
    doc = {
        "v": 1,
        "job": job,
        "tree": str(code),
        "code": {"commit": "c" * 40, "dirty": True},
        "source": "orch parity x",
    }
    run.run_json.write_text(json.dumps(doc))
    return Desk(run, code)


def test_the_job_and_the_runner_name_the_same_suites() -> None:
    assert tuple(FAMILIES) == SUITES


def test_go_leaves_rows_a_table_a_verdict_and_what_later_launches_ask_for(tmp_path: Path) -> None:
    desk = make(tmp_path, FEW)
    out = desk()
    assert out.splitlines()[-1] == "go: 6 cells" and "cell 6/6" in out
    rows = rows_of(desk.run.parity_rows)
    assert len(rows) == 6 and {r["verdict"] for r in rows} == {"ok"} and {r["commit"] for r in rows} == {"c" * 40}
    assert all(0 <= r["err"] <= r["tol"] and r["suite"] == "parity-decoupled" for r in rows)
    verdict = read_json(desk.run.verdict)
    assert (verdict["verdict"], verdict["why"], verdict["attempt"]) == ("go", "6 cells", 1)
    assert verdict["data"]["environment"]["gpu"] == "interpreter" and verdict["data"]["command"] == "orch parity x"
    text = desk.run.parity_report.read_text()
    assert text.startswith("# Kernel parity: go, 6 cells\n") and all(f"| {r['case']} |" in text for r in rows)
    assert f"{'c' * 40}, with uncommitted changes" in text and not desk.run.parity_cell.exists()
    (kept,) = (tmp_path / "home" / "parity").iterdir()
    row = read_json(kept)
    assert (row["suite"], row["verdict"], row["cells"], row["run"], row["full"]) == (SUITE, "go", 6, RUN_ID, False)
    beats = rows_of(desk.run.heartbeat(0))
    assert [b["msg"] for b in beats][:2] == ["starting", "loading"] and beats[-1]["msg"] == "done"
    assert (beats[-1]["step"], beats[-1]["steps"]) == (6, 6)


def test_a_kernel_with_one_wrong_line_is_no_go_and_the_cell_is_named(tmp_path: Path) -> None:
    cell = a_cell(plan="2p2", null="contiguous")
    desk = make(tmp_path, BROKEN, only=cell)
    out = desk(code=78)
    assert out.splitlines()[-1] == "no-go: 1 of 1 cell"
    assert f"alone: python -m kernels.parity decoupled --device cpu --only '{cell}'" in out
    assert read_json(desk.run.verdict)["why"] == "1 of 1 cell"
    (row,) = rows_of(desk.run.parity_rows)
    assert row["err"] > row["tol"] and row["verdict"].startswith("WRONG")
    assert not (tmp_path / "home" / "parity").exists()  # one cell is no verdict about the suite
    change(desk.tree, BROKEN[0], BROKEN[2], BROKEN[1])  # mended: the old row counts no more
    assert "made with other code" in desk(2) and read_json(desk.run.verdict)["verdict"] == "go"
    assert rows_of(desk.run.archived_parity_rows(2)) == [row]


@pytest.mark.long
def test_halted_between_two_cells_it_goes_on_behind_them(tmp_path: Path) -> None:
    desk = make(tmp_path, FEW, SLOW)
    process = desk.start()
    deadline = time.monotonic() + 600
    while len(desk.cases) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    desk.run.halt.touch()
    out, _ = process.communicate(timeout=600)
    done = desk.cases
    assert process.returncode == 75 and 2 <= len(done) < 6, out
    ack = read_json(desk.run.halt_ack(0))
    assert ack["step"] == len(done) and len(ack["hash"]) == 64 and not desk.run.verdict.exists()
    desk.run.halt.unlink()
    out = desk(2)
    assert f"going on behind the {len(done)} of 6 cells that are done" in out
    assert desk.cases[: len(done)] == done and len(desk.cases) == len(set(desk.cases)) == 6
    assert out.count("cell ") >= 6 - len(done) and read_json(desk.run.verdict)["attempt"] == 2


@pytest.mark.long
def test_a_cell_in_which_two_processes_died_is_wrong_and_the_rest_is_judged(tmp_path: Path) -> None:
    desk = make(tmp_path, FEW, FATAL)
    desk(1, code=-signal.SIGKILL)
    desk.died(1, "halt-kill")  # orch did it: that cell is not to blame
    desk(2, code=-signal.SIGKILL)
    desk.died(2)
    desk(3, code=-signal.SIGKILL)
    desk.died(3)
    out = desk(4, code=78)
    assert out.splitlines()[-1] == "no-go: 1 of 6 cells" and len(desk.cases) == 6
    wrong = [r for r in rows_of(desk.run.parity_rows) if r["verdict"] != "ok"]
    assert [r["verdict"] for r in wrong] == ["failed: 2 processes in a row ended in this cell"]
    assert wrong[0]["case"] == desk.cases[1]


@pytest.mark.long
def test_a_process_that_lost_its_device_makes_room_for_a_new_one(tmp_path: Path) -> None:
    """As on a GPU after an illegal access, here by two lines: the row is kept, the step is told, the next goes on."""
    lost = ("workloads/judging/machine.py", "        torch.cuda.synchronize()\n", "        raise RuntimeError\n")
    here = ("workloads/parity/matrix.py", 'not outcome.ok and self._device == "cuda"', "not outcome.ok")
    wrong, right = a_cell(plan="2p2", null="contiguous"), a_cell(plan="2p2", null="none")
    two = (
        CASES,
        FEW[1],
        f"    return sorted((c for c in made if c.id in {(wrong, right)!r}), key=lambda c: c.id == {right!r})\n",
    )
    desk = make(tmp_path, two, BROKEN, lost, here)
    assert "unusable for this process" in desk(1, code=1)
    assert desk.cases == [wrong] and rows_of(desk.run.heartbeat(0))[-1]["step"] == 1
    desk.died(1, "exited")
    assert desk(2, code=78).splitlines()[-1] == "no-go: 1 of 2 cells" and desk.cases == [wrong, right]


@pytest.mark.parametrize(
    ("asked", "env", "code"),
    [
        ({"only": "no-such-cell"}, {}, "E-PARITY-006"),
        pytest.param({"device": "cuda"}, {}, "E-PARITY-005", marks=pytest.mark.long),
        ({}, {"KERNELS_BACKEND": "reference"}, "E-PARITY-004"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    tmp_path: Path, asked: dict[str, Any], env: dict[str, str], code: str
) -> None:
    from tests.repo.test_house import ROOT

    desk = make(tmp_path, tree=ROOT, **asked)
    assert f"error[{code}]" in desk(code=77, **env) and not desk.run.verdict.exists()


def test_rows_count_only_beside_what_they_were_made_with(tmp_path: Path) -> None:
    env = RankEnv.read({"ORCH_RUN_DIR": str(tmp_path), "ORCH_ATTEMPT": "1"})
    assert env is not None
    book, row = Book(env, Files.of_parity(env.run, 1), {"code": "a"}), {"suite": "s", "case": "c", "verdict": "ok"}
    assert book.begin(("s", "c")) == 0
    book.add(("s", "c"), row)
    book.rest()
    with env.run.parity_rows.open("a") as f:
        f.write('{"suite": "s", "ca')  # torn: a full disk, a kill
    again = Book(env, Files.of_parity(env.run, 1), {"code": "a"})
    assert again.rows == {("s", "c"): row}
    again.add(("s", "d"), {**row, "case": "d"})
    assert list(read_rows(env.run.parity_rows)) == [("s", "c"), ("s", "d")]
    other = Book(replace(env, attempt=2), Files.of_parity(env.run, 2), {"code": "b"})
    assert other.rows == {} and env.run.archived_parity_rows(2).read_bytes().count(b"verdict") == 2


def test_by_hand_it_says_what_to_type() -> None:
    done = subprocess.run([sys.executable, "-m", "workloads.parity"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "orch parity" in done.stderr
