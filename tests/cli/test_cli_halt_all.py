"""`orch halt --all`: what can be asked is asked at once, what cannot is named; the exit code is that of the worst."""

from __future__ import annotations

import json
import socket
import time

import pytest

from orchestrator.runs.halts import worst
from tests.cli.test_cli_control import running, stop, until
from tests.cli.test_cli_interrupt import KEY
from workloads.contract.errors import LocalError, OrchError, RefusedError, RemoteError, UnreachableError


def nobody() -> int:
    """A port on which nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_what_can_be_asked_is_halted_and_a_pod_that_cannot_is_named(orch, make, home):
    both = [running(make, "one"), running(make, "two")]
    home.inventory.write_text(f"pods:\n  box:\n    ssh: root@127.0.0.1:{nobody()}\n    host_key: {KEY}\n")
    process = orch.start("halt", "--all", "--now", "--why", "dinner")
    until(lambda: all(m.run.halt.exists() for m in both))
    for made in both:
        stop(made)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 4, out + err
    rows = [line.split(maxsplit=2) for line in out[out.index("RUN") :].splitlines()]
    assert rows[0] == ["RUN", "POD", "HALT"]
    assert sorted(r[2] for r in rows[1:3]) == ["halted at step 120, clean"] * 2
    assert rows[3][:2] == ["-", "box"] and rows[3][2].startswith("not asked: ")
    assert (
        "what runs on pod box was not asked to halt" in err and "orch halt --all --now   (once the pod answers" in err
    )


def test_what_nothing_could_end_is_named_with_what_to_type(orch, make):
    made = running(make)
    made.event(0, "verdict", "these stayed: 4711", data={"stayed": [4711]})
    process = orch.start("halt", "--all", "--json")
    stop(made)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7 and "E-HALT-002" in err and "ps -o pid,stat,wchan:32,args -p 4711" in err
    document = json.loads(out)
    assert document["runs"][0]["stayed"] == [4711] and document["not_asked"] == []


def test_gpu_memory_that_did_not_come_back_is_named(orch, make):
    words = "GPU-1: 80 GiB are still used, 0.0 before the start, held by pid 4242 (python train.py, user bob)"
    made = running(make)
    made.event(0, "verdict", f"these stayed: {words}", data={"stayed": [], "gpu": [words, 7]})
    process = orch.start("halt", "--all", "--json")
    stop(made)
    out, err = process.communicate(timeout=120)
    (row,) = json.loads(out)["runs"]
    assert (row["stayed"], row["gpu_memory"]) == ([], [words])
    assert process.returncode == 7 and "E-HALT-003" in err and words in err and "nvidia-smi --query-compute-apps" in err
    again = orch("halt", "tiny")
    assert f"  GPU memory: {words}" in again.out


def test_a_verdict_of_an_older_attempt_is_old_news(orch, make):
    made = running(make)
    made.event(0, "verdict", "these stayed: 4711", attempt=0, data={"stayed": [4711]})
    process = orch.start("halt", "tiny")
    stop(made)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "" and "stayed" not in out


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([UnreachableError("E-A-001", "x"), RemoteError("E-A-001", "y")], 7),
        ([RefusedError("E-A-001", "x"), UnreachableError("E-A-001", "y")], 4),
        ([LocalError("E-A-001", "x"), RefusedError("E-A-001", "y")], 5),
        ([LocalError("E-A-001", "x")], 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst(errors: list[OrchError], code: int):
    assert worst(errors) == worst(errors[::-1]) == code


def test_a_run_that_does_not_stop_does_not_hold_up_the_words_about_the_others(make, monkeypatch):
    import io

    from orchestrator.runs import halts
    from orchestrator.runs.source import as_source
    from orchestrator.runs.waiting import Live

    stuck, good = running(make, "stuck"), running(make, "good")
    monkeypatch.setattr(halts, "halt_limit_s", lambda view, now: 1.5)
    for rank in (0, 1):
        good.halt_ack(rank, 7)
        good.record(rank, ended=time.time(), exit_code=75)
    good.status("halted", "dinner", supervisor=good.supervised())
    began = time.monotonic()
    order = halts.Order(now=False, why="", who="me", wait=True)
    ended = halts.halt_runs([as_source(stuck.run), as_source(good.run)], order, Live(io.StringIO()), lambda _: None)
    assert time.monotonic() - began < 30
    assert [(e.words, e.error.code if e.error else None) for e in ended] == [
        ("not seen to stop: rank 0, 1", "E-HALT-001"), ("had ended before: halted", None),
    ]  # fmt: skip
