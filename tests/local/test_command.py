"""Any command of the user's own, under the same care."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from tests.local.conftest import Orch, events_of, rank_pid, wait_for
from workloads.contract.files import read_json, try_read_json
from workloads.contract.process import ProcId, marked

pytestmark = pytest.mark.ray

NASTY = ["--lr", "3e-4", "a b", "", "$(id)", "; rm -rf /", "it's", '"q"', "new\nline", "ünï\u2003code", "--", "-f"]


def script(orch: Orch, name: str, body: str) -> str:
    (orch.work / name).write_text(textwrap.dedent(body))
    return name


def command(*argv: str, name: str, sets: tuple[str, ...] = ()) -> tuple[str, ...]:
    options = [x for s in sets for x in ("--set", s)]
    return ("--name", name, *options, "--json", "--", sys.executable, *argv)


def launch(orch: Orch, *args: str):  # type: ignore[no-untyped-def]
    return orch.home.run(json.loads(orch("launch", *args))["run"])


def test_arguments_environment_and_output_arrive_whole(orch: Orch) -> None:
    show = script(
        orch,
        "show.py",
        """
        import json, os, sys
        keys = [k for k in os.environ if k.startswith(("RAY_", "ORCH_CLUSTER"))]
        print(json.dumps({"argv": sys.argv[1:], "leaked": keys, "cwd": os.getcwd(), "rank": os.environ["RANK"],
                          "world": os.environ["WORLD_SIZE"], "dir": os.environ["ORCH_RUN_DIR"],
                          "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}))
        print("to stderr", file=sys.stderr)
        """,
    )
    run = launch(orch, *command(show, *NASTY, name="show"))
    orch.wait(run, "succeeded", "failed")
    log = run.rank_log(0).read_text()
    row = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert row["argv"] == NASTY
    assert row["leaked"] == []
    assert row["devices"] == ""  # no device was leased, so none may be found by accident
    assert (row["rank"], row["world"], row["dir"]) == ("0", "1", str(run.path))
    assert row["cwd"] == str(orch.work)
    assert "to stderr" in log
    assert orch.state(run) == "succeeded"


def test_init_process_group_just_works(orch: Orch) -> None:
    group = script(
        orch,
        "group.py",
        """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        t = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(t)
        print("sum", t.item(), "of", dist.get_world_size())
        dist.destroy_process_group()
        """,
    )
    run = launch(orch, *command(group, name="group", sets=("resources.ranks=2",)))
    orch.wait(run, "succeeded", "failed")
    assert [("sum 3.0 of 2" in run.rank_log(r).read_text()) for r in (0, 1)] == [True, True], orch.story(run)


@pytest.mark.long
def test_an_exit_code_is_told(orch: Orch) -> None:
    bad = script(orch, "bad.py", "import sys; print('last words'); sys.exit(3)")
    run = launch(orch, *command(bad, name="bad"))
    status = orch.wait(run, "failed", "succeeded")
    assert status["state"] == "failed" and status["exit_codes"] == {"0": 3} and status["attempt"] == 1
    assert "exit code 3" in status["reason"]
    assert "last words" in json.dumps([e["data"] for e in events_of(run, "rank-exit")])


def test_a_signal_is_told_and_a_crash_loop_ends(orch: Orch) -> None:
    crash = script(orch, "crash.py", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    run = launch(orch, *command(crash, name="crash", sets=("restart.max=1", "restart.backoff_s=[0]")))
    status = orch.wait(run, "failed", "succeeded")
    assert status["state"] == "failed" and status["exit_codes"] == {"0": -11} and status["attempt"] == 2
    assert "signal 11" in status["reason"]


@pytest.mark.long
def test_a_command_that_does_not_exist(orch: Orch) -> None:
    run = orch.home.run(json.loads(orch("launch", "--name", "nope", "--json", "--", "no-such-program", "x"))["run"])
    status = orch.wait(run, "failed", "succeeded")
    assert status["state"] == "failed" and "no-such-program" in status["reason"]


FORKER = """
import os, subprocess, sys, time
subprocess.Popen(["setsid", "sleep", "600"])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
print("forked", flush=True)
time.sleep(600)
"""


def test_halting_a_plain_script_leaves_no_orphan(orch: Orch) -> None:
    """It knows nothing of orch and hides two children in sessions of their own: SIGTERM at once, then the sweep."""
    run = launch(orch, *command(script(orch, "forker.py", FORKER), name="forker"))
    wait_for(lambda: len(marked(run.run_id)) >= 3, 600, lambda: orch.story(run))
    shown = orch.json("halt", run.run_id)
    assert shown["runs"][0]["state"] == "halted"
    assert marked(run.run_id) == []
    assert len(read_json(run.rank_record(1, 0))["swept"]) >= 2
    assert any("clean" in e["why"] or "clean" in json.dumps(e["data"]) for e in events_of(run, "verdict"))


WORKER = """
import time, torch
def inner():
    while True:
        time.sleep(0.01)
def train():
    inner()
print("ready", flush=True)
train()
"""


def test_an_untouched_script_is_dumped_and_lives_on(orch: Orch) -> None:
    sets = ("resources.ranks=2",)
    run = launch(orch, *command(script(orch, "worker.py", WORKER), name="worker", sets=sets))
    wait_for(lambda: all(run.rank_log(r).exists() and "ready" in run.rank_log(r).read_text() for r in (0, 1)), 600)
    pids = [rank_pid(run, 1, r) for r in (0, 1)]
    shown = orch("dump", run.run_id)
    assert "inner" in shown and "train" in shown
    document = orch.json("dump", run.run_id, "--rank", "1")
    assert document["groups"][0]["ranks"] == [1]
    assert all(p.alive() for p in pids)
    files = list(run.stackdumps.glob("stackdump_rank1_*.txt"))
    assert files and "in inner" in files[0].read_text()
    orch("halt", run.run_id)


BEATING = """
import sys, time
from workloads.runtime import Run
run = Run.from_env()
start = 0
for step in range(1, 100_000):
    time.sleep(0.02)
    run.beat(step=step, loss=1.0 / step)
    if run.should_halt(step):
        sys.exit(run.halted(step))
"""


def test_a_few_lines_give_a_script_heartbeats_and_graceful_halting(orch: Orch) -> None:
    run = launch(orch, *command(script(orch, "beating.py", BEATING), name="beating"))
    wait_for(lambda: (orch.status(run)["step"] or 0) > 20, 600, lambda: orch.story(run))
    orch("halt", run.run_id)
    assert orch.state(run) == "halted"
    assert read_json(run.rank_record(1, 0))["exit_code"] == 75
    assert read_json(run.halt_ack(0))["step"] > 20


def test_a_rank_ends_with_its_shim(orch: Orch) -> None:
    """kill -9 of the shim: the rank dies by PDEATHSIG, the keeper finishes its record, the run restarts."""
    sleeper = script(
        orch, "sleeper.py", "import time; time.sleep(3 if 'a2' in __import__('os').environ['ORCH_MARK'] else 600)"
    )
    run = launch(orch, *command(sleeper, name="shimkill", sets=("restart.backoff_s=[0]",)))
    orch.wait(run, "running")
    record = wait_for(lambda: try_read_json(run.rank_record(1, 0)), 180)
    assert ProcId(record["shim_pid"], record["shim_start_time"], record["boot_id"]).signal(9)
    status = orch.wait(run, "succeeded", "failed")
    assert status["state"] == "succeeded" and status["attempt"] == 2, orch.story(run)
    assert read_json(run.rank_record(1, 0))["cause"] == "shim-lost"
