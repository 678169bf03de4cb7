"""A rank that prints more than its log may hold: the oldest goes, the newest stays, offsets hold, and it is told."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.runs.logs import iter_lines, last_lines
from orchestrator.runs.source import FarSource
from orchestrator.supervisor.orders import make_orders
from orchestrator.supervisor.spec import parse_spec
from orchestrator.supervisor.told import new_lines
from pods.pod import FarPod
from pods.remote.runfiles import name_in
from pods.transport.local import LocalTransport
from tests.pod.shimlab import Lab, until
from tests.supervisor.runs import run_row
from workloads.contract.config.job import JobSpec
from workloads.contract.files import solid_from
from workloads.contract.rundir import OrchHome, RunDir
from workloads.shim.loglimit import HEAD_BYTES, MARK_BYTES, LogLimit, cut_to, punch

MIB = 1 << 20
LINE = 64
TALK = """
import os, sys, time
for i in range({lines}):
    os.write(1, b"%{width}d\\n" % i)
os.write(2, b"enough\\n")
time.sleep({stay})
"""


@pytest.fixture
def holes(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    path.write_bytes(b"x" * 16384)
    fd = os.open(path, os.O_RDWR)
    try:
        punch(fd, 4096, 8192)
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:
            pytest.skip("this file system has no holes")
        raise
    finally:
        os.close(fd)


@pytest.fixture
def lab(tmp_path: Path, holes: None) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def talk(lines: int, stay: float = 0.0) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", TALK.format(lines=lines, width=LINE - 1, stay=stay)]


def guard_lines(run: RunDir) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.guard_log.read_text().splitlines()]


def test_the_oldest_output_goes_and_the_newest_stays(lab: Lab) -> None:
    lines, limit = 250_000, 8 * MIB
    lab.start(lab.order(talk(lines, 600), log_max_bytes=limit))
    path = lab.run.rank_log(0)
    until(lambda: path.exists() and path.read_bytes()[-7:] == b"enough\n", 60, lab.shim_says)
    until(lambda: path.stat().st_blocks * 512 <= limit, 20, lab.shim_says)
    assert path.stat().st_size == lines * LINE + len("enough\n")  # offsets are what they were
    whole = list(iter_lines(path))
    assert whole[0].strip() == b"0" and whole[-1] == b"enough" and not any(b"\0" in line for line in whole)
    assert sum(b"bytes of output were dropped here" in line for line in whole) == 1
    kept = [int(line) for line in whole[-1000:-1]]
    assert kept == list(range(lines - 999, lines)) and last_lines(path, 2)[0].strip() == str(lines - 1)
    (row, *_) = guard_lines(lab.run)
    assert row["rule"] == "log_limit" and row["rank"] == 0 and "its log holds" in str(row["why"])
    assert "(limit 8 MiB)" in str(row["why"]) and str(row["did"]).startswith("dropped ")
    told, _ = new_lines(lab.run, {})  # the supervisor makes an event of each
    assert told[0].why == row["why"] and told[0].data["rule"] == "log_limit" and told[0].data["rank"] == 0


def test_a_rank_below_its_limit_loses_nothing(lab: Lab) -> None:
    lab.start(lab.order(talk(20_000), log_max_bytes=8 * MIB))
    lab.ended()
    assert lab.run.rank_log(0).stat().st_size == 20_000 * LINE + 7 and not lab.run.guard_log.exists()
    with lab.run.rank_log(0).open("rb") as f:
        assert solid_from(f.fileno(), 20_000 * LINE + 7) == 0


def test_a_copy_keeps_what_it_has_and_passes_over_what_was_dropped(tmp_path: Path, holes: None) -> None:
    there, home = OrchHome(tmp_path / "there"), OrchHome(tmp_path / "home")
    lab = Lab.make(tmp_path)
    run = there.run(lab.run.run_id)
    there.runs.mkdir(parents=True)
    home.path.mkdir()
    lab.run.path.rename(run.path)
    log, name = run.rank_log(0), name_in(run, run.rank_log(0))
    data = b"".join(b"%63d\n" % i for i in range(40 * MIB // LINE))
    log.write_bytes(data[: 2 * MIB])
    pod = FarPod("box", LocalTransport(), root=str(there.path))
    try:
        early = FarSource(home, home.mirrored(run.run_id), "box", lambda: pod)
        while early.refresh("logs", {name: None}):
            pass
        with log.open("ab") as f:
            f.write(data[2 * MIB :])
        order = lab.order(["true"], log_max_bytes=8 * MIB)
        limit = LogLimit(order, run, lambda _: None)
        limit.look(1e6)
        start = cut_to(len(data), 7 * MIB)
        assert limit.dropped == start - HEAD_BYTES - MARK_BYTES
        other = OrchHome(tmp_path / "another home")
        other.path.mkdir()
        late = FarSource(other, other.mirrored(run.run_id), "box", lambda: pod)
        for source in (early, late):
            before = source.size_bytes
            while source.refresh("logs", {name: None}):
                pass
            copy = source.run.rank_log(0)
            assert source.size_bytes - before < 9 * MIB and copy.stat().st_size == len(data)
            assert copy.read_bytes()[start:] == data[start:] and source.floor(copy) == start
        assert home.mirrored(run.run_id).rank_log(0).read_bytes()[: 2 * MIB] == data[: 2 * MIB]
    finally:
        pod.close()
        lab.close()


def test_a_disk_that_is_nearly_full_has_logs_cut_by_halves(
    tmp_path: Path, holes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.shim import loglimit

    lab = Lab.make(tmp_path)
    monkeypatch.setattr(loglimit, "KEEP_BYTES", 4 * MIB)
    monkeypatch.setattr(loglimit, "LOW_SHARE", 1.1)  # this disk, whatever is free on it
    lab.run.rank_log(0).write_bytes(b"x" * 63 * MIB)
    said: list[str] = []
    limit = LogLimit(lab.order(["true"], log_max_bytes=1 << 60), lab.run, said.append)
    held = []
    for i in range(6):
        limit.look(1e6 + 100 * i)
        held.append(lab.run.rank_log(0).stat().st_blocks * 512 // MIB)
    assert held[0] in (31, 32, 33) and held[-1] <= 9 and sorted(held, reverse=True) == held
    assert "MiB of the disk are left (limit" in said[0] and len(guard_lines(lab.run)) == len(said) < 6


def test_the_job_says_the_limit() -> None:
    home = OrchHome(Path("/h"))
    row = run_row(home, "sup-20261121T000000Z-abcd", ["true"])
    row["job"]["logs"] = {"max_gb": 2.5}
    for job, limit in ((row["job"], 2_500_000_000), ({}, 10_000_000_000)):
        spec = parse_spec({**row, "job": job})
        (order,) = make_orders(spec, home.run(spec.run_id), attempt=1, port=1, devices={}, start=0.0)
        assert order.log_max_bytes == limit
    assert JobSpec(name="x").logs.max_gb == 10.0
