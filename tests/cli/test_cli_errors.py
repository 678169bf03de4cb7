"""Every mistake at the command line as one block: golden files `tests/golden/errors/cli_*.txt`.

ORCH_REGEN=1 writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.blocks import block_of
from orchestrator.cli.main import split_command
from workloads.contract.errors import LocalError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "errors"
CASES = {
    "01_unknown_command": ("statu",),
    "02_unknown_option": ("halt", "--nwo", "x"),
    "03_missing_run": ("dump",),
    "04_option_without_value": ("launch", "tiny", "--name"),
    "05_not_a_number": ("logs", "tiny", "-n", "many"),
    "06_negative_rank": ("logs", "tiny", "--rank", "-1"),
    "07_extra_argument": ("resume", "tiny", "now"),
    "08_halt_nothing": ("halt",),
    "09_halt_both": ("halt", "tiny", "--all"),
    "10_launch_nothing": ("launch",),
    "11_launch_both": ("launch", "tiny", "--", "python", "x.py"),
    "12_launch_empty_command": ("launch", "--name", "mine", "--"),
    "13_unknown_run": ("status", "tinny"),
    "14_hostile_run": ("status", "a\x1b[2J\nb" + "x" * 300),
    "15_no_such_rank": ("logs", "tiny", "--rank", "9"),
    "16_since_yesterday": ("logs", "tiny", "--since", "yesterday"),
    "17_since_5mins": ("logs", "tiny", "--since", "5mins"),
    "18_follow_errors": ("logs", "tiny", "-f", "--errors"),
    "19_bad_code": ("resume", "tiny", "--code", "mine"),
    "20_unknown_option_of_orch": ("--vresion",),
    "27_unknown_suite": ("parity", "decoupled", "kv-decod"),
    "28_suite_like_none": ("parity", "x"),
    "29_device_that_is_none": ("parity", "--device", "gpu"),
    "30_seed_that_is_none": ("parity", "--seed", "-1"),
    "31_verdict_of_a_training_run": ("parity", "--run", "tiny"),
    "32_verdict_and_something_else": ("parity", "kv-decode", "--full", "--run", "tiny"),
    "33_parity_on_an_unknown_pod": ("parity", "--pod", "lcoal"),
    "40_bench_of_an_unknown_suite": ("bench", "bandwith", "--quick"),
    "41_bench_device_that_is_none": ("bench", "--device", "gpu"),
    "42_tolerance_that_is_none": ("bench", "--tolerance", "five"),
    "43_table_of_a_training_run": ("bench", "--run", "tiny"),
    "44_table_and_something_else": ("bench", "bandwidth", "--quick", "--run", "tiny"),
    "45_compared_with_a_training_run": ("bench", "--compare", "tiny"),
}


@pytest.fixture
def tiny(make):
    made = make(world=2)
    made.status("succeeded", "done")
    return made.run.run_id


@pytest.mark.parametrize("case", CASES)
def test_block(orch, tiny, case):
    ran = orch(*CASES[case])
    assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err
    path = GOLDEN / f"cli_{case}.txt"
    told = ran.err.replace(tiny, "<run>")
    if os.environ.get("ORCH_REGEN"):
        path.write_text(told)
    assert told == path.read_text()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("46_compared_with_no_file", ("--compare", "rows/old.jsonl")),
        ("47_compared_with_a_file_without_rows", ("--compare", "empty.jsonl")),
        ("48_csv_into_no_directory", ("--csv", "gone/rows.csv")),
    ],
)
def test_a_file_that_bench_cannot_use_is_told_before_anything_is_launched(orch, home, case, words):
    (orch.cwd / "empty.jsonl").write_text("{}\n")
    ran = orch("bench", *words)
    assert ran.code == 3 and ran.out == "" and not home.runs.exists()
    golden(case, ran.err, home=home.path)


def golden(name, told, **places):
    for word, value in places.items():
        told = told.replace(str(value), f"<{word}>")
    path = GOLDEN / f"cli_{name}.txt"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(told)
    assert told == path.read_text()


@pytest.mark.parametrize("state", ["queued", "running", "halting", "succeeded"])
def test_a_run_that_cannot_be_resumed(orch, make, home, state):
    made = make(world=1)
    made.status(state)
    ran = orch("resume", made.run.run_id)
    assert ran.code == 6 and ran.out == "" and not list(made.run.requests.iterdir())
    golden(f"21_resume_{state}", ran.err, run=made.run.run_id, home=home.path)


def test_a_reason_that_is_too_long_and_holds_more_than_words(orch, make, home):
    made = make(world=1)
    made.status("running")
    why = "too\x1b[2J hot\nerror[E-X-001]: not really " + "very " * 2000
    ran = orch("halt", made.run.run_id, "--no-wait", "--why", why)
    assert ran.code == 0
    golden("22_halt_reason", ran.err, run=made.run.run_id, home=home.path)
    kept = json.loads(made.run.halt.read_text())["why"]
    assert why.startswith(kept) and 300 <= len(kept) <= 1000
    assert orch("halt", made.run.run_id, "--no-wait", "--why", "dinner").err == ""


@pytest.mark.parametrize(
    ("case", "place"),
    [("23_home_is_a_file", "file"), ("24_home_below_a_file", "file/x"), ("25_home_is_a_broken_link", "link")],
)
def test_a_home_that_can_be_none(orch, tmp_path, case, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    env = {**orch.env(), "ORCH_HOME": str(tmp_path / place)}
    for words in (("status",), ("launch", "--dry-run", "--", "true"), ("pods", "list")):
        process = orch.start(*words, env=env)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (3, "")
        golden(case, err, folder=tmp_path)
    process = orch.start("doctor", env=env)
    out, err = process.communicate(timeout=60)
    assert place in out and "E-CLI-008" not in err


def test_the_default_home_is_told_as_that(orch, tmp_path):
    (tmp_path / ".orch").write_text("mine")
    env = {k: v for k, v in orch.env().items() if k != "ORCH_HOME"} | {"HOME": str(tmp_path)}
    process = orch.start("status", env=env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    golden("26_default_home_is_a_file", err, folder=tmp_path)


def test_json_errors_are_on_stdout_too(orch, tiny):
    ran = orch("status", "tinny", "--json")
    assert ran.code == 2 and ran.err.startswith("error[E-RUN-001]")
    assert ran.json["v"] == 1 and ran.json["error"]["did_you_mean"] == "tiny"


def test_debug_shows_a_traceback_and_only_then(orch, tiny, home):
    home.runs.chmod(0o700)
    assert "Traceback" not in orch("status", "tinny").err
    ran = orch("status", "tinny", "--debug")
    assert "Traceback" in ran.err and "error[E-RUN-001]" in ran.err and ran.code == 2


def test_unexpected_errors_become_a_block():
    assert block_of(ZeroDivisionError("x")).render().startswith("error[E-BUG-001]")
    block = block_of(OSError(28, "No space left on device", "/x"))
    assert isinstance(block, LocalError) and "No space left" in block.render() and "/x" in block.render()
    assert "Traceback" not in block.render()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_home_that_cannot_be_written(orch, home):
    home.path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert orch("status").code == 0
    home.path.chmod(0o700)


def test_home_that_is_a_file(orch, home):
    home.path.rename(home.path.with_name("elsewhere"))
    home.path.write_text("x")
    for command in (("status",), ("runs",), ("runs", "--rebuild"), ("status", "x"), ("down",)):
        ran = orch(*command)
        assert "Traceback" not in ran.err and "E-BUG" not in ran.err


@pytest.mark.parametrize(
    ("args", "head", "tail"),
    [
        (["launch", "--", "python", "x", "--", "y"], ["launch"], ["python", "x", "--", "y"]),
        (["--debug", "launch", "--name", "a", "--", ""], ["--debug", "launch", "--name", "a"], [""]),
        (["launch", "tiny"], ["launch", "tiny"], None),
        (["halt", "--", "-odd"], ["halt", "--", "-odd"], None),
    ],
)
def test_the_users_command_is_whole(args, head, tail):
    assert split_command(args) == (head, tail)


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("status", "nope", "--json")])
def test_a_full_disk_behind_stdout(orch, tiny, command):
    with Path("/dev/full").open("w") as full:
        process = orch.start(*command, stdout=full)
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 3 and "error[E-CLI-010]" in err and "Traceback" not in err


def test_a_full_disk_behind_stderr(orch, tiny):
    with Path("/dev/full").open("w") as full:
        process = orch.start("status", "nope", "--json", stderr=full)
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and json.loads(out)["error"]["code"] == "E-RUN-001"


INTERRUPTED_AT_TYPER = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from orchestrator.cli.__main__ import main
sys.exit(main())
"""


def test_interrupted_while_it_still_imports():
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED_AT_TYPER], capture_output=True, cwd=ROOT, timeout=120)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, b"")


def test_closed_streams(orch, tiny):
    process = orch.start("status", "--json", stdin=None, preexec_fn=lambda: (os.close(0), os.close(2)))
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and json.loads(out)["v"] == 1
    process = orch.start("status", preexec_fn=lambda: os.close(1))
    process.communicate(timeout=120)
    assert process.returncode == 0
