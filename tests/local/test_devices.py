"""Devices on a machine that has none: a fake nvidia-smi names two, Ray hands them out, shims lease them for real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.conftest import Orch, make_orch, wait_for
from tests.local.test_command import command, launch, script
from workloads.contract.files import read_json, try_read_json

pytestmark = [pytest.mark.ray, pytest.mark.long]

UUIDS = [f"GPU-{i}0000000-aaaa-bbbb-cccc-0123456789ab" for i in (1, 2)]
FAKE = f"""#!{sys.executable}
import os, sys
used, pid = open(__file__ + ".held").read().split() if os.path.exists(__file__ + ".held") else (4, 0)
if any(a.startswith("--query-compute-apps=") for a in sys.argv):
    sys.exit(print({UUIDS[0]!r}, pid, used, sep=", ") if pid else None)
asked = next(a for a in sys.argv if a.startswith("--query-gpu=")).partition("=")[2].split(",")
for i, uuid in enumerate({UUIDS!r}):
    card = {{"index": i, "uuid": uuid, "name": "NVIDIA H200", "memory.total": 143771, "memory.used": 4 if i else used,
            "driver_version": "580.1"}}
    print(", ".join(str(card[a]) for a in asked))
"""
SHOW = """
import json, os, time
print(json.dumps({"devices": os.environ["CUDA_VISIBLE_DEVICES"], "rank": os.environ["RANK"]}), flush=True)
time.sleep(600 if os.environ.get("STAY") else 0)
"""


def fake_gpus(orch: Orch) -> None:
    """Put an nvidia-smi that lists two cards first on the PATH of this home's commands."""
    folder = orch.work / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(FAKE)
    (folder / "nvidia-smi").chmod(0o755)
    orch.extra_env["PATH"] = f"{folder}:{orch.env['PATH']}"


@pytest.fixture
def two_homes() -> Iterator[tuple[Orch, Orch]]:
    """Two users' homes on one machine: one lease directory."""
    first, second = make_orch(), make_orch()
    for one in (first, second):
        fake_gpus(one)
    second.extra_env["ORCH_LEASES"] = first.env["ORCH_LEASES"]
    yield first, second
    for one in (first, second):
        one.remove()


def devices_of(log: Path) -> str:
    return str(json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))["devices"])


def test_each_rank_gets_a_card_and_no_card_is_given_twice(two_homes: tuple[Orch, Orch]) -> None:
    first, second = two_homes
    stay = ('env.STAY="1"',)
    one = launch(first, *command(script(first, "show.py", SHOW), name="one", sets=stay))
    first.wait(one, "running")
    plan = read_json(one.run_json)
    assert (plan["world_size"], plan["gpus_per_rank"]) == (2, 1)
    wait_for(lambda: all(one.rank_log(r).exists() and one.rank_log(r).read_text() for r in (0, 1)), 600)
    assert sorted(devices_of(one.rank_log(r)) for r in (0, 1)) == UUIDS

    # another home has a Ray of its own, whose books call both cards free
    two = launch(second, *command(script(second, "show.py", SHOW), name="two"))
    second.wait(two, "queued")

    def told() -> bool:
        reason = (try_read_json(two.status) or {}).get("reason", "")
        return UUIDS[0] in reason and one.run_id in reason

    wait_for(told, 600, lambda: second.story(two))
    assert not two.rank_log(0).exists()

    first("halt", one.run_id, "--now")
    second.wait(two, "succeeded", "failed")
    assert second.state(two) == "succeeded", second.story(two)
    assert read_json(two.status)["attempt"] == 1


def test_memory_that_somebody_holds_is_waited_for_and_named(fresh_orch: Orch) -> None:
    orch = fresh_orch
    fake_gpus(orch)
    holder = subprocess.Popen(["sleep", "600"])
    try:
        held = orch.work / "bin" / "nvidia-smi.held"
        held.write_text(f"117760 {holder.pid}")
        run = launch(orch, *command(script(orch, "show.py", SHOW), name="one"))
        words = f"{UUIDS[0]}: 115 GiB of 140 are held by pid {holder.pid} (sleep 600, user "
        wait_for(lambda: words in (try_read_json(run.status) or {}).get("reason", ""), 600, lambda: orch.story(run))
        assert orch.state(run) == "queued" and not run.rank_log(0).exists()
        assert UUIDS[1] not in read_json(run.status)["reason"] and holder.poll() is None
        held.unlink()
        orch.wait(run, "succeeded", "failed")
        assert orch.state(run) == "succeeded", orch.story(run)
    finally:
        holder.kill()
        holder.wait(timeout=120)


def test_more_cards_than_there_are_is_refused_before_anything_happens(fresh_orch: Orch) -> None:
    fake_gpus(fresh_orch)
    process = fresh_orch.popen("launch", "tiny", "--set", "resources.gpus_per_rank=2")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and "4" in err and "2" in err, err
    assert not fresh_orch.home.runs.exists()
