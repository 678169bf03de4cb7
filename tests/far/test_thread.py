"""The whole thread on a pod over SSH: launch, look, dump, halt, resume, pull; and the pod that is gone."""

from __future__ import annotations

import json
import signal

import pytest

from tests.far.conftest import POD, Far
from tests.inventory.test_pages import get
from tests.local.conftest import events_of, losses_of, steps_of
from tests.local.test_train import SMALL

pytestmark = pytest.mark.ray
TINY = ("tiny", "--set", "train.log_every=1")


def test_from_launch_to_a_copy_that_outlives_the_pod(far: Far) -> None:
    orch = far.orch
    run = far.launch(*TINY, "--set", "train.steps=400", "--set", "checkpoint.every_steps=20", "--name", "thread")
    there = far.there
    there.wait(run, "running")
    there.wait_step(run, 5)

    row = orch.status(run)
    assert (row["state"], row["pods"], row["attempt"]) == ("running", [POD], 1)
    assert row["step"] >= 1 and row["loss"] > 0 and row["last_beat_age_s"] < 30
    assert run.run_id in orch("status")
    assert "step 1 " in orch("logs", run.run_id) or "step 0 " in orch("logs", run.run_id)
    last = orch("logs", run.run_id, "-n", "2").splitlines()
    assert len(last) == 4 and [x.split(" ")[1] for x in last] == ["0]", "0]", "1]", "1]"]

    dumped = orch.json("dump", run.run_id)
    assert any("workloads" in text["text"] for text in dumped["groups"])

    halted = orch.json("halt", run.run_id, "--why", "a test")["runs"][0]
    assert (halted["state"], halted["confirmed"]) == ("halted", True)
    step = halted["ranks"][0]["step"]
    assert halted["ranks"][0]["hash"] and step == steps_of(run)[-1]
    assert orch.status(run)["state"] == "halted"

    orch("resume", run.run_id)
    there.wait_step(run, step + 3)
    orch("halt", run.run_id)
    there.wait(run, "halted")
    assert steps_of(run) == list(range(steps_of(run)[0], steps_of(run)[-1] + 1))
    assert [e["to"] for e in events_of(run, "state")].count("halted") == 2

    orch("pull", run.run_id)
    copy = far.mirror(run.run_id)
    for path in [p for p in run.path.rglob("*") if p.is_file()]:
        name = path.relative_to(run.path)
        if path.suffix == ".lock" or path.name.endswith(".order.json"):
            continue  # they mean something where the run lies and nowhere else
        if name.parts[0] != "checkpoints":
            assert (copy.path / name).read_bytes() == path.read_bytes(), name
    newest = max(p.name for p in run.checkpoints.glob("step_*"))
    for path in (run.checkpoints / newest).rglob("*"):
        if path.is_file():
            assert (copy.checkpoints / newest / path.name).read_bytes() == path.read_bytes()


def test_a_machine_that_never_saw_it_finds_the_run(far: Far) -> None:
    run = far.launch("--name", "found", "--", "sh", "-c", "echo hello from the pod")
    far.there.wait(run, "succeeded")
    other = far.another_operator()
    try:
        listed = {r["run"]: r for r in other.json("runs", "--from", POD)["runs"]}
        assert listed[run.run_id]["state"] == "succeeded"
        assert other.status(run)["state"] == "succeeded"
        assert other("logs", "found").strip() == "hello from the pod"
    finally:
        other.remove()


def test_the_code_beside_the_operator_travels_and_its_secrets_do_not_show(far: Far) -> None:
    orch, work = far.orch, far.orch.work
    (work / "job").mkdir(exist_ok=True)
    (work / "job" / "hello.py").write_text(
        "import os, pathlib\nprint('cwd', pathlib.Path.cwd().name, 'token', os.environ['MY_TOKEN'])\n"
        "pathlib.Path('made_here.txt').write_text('x')\n"
    )
    canary = "canary-0123456789abcdef"
    orch.extra_env["MY_TOKEN"] = canary
    try:
        run = far.launch("--name", "code", "--set", "secrets=[MY_TOKEN]", "--", "python", "job/hello.py")
        far.there.wait(run, "succeeded")
        shown = orch("logs", run.run_id) + orch("logs", run.run_id, "--json") + orch("status", run.run_id)
    finally:
        del orch.extra_env["MY_TOKEN"]
    assert canary in run.rank_log(0).read_text() and canary not in shown and "[secret MY_TOKEN]" in shown
    assert canary not in orch("logs", run.run_id)  # also when this machine no longer has it
    assert (run.code / "made_here.txt").read_text() == "x" and (run.code / "job" / "hello.py").is_file()
    for path in (far.there.home.code_store / "objects").rglob("*"):
        if path.is_file():  # somebody wrote into the store
            path.chmod(0o600)
            path.write_bytes(b"damaged")
    orch.extra_env["MY_TOKEN"] = canary
    try:
        again = far.launch("--name", "code", "--set", "secrets=[MY_TOKEN]", "--", "python", "job/hello.py")
        far.there.wait(again, "succeeded")
    finally:
        del orch.extra_env["MY_TOKEN"]
    orch("pull", run.run_id)
    logs = {r.rank_log(0) for r in (run, again, far.mirror(run.run_id), far.mirror(again.run_id))}
    allowed = {run.secrets, again.secrets, *logs}
    for home in (far.orch.home, far.there.home):
        for path in (p for p in home.path.rglob("*") if p.is_file() and not p.is_symlink()):
            assert path in allowed or canary.encode() not in path.read_bytes(), path


def test_launching_the_same_id_again_is_the_same_run(far: Far) -> None:
    run = far.launch("--name", "once", "--", "true")
    again = json.loads(far.orch("launch", "--json", "--pod", POD, "--name", "once", "--id", run.run_id, "--", "true"))
    assert (again["run"], again["created"]) == (run.run_id, False)
    far.there.wait(run, "succeeded")


@pytest.mark.long
def test_followed_to_its_end(far: Far) -> None:
    out = far.orch(
        "launch", "--pod", POD, "--name", "follow", "--follow", "--", "sh", "-c", "echo one; sleep 1; echo two"
    )
    for stage in ("connect, facts", "tree", "run directory", "keeper"):
        assert stage in out, out
    assert "succeeded" in out
    run_id = next(line.split()[0] for line in out.splitlines() if line.startswith("follow-"))
    assert far.orch("logs", run_id, "-f") == "one\ntwo\n"
    failed = far.orch("launch", "--pod", POD, "--name", "bad", "--follow", "--", "sh", "-c", "echo why; exit 3", code=1)
    assert "why" in failed


def test_a_pod_that_cannot_be_reached_is_not_a_dead_run(far: Far) -> None:
    run = far.launch("--name", "unseen", "--", "sh", "-c", "sleep 600")
    far.there.wait(run, "running")
    far.orch("status", run.run_id)
    far.sshd.close()
    try:
        row = far.orch.status(run)
        assert row["state"] == "running" and row["pod_reachable"] is False
        text = far.orch("status", run.run_id)
        assert "cannot be reached" in text or "unreachable" in text
    finally:
        far.sshd.start()
    assert far.orch.status(run)["pod_reachable"] is True
    far.orch("halt", run.run_id, "--now")
    assert far.there.state(run) == "halted"


@pytest.mark.long
def test_halted_and_resumed_there_it_is_the_unbroken_run_of_here(far: Far) -> None:
    args = ("tiny", *SMALL, "--set", "train.steps=100000", "--set", "checkpoint.every_steps=50", "--name", "exact")
    run = far.launch(*args)
    far.there.wait_step(run, 15)
    far.orch("halt", run.run_id)
    end = steps_of(run)[-1] + 20
    far.orch("resume", run.run_id)
    far.there.wait_step(run, end)
    far.orch("halt", run.run_id)
    reference = far.orch.launch(*args)
    far.orch.wait_step(reference, end)
    far.orch("halt", reference.run_id)
    assert losses_of(run)[:end] == losses_of(reference)[:end] != []


@pytest.mark.long
def test_dashboard_of_a_run_on_a_pod(far: Far) -> None:
    """Through the tunnel of `orch dashboard`, with Ray's token and not without."""
    run = far.launch("--name", "page", "--", "sleep", "600")
    far.there.wait(run, "running")
    process = far.orch.popen("dashboard", run.run_id, "--show-token", "--json")
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["url"].startswith("http://127.0.0.1:") and told["pod"] == "box"
        assert get(f"{told['url']}/api/version") == 401
        assert get(f"{told['url']}/api/version", told["token"]) == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate(timeout=120)
        far.orch("halt", run.run_id, "--now")
