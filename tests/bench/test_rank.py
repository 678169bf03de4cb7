"""The rank of a bench run, a real process with the real suites on the CPU; no supervisor, no Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parity.trees import make_tree, rows_of
from workloads.bench.suites import MODULES
from workloads.contract.config.job import BENCH_SUITES
from workloads.contract.files import read_json
from workloads.contract.records import RankRecord, as_wire
from workloads.contract.rundir import RunDir

RUN_ID = "bench-20261121T093000Z-00ff"
MATRIX = "workloads/bench/matrix.py"
MEASURE = "            measured = suite_of(suite).measure(case, self._ready)\n"
SLOW_NULL = (MATRIX, MEASURE, f"            if '+null' in case.name: __import__('time').sleep(1.2)\n{MEASURE}")
SLOW = (MATRIX, MEASURE, f"            if suite == 'decoupled': __import__('time').sleep(1.0)\n{MEASURE}")
FATAL = (
    MATRIX, MEASURE,
    f"            if case.name == 'read 4 MiB': __import__('os').kill(__import__('os').getpid(), 9)\n{MEASURE}",
)  # fmt: skip
CALL = "            return self._reference(q, new, k_cache, v_cache, seq_lens, out, write)"
BROKEN = ("kernels/kv_decode/plan.py", f"{CALL}\n", f"{CALL}.mul_(1.01)\n")
"""A kernel whose answers are 1 % too large."""


@dataclass
class Desk:
    """One run directory, and one rank process after the other in it."""

    run: RunDir
    tree: Path

    def start(self, attempt: int = 1) -> subprocess.Popen[str]:
        self.run.attempt_dir(attempt).mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        told = {
            "ORCH_RUN_DIR": str(self.run.path), "ORCH_RUN_ID": RUN_ID, "ORCH_ATTEMPT": str(attempt),
            "ORCH_POD": "local", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(self.tree), "RANK": "0",
            "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workloads.bench"], env={**kept, **told}, cwd=self.run.path,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __call__(self, attempt: int = 1, code: int = 0) -> str:
        process = self.start(attempt)
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
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.run.bench_rows)

    @property
    def cases(self) -> list[str]:
        return [r["case"] for r in self.rows]


def make(tmp_path: Path, *changes: tuple[str, str, str], **asked: Any) -> Desk:
    run = RunDir(tmp_path / "home" / "runs" / RUN_ID)
    run.path.mkdir(parents=True)
    for folder in run.skeleton():
        folder.mkdir()
    tree = make_tree(tmp_path / "tree", *changes)
    job = {"name": "bench", "kind": "bench", "bench": {"quick": True, **asked}}
    doc = {
        "v": 1, "job": job, "tree": str(tree), "code": {"commit": "c" * 40, "dirty": True}, "source": "orch bench x",
    }  # fmt: skip
    run.run_json.write_text(json.dumps(doc))
    return Desk(run, tree)


def test_the_job_and_the_rank_name_the_same_suites() -> None:
    assert tuple(MODULES) == BENCH_SUITES


def test_halted_between_two_cases_it_goes_on_behind_them_and_leaves_rows_a_table_a_page_a_verdict(
    tmp_path: Path,
) -> None:
    desk = make(tmp_path, SLOW_NULL)
    process = desk.start()
    deadline = time.monotonic() + 600
    while len(desk.cases) < 7:  # behind the first case of decoupled, whose peers the others take from its row
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    desk.run.halt.touch()
    out, _ = process.communicate(timeout=600)
    done = desk.cases
    assert process.returncode == 75 and 7 <= len(done) < 10, out
    ack = read_json(desk.run.halt_ack(0))
    assert ack["step"] == len(done) and len(ack["hash"]) == 64 and not desk.run.verdict.exists()

    desk.run.halt.unlink()
    out = desk(2)
    rows = desk.rows
    assert (
        f"going on behind the {len(done)} of 10 cases that are done" in out and out.splitlines()[-1] == "go: 10 cases"
    )
    assert desk.cases[: len(done)] == done and len(set(desk.cases)) == len(rows) == 10
    assert [r["suite"] for r in rows] == ["bandwidth"] * 4 + ["kv-decode"] * 2 + ["decoupled"] * 4
    for r in rows:
        assert r["verdict"] == "ok" and r["us"] > 0 and r["how"] == "wall" and r["l2"] == "rotated"
        assert (r["commit"], r["command"], r["device"]) == ("c" * 40, "orch bench x", "cpu") and r["read_tbs"] > 0
        assert r["suite"] == "bandwidth" or (r["err"] <= r["tol"] and set(r["peers"]) == {"sdpa"})
    null = next(r for r in rows if r["shape"].get("null"))
    assert null["must_us"] == pytest.approx(1.03 * rows[6]["us"], rel=1e-3) and null["peers"] == rows[6]["peers"]

    verdict = read_json(desk.run.verdict)
    assert (verdict["verdict"], verdict["why"], verdict["attempt"]) == ("go", "10 cases", 2)
    assert verdict["data"]["environment"]["device"] == "cpu" and not desk.run.bench_case.exists()
    text, page = desk.run.bench_report.read_text(), desk.run.bench_page.read_text()
    assert text.startswith("# Benchmark: go, 10 cases\n") and all(f"| {r['case']} |" in text for r in rows)
    assert "orch bench x" in text and "wall clock, inputs rotated past the L2 (10 cases)" in text
    assert all(r["case"] in page for r in rows) and "://" not in page
    assert not desk.run.thresholds.exists()  # a CPU says nothing of a GPU
    beats = rows_of(desk.run.heartbeat(0))
    assert beats[-1]["msg"] == "done" and (beats[-1]["step"], beats[-1]["steps"]) == (10, 10)


def test_a_wrong_kernel_is_no_go_is_named_and_is_not_timed(tmp_path: Path) -> None:
    desk = make(tmp_path, BROKEN, suites=["kv-decode"])
    out = desk(code=78)
    assert out.splitlines()[-1] == "no-go: 2 of 2 cases" and "  wrong: error " in out
    assert [(r["verdict"], r["us"]) for r in desk.rows] == [("wrong", None)] * 2
    assert all(r["err"] > r["tol"] and r["peers"]["sdpa"] > 0 for r in desk.rows)
    assert desk.run.bench_page.read_text().count("<tr class=wrong>") == 2
    assert read_json(desk.run.verdict)["verdict"] == "no-go"


@pytest.mark.long
def test_a_case_in_which_two_processes_died_has_failed_and_the_rest_is_measured(tmp_path: Path) -> None:
    desk = make(tmp_path, FATAL, suites=["bandwidth"], write_thresholds=True)
    desk(1, code=-signal.SIGKILL)
    desk.died(1, "halt-kill")  # orch did it: that case is not to blame
    desk(2, code=-signal.SIGKILL)
    desk.died(2)
    desk(3, code=-signal.SIGKILL)
    desk.died(3)
    out = desk(4, code=78)
    assert out.splitlines()[-1] == "no-go: 1 of 4 cases" and len(desk.cases) == 4
    (wrong,) = [r for r in desk.rows if r["verdict"] != "ok"]
    assert (wrong["case"], wrong["error"]) == ("read 4 MiB", "2 processes in a row ended in this case")
    assert "no thresholds were installed" in out and not (tmp_path / "home" / "thresholds").exists()


@pytest.mark.long
def test_every_suite_on_the_cpu(tmp_path: Path) -> None:
    desk = make(tmp_path, suites=list(BENCH_SUITES))
    out = desk()
    measured = {r["suite"] for r in desk.rows}
    left_out = set(read_json(desk.run.verdict)["data"]["absent"])
    assert measured | left_out == set(BENCH_SUITES) and not measured & left_out and "go: " in out
    assert all(r["verdict"] == "ok" for r in desk.rows), out


@pytest.mark.long
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    desk = make(tmp_path, device="cuda")
    assert "error[E-BENCH-003]" in desk(code=77) and not desk.run.verdict.exists()


def test_by_hand_it_says_what_to_type() -> None:
    done = subprocess.run([sys.executable, "-m", "workloads.bench"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "orch bench" in done.stderr and "E-BENCH-001" in done.stderr
