"""Suite `comm`: real processes over gloo; one that fails, one that hangs, and a rank that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from kernels.bench.probe import Bandwidth
from workloads.bench import comm, commrank
from workloads.bench.commrank import Sample
from workloads.bench.suites import Context
from workloads.contract.process import MARK, marked

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def context() -> Context:
    return Context(CPU, True, 0, cast("Bandwidth", None))  # the probe is not used


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What every process that is started from here carries; who is left is ended, after the test has told of it."""
    mark = f"comm-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, mark)
    yield mark
    for ident in marked(mark):
        ident.signal(signal.SIGKILL)


def test_two_processes_sum_and_are_gone(mark: str) -> None:
    here = context()
    rows = [comm.measure(c, here) for c in comm.cases(CPU, quick=True)]
    assert [r.case for r in rows] == [f"all-reduce {s}, 2 x gloo" for s in ("1 KiB", "256 KiB", "4 MiB")]
    assert {r.verdict for r in rows} == {"ok"} and all(r.timing and r.timing.us > 0 for r in rows)
    small, large = rows[0].extra, rows[-1].extra
    assert 0 < small["bus_gbs"] < large["bus_gbs"] and large["bus_gbs"] == large["algo_gbs"]  # 2 (n - 1) / n is 1
    assert marked(mark) == []


def test_bus_bandwidth_and_its_limit() -> None:
    case = comm.Case("nccl", 8, 64 << 20)
    row = comm.row_of(case, Sample([400.0], 5, True), "NVIDIA H200")
    assert row.extra["bus_gbs"] == pytest.approx(1.75 * (64 << 20) / 400e-6 / 1e9)
    assert row.limit_us == pytest.approx(1.75 * (64 << 20) / 450e9 * 1e6)
    wrong = comm.row_of(case, Sample([400.0], 5, False), "NVIDIA H200")
    assert wrong.verdict == "wrong" and wrong.timing is None


def test_one_gpu_has_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, cases in ((1, 0), (2, 10)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert len(comm.cases(torch.device("cuda", 0))) == cases


@pytest.mark.long
def test_one_that_fails_ends_all_and_says_why() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank [01] ended with exit code 1 and said: .*nonesuch"):
        comm.sweep("nonesuch", 2, [1024])
    assert time.monotonic() - began < 30
    here = context()
    here.kept["comm"] = RuntimeError("told once")
    with pytest.raises(RuntimeError, match="told once"):  # and is not tried again for every size
        comm.measure(comm.cases(CPU)[0], here)


def test_one_that_hangs_is_ended(mark: str) -> None:
    with pytest.raises(RuntimeError, match=r"rank 0, 1 of 2 did not end within 1 s"):
        comm.sweep("gloo", 2, [1 << 28] * 50, limit_s=1.0)
    assert marked(mark) == []


def test_killed_in_the_middle_it_leaves_no_orphans(tmp_path: Path, mark: str) -> None:
    code = "from workloads.bench import comm; comm.sweep('gloo', 2, [1 << 28] * 50)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    rank = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(marked(mark)) < 3 or not list(tmp_path.glob("*/store")):  # the children live, and have begun to meet
            assert rank.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        rank.kill()
        rank.wait()
    deadline = time.monotonic() + 60
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == []


def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    order = commrank.Order("gloo", 2, (1024,), "/nonexistent", parent=1 << 22)
    argv = [sys.executable, "-m", "workloads.bench.commrank", order.as_json(), "0"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stdout == done.stderr == b""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_between_cards() -> None:
    device = torch.device("cuda", 0)
    here = Context(device, True, 0, cast("Bandwidth", None))
    rows = [comm.measure(c, here) for c in comm.cases(device, quick=True)]
    assert {r.verdict for r in rows} == {"ok"} and len(rows) == 3, rows
    for row in rows:
        print(row.case, row.timing, row.extra)
