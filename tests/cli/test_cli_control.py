"""`orch halt`, `orch dump`, `orch resume` and `orch launch --dry-run` as a person types them.

The supervisor's and the keeper's side is played by the test: it answers in the run directory, as they do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.records import Ack, as_wire
from workloads.contract.rundir import RunDir


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def requests(run: RunDir, verb: str) -> list[Path]:
    return [p for p in sorted(run.requests.glob(f"*-{verb}-*.json")) if not p.name.endswith(".ack.json")]


def answer(run: RunDir, verb: str, *, ok: bool = True, why: str = "", **data: object) -> Path:
    until(lambda: requests(run, verb))
    request = requests(run, verb)[-1]
    atomic_write_json(run.ack_of(request), as_wire(Ack(ok, "test", time.time(), why, data)))
    return request


def running(make, name: str = "tiny"):
    made = make(name)
    made.status("running", supervisor=made.supervised())
    for rank in (0, 1):
        made.record(rank)
    return made


def stop(made) -> None:
    until(made.run.halt.exists)
    for rank in (0, 1):
        made.halt_ack(rank, 120)
        made.record(rank, ended=time.time(), exit_code=75)
    made.status("halted", "dinner", supervisor=made.supervised())


def test_halt_and_wait(orch, make):
    made = running(make)
    process = orch.start("halt", "tiny", "--why", "dinner")
    stop(made)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "asked to halt (at most 12 min 00 s)" in out and "stopped at step 120" in out and "halted" in out
    assert read_json(requests(made.run, "halt")[0])["why"] == "dinner"


def test_halt_without_waiting(orch, make):
    made = running(make)
    ran = orch("halt", "tiny", "--now", "--no-wait", "--json")
    row = ran.json["runs"][0]
    assert ran.code == 0 and row["state"] == "running" and row["confirmed"] is False
    assert json.loads(made.run.halt.read_text())["now"] is True


def test_halt_all_asks_every_run_before_it_waits(orch, make):
    both = [running(make, "one"), running(make, "two")]
    make("done").status("succeeded")
    process = orch.start("halt", "--all", "--json")
    until(lambda: all(m.run.halt.exists() for m in both))
    for made in both:
        stop(made)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and [r["state"] for r in json.loads(out)["runs"]] == ["halted", "halted"]
    assert orch("halt", "--all").out == "every run has ended\n"


def test_halt_all_halts_what_is_here_also_when_the_inventory_is_wrong(orch, make):
    made = running(make)
    inventory = made.run.path.parents[1] / "pods.yaml"
    inventory.write_text("pods:\n  box: {ssh: a, prot: 1}\n  other: {ssh: ''}\n")
    ran = orch("halt", "--all", "--no-wait")
    assert made.run.halt.exists() and ran.code == 2
    assert "no pod was asked to halt its runs" in ran.err and "orch pods list" in ran.err


def test_halt_of_an_ended_run(orch, make):
    make().status("succeeded", "all done")
    ran = orch("halt", "tiny")
    assert ran.code == 0 and "had ended before: succeeded" in ran.out


def test_interrupting_a_halt_leaves_it_asked(orch, make):
    made = running(make)
    process = orch.start("halt", "tiny")
    until(made.run.halt.exists)
    time.sleep(0.5)
    process.send_signal(2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on" in err and "Traceback" not in err
    assert made.run.halt.exists()


def test_dump(orch, make):
    made = running(make)
    process = orch.start("dump", "tiny", "--rank", "1")
    groups = [{"ranks": [1], "text": "File x.py, line 3 in inner\x1b[2J"}]
    request = answer(made.run, "dump", groups=groups, files=["stackdump_rank1_x.txt"], notes=["rank 1: fine"])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "=== rank 1\nFile x.py, line 3 in inner\\x1b[2J\n" in out
    assert str(made.run.stackdumps / "stackdump_rank1_x.txt") in out and "note: rank 1: fine" in out
    assert read_json(request)["args"]["ranks"] == [1]


def test_dump_refusals(orch, make):
    made = running(make)
    wrong = orch("dump", "tiny", "--rank", "5")
    assert wrong.code == 2 and "rank 1 live" in wrong.err
    made.status("succeeded")
    ended = orch("dump", "tiny", "--json")
    assert ended.code == 6 and ended.json["error"]["code"] == "E-DUMP-001"
    make("young", created=time.time())
    young = orch("dump", "young")
    assert young.code == 6 and "has no rank yet" in young.err


def test_resume(orch, make):
    made = make()
    made.status("halted", "dinner")
    process = orch.start("resume", "tiny", "--json")
    answer(made.run, "resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["acknowledged"] is True


def test_resume_refusals(orch, make):
    made = running(make)
    assert orch("resume", "tiny").code == 6
    made.status("failed", "x")
    process = orch.start("resume", "tiny")
    answer(made.run, "resume", ok=False, why="the configuration was refused")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 6 and "the configuration was refused" in err


def test_dry_run_touches_nothing(orch, home):
    before = sorted(p for p in home.path.rglob("*"))
    text, document = orch("launch", "tiny", "--dry-run"), orch("launch", "tiny", "--dry-run", "--json")
    assert text.code == document.code == 0, text.err + document.err
    assert "workloads.train" in text.out and document.json["v"] == 1 and document.json["plan"]
    own = orch("launch", "--name", "mine", "--dry-run", "--json", "--", "python", "-c", "print('a b')", "--json", "--")
    assert own.code == 0 and "print('a b')" in own.out
    assert sorted(p for p in home.path.rglob("*")) == before


def test_bad_jobs_are_one_block_each(orch, tmp_path):
    (tmp_path / "job.yaml").write_text("name: x\ntrain:\n  stepz: 3\n  lr: .nan\n")
    ran = orch("launch", "job.yaml", "--json")
    assert ran.code == 2 and ran.err.count("error[") == 2 and "train.steps" in ran.err and "Traceback" not in ran.err
    assert len(ran.json["error"]["errors"]) == 2
    assert orch("launch", "tinny").code == 2


def test_init_writes_a_job_and_never_over_one(orch, home, tmp_path):
    assert orch("init").code == 0
    assert (tmp_path / "job.yaml").exists() and home.inventory.exists()
    assert orch("launch", "job.yaml", "--dry-run").code == 0
    again = orch("init", "--json")
    assert again.code == 6 and "job.yaml" in again.err
