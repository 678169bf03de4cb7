"""What a dump leaves on the disk, what is taken beside it, and that a storm of requests or signals leaves both well."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.keeper.dumping import PER_MINUTE, WATCHDOG, Dumper, carry_out_dump
from pods.remote import beside, control, dumpfiles
from pods.remote import dump as dumping
from pods.remote.boundedrun import run_bounded
from pods.remote.dump import Dump, dump_run
from tests.pod.shimlab import Lab, until
from tests.pod.test_dump import SLEEPER
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.records import Request, as_wire
from workloads.contract.rundir import RunDir
from workloads.shim.recorder import with_recorder

HEADER = "=== orch stack dump run="
TORCH_LIKE = """
import os, threading, time
rank = os.environ["RANK"]
def monitor():
    pipe = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + rank + ".pipe"
    os.unlink(pipe)
    os.mkfifo(pipe, 0o666)
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    while True:
        time.sleep(0.3)
        if os.read(fd, 128):
            with open(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + rank, "wb") as f:
                f.write(b"\\x80\\x02" + os.environ["TRACE"].encode())
threading.Thread(target=monitor, daemon=True).start()
time.sleep(0.3)
"""
"""What torch's heartbeat monitor does with the two variables (ProcessGroupNCCL.hpp: DumpPipe)."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def sleeper(lab: Lab, **kw: object) -> None:
    lab.python(SLEEPER, **kw)
    lab.says(b"up")


def dump(lab: Lab, by: str = "tester") -> Dump:
    return dump_run(lab.run, ranks=None, why="test", by=by, watchdog=by == WATCHDOG)


def named(run: RunDir, start: str) -> list[str]:
    return sorted(n for n in os.listdir(run.stackdumps) if n.startswith(start))


def test_a_watchdogs_dump_lies_in_files_of_its_own(lab: Lab) -> None:
    lab.python("import os\nif os.fork() == 0:\n import time; time.sleep(120)\n" + SLEEPER)
    lab.says(b"up")
    ack = carry_out_dump(lab.run, {"who": WATCHDOG, "why": "no step for 45 s (limit 30 s)"})
    (name,) = named(lab.run, "watchdog_stackdump_rank0_")
    text = (lab.run.stackdumps / name).read_text()
    assert ack.ok and name in ack.data["files"] and ack.data["summary"] == "rank 0 in tick at <string>:7"
    assert text.startswith(HEADER) and text.count(HEADER) == 2  # the rank and its worker
    assert "by=watchdog why=no step for 45 s (limit 30 s) ===" in text.split("\n")[0] and "in tick" in text
    assert ack.data["groups"][0]["where"] == "tick at <string>:7" and ack.data["seconds"] > 0
    assert (lab.run.stackdumps / name).stat().st_mode & 0o777 == 0o600


def test_the_dump_of_a_person_leaves_no_watchdogs_file(lab: Lab) -> None:
    sleeper(lab)
    found = dump(lab)
    assert named(lab.run, "watchdog") == [] and found.files == [lab.run.stackdump(0, 0.0).name]


def test_what_py_spy_or_proc_says_for_a_watchdog_lies_there_too(lab: Lab) -> None:
    sleeper(lab)
    lab.rank().signal(signal.SIGSTOP)
    until(lambda: lab.rank().state() == "T")
    dump(lab, WATCHDOG)
    (name,) = named(lab.run, "watchdog_stackdump_rank0_")
    assert "no dump: state T (stopped), not signalled" in (lab.run.stackdumps / name).read_text()


def test_a_file_that_has_grown_too_large_is_begun_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper(lab)
    own = lab.run.stackdump(0, 0.0)
    monkeypatch.setattr(dumpfiles, "MAX_OWN_BYTES", 20_000)
    os.truncate(own, 30_000)
    (first,) = dump(lab).dumps
    assert first.how == "faulthandler" and "in tick" in first.text and own.stat().st_size < 5000
    assert own.read_text().startswith("(dumps older than ") and own.read_text().endswith(first.text)


def test_the_oldest_files_go_and_a_living_ranks_own_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper(lab)
    monkeypatch.setattr(dumpfiles, "MAX_FILES", 3)
    old = [lab.run.stackdump(r, 86_400.0 * day, watchdog=w) for r in (0, 1) for day in (1, 2, 3) for w in (True, False)]
    for age, path in enumerate(old):
        path.write_text("x")
        os.utime(path, (age, age))
    os.utime(lab.run.stackdump(0, 0.0), (0, 0))  # its own is the oldest of all
    foreign = lab.run.stackdumps / "mine.txt"
    foreign.write_text("x")
    found = dump(lab)
    assert lab.run.stackdump(0, 0.0).exists() and foreign.exists()
    assert len(named(lab.run, "watchdog_")) == 3 and len(named(lab.run, "stackdump_")) == 3 + 1
    assert all(p.exists() for p in old[-6:]) and not any(p.exists() for p in old[:6])
    assert any(
        n.startswith("3 old watchdog dumps were removed (kept: the newest, at most 3 files") for n in found.notes
    )


def test_a_storm_of_signals_leaves_rank_and_disk_well(lab: Lab) -> None:
    sleeper(lab)
    rank = lab.rank()
    for _ in range(1000):
        assert rank.signal(signal.SIGUSR1)
    assert rank.alive() and lab.run.stackdump(0, 0.0).stat().st_size < 1 << 20
    (first,) = dump(lab).dumps
    assert first.how == "faulthandler" and "in tick" in first.text


def test_a_storm_of_requests_is_answered_and_does_not_starve_the_watchdog(lab: Lab) -> None:
    sleeper(lab)
    requests = [lab.run.request("dump", f"{i:08x}") for i in range(1000)]
    for path in requests:
        atomic_write_json(path, as_wire(Request("dump", "somebody", time.time(), "storm")), durable=False)
    said: list[str] = []
    dumper = Dumper(said.append)
    asked = None

    def answered() -> bool:
        nonlocal asked
        dumper.care(lab.run)
        done = sum(RunDir.ack_of(r).exists() for r in requests)
        if asked is None and done:
            asked = control.dump(lab.run, ranks=None, why="no step for 45 s", who=WATCHDOG)
        return asked is not None and done == len(requests) and RunDir.ack_of(asked).exists()

    until(answered, 60)
    acks = [try_read_json(RunDir.ack_of(r)) or {} for r in requests]
    good = [a for a in acks if a["ok"]]
    assert len(good) == PER_MINUTE[False] and all(a["data"]["summary"] == "rank 0 in tick at <string>:4" for a in good)
    refused = next(a for a in acks if not a["ok"])
    assert refused["why"].startswith(f"too many dumps: {PER_MINUTE[False]} in the last 60 s; the newest files are")
    assert lab.run.stackdump(0, 0.0).name in refused["data"]["files"]
    assert asked is not None and (try_read_json(RunDir.ack_of(asked)) or {})["ok"]
    files = [p for p in lab.run.stackdumps.iterdir() if p.is_file()]
    assert lab.rank().alive() and len(files) < 10 and sum(p.stat().st_size for p in files) < 1 << 20
    assert said and "dump requests were refused" in said[0]


def test_a_dump_that_cannot_be_is_answered(lab: Lab) -> None:
    assert carry_out_dump(lab.run, {}).why == "no living rank of this run is on this pod"
    assert "not a list" in carry_out_dump(lab.run, {"args": {"ranks": ["a"]}}).why


def test_the_gpu_table_lies_beside_the_stacks(lab: Lab, tools: Path) -> None:
    tool(tools, "nvidia-smi", "echo '| 0  NVIDIA H200 | 80GiB |'")
    sleeper(lab)
    (name,) = [f for f in dump(lab).files if f.startswith("nvidia_smi_")]
    assert "H200" in (lab.run.stackdumps / name).read_text()


def test_a_driver_that_hangs_or_fails_costs_a_note_and_no_stack(
    lab: Lab, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper(lab)
    tool(tools, "nvidia-smi", "echo 'Unable to determine the device handle for GPU0' >&2; exit 15")
    assert "nvidia-smi: Unable to determine the device handle for GPU0" in dump(lab).notes
    monkeypatch.setattr(dumping, "DUMP_S", 1.5)
    tool(tools, "nvidia-smi", "trap '' TERM; exec sleep 30")
    found = dump(lab)
    assert found.dumps[0].how == "faulthandler" and "nvidia-smi has not answered yet" in found.notes
    assert found.seconds < 4


def test_a_tool_is_left_behind_after_its_time() -> None:
    start = time.monotonic()
    ran = run_bounded(["sh", "-c", "sleep 30 & sleep 30"], 0.3)
    assert (ran.code, ran.out) == (None, "") and "no answer within 0.3 s" in ran.error
    assert time.monotonic() - start < 25
    assert run_bounded(["no-such-tool-at-all"], 1).error.startswith("it could not be started")
    assert run_bounded([sys.executable, "-c", "print('x' * 10_000_000)"], 20).out == "x" * (256 << 10)


def test_the_flight_recorder_of_a_rank_is_asked_and_its_trace_kept(lab: Lab) -> None:
    for rank in range(2):
        lab.python(TORCH_LIKE + SLEEPER, rank=rank, devices=[f"GPU-{rank}"], env={"TRACE": f"trace of {rank}"})
    for rank in range(2):
        lab.says(b"up", rank)
    found = dump(lab)
    copies = [f for f in found.files if f.startswith("nccl_rank")]
    assert [(lab.run.stackdumps / f).read_bytes() for f in copies] == [b"\x80\x02trace of 0", b"\x80\x02trace of 1"]
    assert any("are pickles: read them on the pod with `torchfrtrace`" in note for note in found.notes)
    assert [d.how for d in found.dumps] == ["faulthandler"] * 2


@pytest.mark.long
def test_a_recorder_that_says_nothing_costs_a_note(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumping, "DUMP_S", 1.5)
    monkeypatch.setattr(beside, "RECORDER_S", 2.0)
    deaf = TORCH_LIKE.replace("if os.read(fd, 128):", "if False:")
    lab.python(deaf + SLEEPER, devices=["GPU-0"], env={"TRACE": ""})
    lab.says(b"up")
    found = dump(lab)
    assert any(n.startswith("the NCCL flight recorder of rank 0 gave nothing within") for n in found.notes)
    assert found.dumps[0].how == "faulthandler" and found.seconds < 4


def test_ranks_are_told_of_the_recorder_where_it_cannot_hurt(lab: Lab) -> None:
    gpu = lab.order(["true"], devices=["GPU-0"])
    assert with_recorder(lab.order(["true"]), lab.run).env == lab.order(["true"]).env  # no GPU, no NCCL
    env = with_recorder(gpu, lab.run).env
    stem = lab.run.nccl_pipe_stem(1)
    assert env["TORCH_FR_DUMP_TEMP_FILE"] == lab.run.nccl_trace_stem(1)
    assert env["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] == stem and Path(f"{stem}0.pipe").is_fifo()
    assert with_recorder(gpu, lab.run).env == env  # a second attempt of the same name finds it there
    own = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/x/t", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": "/x/p"}
    theirs = lab.order(["true"], devices=["GPU-0"], env=own)
    assert with_recorder(theirs, lab.run).env == theirs.env
    os.unlink(f"{stem}0.pipe")
    os.mkdir(f"{stem}0.pipe")  # what stands there cannot be replaced: torch would end the rank over it
    assert "TORCH_NCCL_DEBUG_INFO_PIPE_FILE" not in with_recorder(gpu, lab.run).env
