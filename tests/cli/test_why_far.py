"""`orch why` of a run on a pod: what is missing is fetched, and a pod that is lost makes no run dead."""

from __future__ import annotations

import time

from orchestrator.runs.source import fetch
from orchestrator.runs.why import Level, tell
from orchestrator.runs.whyfacts import gather
from orchestrator.runs.whyscreen import screen
from tests.cli.test_why import make_checkpoint
from tests.mirror.conftest import bounded, far
from workloads.contract.files import atomic_write_json

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
