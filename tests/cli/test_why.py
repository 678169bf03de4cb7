"""`orch why`: whole screens of every condition, and real run directories.

ORCH_REGEN=1 writes `tests/golden/why/*.txt` anew: read them then, as a person would at 3 a.m.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.main import build
from orchestrator.runs.why import tell
from orchestrator.runs.whyscreen import document, screen
from tests.cli.whyscenes import SCENES
from workloads.contract.files import dump_json
from workloads.contract.manifest import Manifest, entry_of
from workloads.contract.rundir import RunDir

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "why"


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.__name__)
def test_a_screen(scene):
    facts = scene().facts()
    story = tell(facts)
    found = screen(story, facts.view.now) + "\n"
    path = GOLDEN / f"{scene.__name__}.txt"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(found)
    assert found == path.read_text()
    assert len(found.splitlines()) <= 50 and "\x1b" not in found  # a screen, and harmless
    assert max(map(len, found.splitlines())) <= 130
    doc = document(story)
    assert list(doc) == [
        "v",
        "run",
        "state",
        "level",
        "verdict",
        "sick",
        "events",
        "events_cut",
        "work",
        "notes",
        "next",
    ]
    json.dumps(doc, allow_nan=False)


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.__name__)
def test_what_it_says_to_type_is_taken_as_typed(scene):
    command = document(tell(scene().facts()))["next"]["command"]
    if not command.startswith("orch "):
        assert command == "" or shutil.which(command.split()[0]) or command.split()[0] == "nvidia-smi"
        return
    words = command.replace("user@host[:port]", "user@host:22").split(" -- ")[0].split()[1:]
    group: Any = typer.main.get_command(build())
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    group.make_context(group.name, words)  # a UsageError for an option or argument that is not taken so


def test_a_run_of_files(orch, make):
    """Everything from a real directory: events, beats, records, dump file, log, checkpoints."""
    made, now = make(), time.time()
    made.status("failed", "rank 1 was killed by signal 9 (SIGKILL) at step 7; restarts are off (restart.max is 0)")
    made.event(0, "state", "attempt 1", frm="preparing", to="starting")
    made.event(1, "rank-exit", "rank 1 was killed by signal 9 (SIGKILL) at step 7",
               data={"rank": 1, "signal": 9, "cause": "signalled", "pod": "local"})  # fmt: skip
    for rank in (0, 1):
        made.record(rank, ts=now - 60, ended=now - 5, signal=9, cause="signalled" if rank else "stopped")
        for step in range(8):
            made.beat(rank, now - 15 + step, step=step, steps=100, loss=1.5, step_time_s=1.0)
    made.log(1, b"".join(b"line %d\n" % i for i in range(40)) + b"\x1b]0;evil\x07\n")
    dump = made.run.stackdump(1, now - 20)
    dump.write_text(
        "=== orch stack dump run=x rank=1 attempt=1 pid=5 utc=x by=ann why=x ===\n"
        'Thread 0x01 (most recent call first):\n  File "loader.py", line 3 in wait\n'
        '  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap\n\n'
        'Current thread 0x02 (most recent call first):\n  File "train.py", line 9 in step\n'
        '  File "\x1b[31m", line 1 in \x1b[2J\n'
    )
    good = make_checkpoint(made, 4, b"weights")
    bad = make_checkpoint(made, 6, b"weights")
    (bad / "shard.bin").write_bytes(b"weightz")
    ran = orch("why", "tiny")
    assert (ran.code, ran.err) == (0, "")
    assert 'File "train.py", line 9 in step' in ran.out and "loader.py" not in ran.out and dump.name in ran.out
    assert "line 39" in ran.out and "line 10\n" not in ran.out and "\x1b" not in ran.out
    assert "checkpoint step 6 will not be used: shard.bin does not match its sha256" in ran.out
    assert "3 steps, 3.0 s at 1.0 s a step: the last step was 7" in ran.out and "verified" in ran.out
    assert f"orch resume {made.run.run_id}   go on from the checkpoint of step {good.name[-1]}" in ran.out
    doc = orch("why", made.run.run_id, "--json").json
    assert (doc["level"], doc["sick"]["rank"], doc["work"]["steps"]) == ("failed", 1, 3)


def make_checkpoint(made, step, data):
    path = made.run.checkpoint(step)
    path.mkdir()
    (path / "shard.bin").write_bytes(data)
    files = (entry_of(path / "shard.bin"),)
    manifest = Manifest(made.run.run_id, step, 1, 1, 1, config_hash="c", code_hash="t", files=files)
    made.run.manifest(path).write_bytes(dump_json(manifest.wire()))
    return path


def test_hostile_files_tell_a_story_all_the_same(orch, make):
    made = make()
    made.status("failed", "it said \x1b[31mred")
    rows = [
        {"v": 1, "seq": i, "ts": 1.0, "attempt": 1, "who": "x", "what": what, "why": "\x1b[2J", "data": data}
        for i, (what, data) in enumerate(
            [
                ("rank-exit", {"rank": 10**30, "lines": [{"a": 1}] * 3}),
                ("rank-exit", {"rank": "1"}),
                ("health", {"rule": ["x"], "rank": None, "rung": 3}),
                ("dump", {"groups": [{"ranks": ["x"]}, 3], "files": ["../../etc/passwd"], "request": "../x"}),
                ("guard", {"rank": 0}),
                ("verdict", {"stayed": "no"}),
            ]
        )
    ]
    made.run.events.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{" * 10_000)
    path = made.run.checkpoint(3)
    path.mkdir()
    made.run.manifest(path).write_text(json.dumps({"step": 3, "files": [{"name": "../../x", "size": 1}, 7]}))
    ran = orch("why", "tiny")
    assert ran.code == 0 and "\x1b" not in ran.out and ran.err == "" and "failed" in ran.out


def test_a_run_that_has_not_started(orch, make):
    make()
    ran = orch("why", "latest")
    assert ran.code == 0 and "it has not started" in ran.out and "type now    nothing" in ran.out


def test_why_imports_nothing_heavy(make, home, monkeypatch):
    make()
    code = (
        "import sys\nfrom orchestrator.cli.main import main\nrc = main(['why', 'latest', '--cached'])\n"
        "print([m for m in ('torch', 'ray', 'paramiko', 'fabric', 'numpy', 'rich', 'yaml')"
        " if m in sys.modules], file=sys.stderr)\nsys.exit(rc)"
    )
    env = {**os.environ, "ORCH_HOME": str(home.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")


def test_the_first_step_of_a_nan_is_told_by_the_ledger(tmp_path):
    from orchestrator.runs.whyfacts import _not_finite
    from orchestrator.runs.whyfigures import Evidence, first_bad

    def row(step, loss, attempt=2, **more):
        return json.dumps({"step": step, "attempt": attempt, "loss": float(loss).hex(), **more})

    run = RunDir(tmp_path)
    assert _not_finite(run, 2) is None
    early = [row(3, "nan", attempt=1), row(4, "nan"), row(5, 2), "[torn"]
    run.ledger.write_text("\n".join([*early, row(6, 2, skipped=True), '{"step": 7}', row(8, "inf")]))
    assert _not_finite(run, 2) == 6 and _not_finite(run, 1) is None
    assert first_bad(Evidence(not_finite=6)) == ["the first step without a finite loss or gradient is 6"]
