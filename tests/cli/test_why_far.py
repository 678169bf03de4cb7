"""`orch why` of a run on a pod: what is missing is fetched, and a pod that is lost makes no run dead."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.main import build
from orchestrator.runs.source import fetch
from orchestrator.runs.why import Level, tell
from orchestrator.runs.whyfacts import gather
from orchestrator.runs.whyscreen import screen
from pods.remote import control
from tests.cli.test_why import make_checkpoint
from tests.mirror.conftest import bounded, far
from workloads.contract.errors import LocalError
from workloads.contract.files import atomic_write_json, read_json

__all__ = ["bounded", "far"]


def sick(far):
    made, now = far.make(), time.time()
    made.status("running", "the first step was made", supervisor=made.supervised())
    for rank in (0, 1):
        made.record(rank, ts=now - 60)
        made.beat(rank, now - 40, step=7, steps=100, loss=1.5, step_time_s=1.0)
    for i in range(900):  # more than the 64 KiB that a status brings
        made.event(i, "note", f"{i} " * 40)
    made.event(900, "health", "rank 1 has made no step for 30 s", data={"rule": "no_step", "rung": "dump", "rank": 1})
    request = "20261118T112305Z-dump-a1e900.json"
    made.event(901, "dump", "2 ranks", data={"by": "watchdog", "request": request, "groups": [], "files": []})
    group = {
        "ranks": [1],
        "where": "x",
        "text": 'Current thread 0x1 (most recent call first):\n  File "a.py", line 3 in f\n',
    }
    atomic_write_json(made.run.requests / request, {"verb": "dump"})
    atomic_write_json(made.run.ack_of(made.run.requests / request), {"ok": True, "data": {"groups": [group]}})
    make_checkpoint(made, 4, b"weights")
    return made


def test_what_is_missing_is_fetched(far):
    made = sick(far)
    source = far.source(made.run)
    fetch(source)
    facts = gather(source)
    story = tell(facts)
    assert story.level is Level.SICK and story.sick is not None and story.sick.rank == 1
    assert story.sick.stack == ('File "a.py", line 3 in f',) and len(facts.events) == 902 and not facts.cut
    text = screen(story, facts.view.now)
    assert "by its manifest" in text and "3 steps, 3.0 s" in text and "... 888 more events" in text


def test_a_pod_that_is_lost_is_told_with_the_age_of_the_copy(far):
    made = sick(far)
    source = far.source(made.run)
    fetch(source)
    far.kill()
    far.pod.close()
    again = far.source(made.run)
    again.reachable, again.error = False, None
    story = tell(gather(again))
    assert story.level is Level.UNKNOWN and "pod box cannot be reached; when it was last seen," in story.verdict
    assert "nothing says that it stopped" in story.verdict and "dead" not in screen(story, time.time())
    assert story.command.endswith("pods check box")


def test_the_checkpoints_to_mend_are_listed_where_they_lie(far):
    """The command as it is typed: what comes after `--` is done on the pod, whose home has a space in its name."""
    made = far.make()
    made.run.epoch.write_text("1\n")
    path = make_checkpoint(made, 6, b"weights")
    made.run.manifest(path).write_text("{torn")
    made.status("failed", "rank 0 was killed by signal 9 (SIGKILL) at step 7; restarts are off (restart.max is 0)")
    made.beat(0, time.time() - 5, step=7, steps=100, loss=1.5, step_time_s=1.0)
    source = far.source(made.run)
    fetch(source)
    story = tell(gather(source))
    typed, _, there = story.command.partition(" -- ")
    assert typed.endswith("pods exec box")
    ran = far.pod.transport.run(shlex.split(there), timeout_s=60.0)
    assert shlex.split(there)[-1] == str(made.run.checkpoints)
    assert ran.exit_code == 0 and path.name in ran.stdout, (there, ran.stderr)


COMMAND = ["python", "my train.py", "--name", "it's", "$HOME"]
LAUNCHES = [
    ("command line", COMMAND, ["launch", "--pod", "box", "--", *COMMAND]),
    ("/home/ann/my jobs/tiny.yaml", None, ["launch", "/home/ann/my jobs/tiny.yaml", "--pod", "box"]),
    ("orch parity --pod box", None, ["parity", "--pod", "box"]),
    ("orch data check 'my job.yaml' --seconds 2.0", None, ["data", "check", "my job.yaml", "--seconds", "2.0"]),
    (7, None, ["launch", "JOB"]),
]


@pytest.mark.parametrize(("told", "command", "words"), LAUNCHES, ids=[str(launch[0])[:12] for launch in LAUNCHES])
def test_what_makes_a_lost_environment_anew_can_be_typed(far, told: Any, command: list[str] | None, words: list[str]):
    """Both places that say it: `orch why`, and the refusal of `orch resume`."""
    made, gone = far.make(), "/gone/bin/python"
    row = read_json(made.run.run_json)
    job = row["job"] | {"kind": "command", "command": command} if command else row["job"]
    pods = [{"name": "box", "ranks": [0, 1], "python": gone}]
    tree = str(Path(__file__).resolve().parents[2])
    more = {"source": told, "job": job, "head": "box", "pods": pods, "argv": [gone, "x"], "tree": tree}
    atomic_write_json(made.run.run_json, row | more)
    made.status("failed", f"its Python is gone: {gone}")
    source = far.source(made.run)
    fetch(source)
    said = tell(gather(source)).command
    assert shlex.split(said)[1:] == words
    with pytest.raises(LocalError) as refused:
        control.resume(made.run, who="ann", why="")
    assert refused.value.code == "E-CTL-009" and refused.value.fix is not None
    assert shlex.split(refused.value.fix.partition("   (")[0]) == ["orch", *words]

    options = words[: words.index("--")] if "--" in words else words
    group: Any = typer.main.get_command(build())
    while hasattr(group, "commands"):
        group, options = group.commands[options[0]], options[1:]
    group.make_context(group.name, list(options))  # a UsageError for an option or argument that is not taken so
