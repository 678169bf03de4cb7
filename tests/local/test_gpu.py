"""The whole thread on real cards: leased by UUID, trained, dumped, halted, killed, resumed bitwise. `make gpu`.

Prints what it measured as one JSON line a case, for runbooks/results/gpu-thread.jsonl.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time

import pytest

from pods.facts import Gpu, gpus_of
from pods.transport.local import LocalTransport
from tests.local.conftest import ROOT, Orch, losses_of, rank_pid, restarts_of, rows, wait_for
from workloads.contract.files import read_json
from workloads.contract.process import marked
from workloads.contract.rundir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.gpu]

STEPS = 600
MODEL = (
    "--set", "resources.ranks=auto", "--set", "resources.gpus_per_rank=1",
    "--set", "model.dim=512", "--set", "model.layers=8", "--set", "model.heads=8", "--set", "model.kv_heads=2",
    "--set", "data.seq_len=512", "--set", "train.global_batch=64", "--set", "train.lr=0.0006",
    "--set", "checkpoint.every_steps=100", "--set", f"train.steps={STEPS}",
)  # fmt: skip


def cards() -> tuple[Gpu, ...]:
    return gpus_of(LocalTransport())[0]


def tell(case: str, value: float, unit: str) -> None:
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = cards()
    row = {
        "v": 1, "suite": "gpu-thread", "case": case, "value": round(value, 3), "unit": unit,
        "machine": f"{len(found)} x {found[0].name}", "torch": torch.__version__, "python": platform.python_version(),
        "commit": commit.stdout.strip() if commit.returncode == 0 else "",
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "command": "make gpu",
    }  # fmt: skip
    print(f"\nROW {json.dumps(row)}", flush=True)


def launch(orch: Orch, name: str) -> RunDir:
    return orch.launch("tiny", "--name", name, *MODEL)


@pytest.fixture(scope="module")
def unbroken(orch: Orch) -> RunDir:
    if not cards():
        pytest.skip("needs an NVIDIA GPU")
    began = time.monotonic()
    run = launch(orch, "unbroken")
    orch.wait_step(run, 1)
    tell("launch to first step, Ray down", time.monotonic() - began, "s")
    orch.wait(run, "succeeded", "failed")
    assert orch.state(run) == "succeeded", orch.story(run)
    return run


def test_every_rank_has_a_card_of_its_own_and_learns(orch: Orch, unbroken: RunDir) -> None:
    orders = [read_json(unbroken.rank_order(1, r)) for r in range(len(cards()))]
    assert sorted(o["devices"][0] for o in orders) == sorted(g.uuid for g in cards())
    assert [o["env"]["CUDA_VISIBLE_DEVICES"] for o in orders] == [o["devices"][0] for o in orders]
    env = read_json(unbroken.env_json)
    assert env["bf16"] is True and env["gpu"] == cards()[0].name
    losses = [float.fromhex(r["loss"]) for r in rows(unbroken.ledger)]
    assert losses[-1] < losses[0] - 2.0
    rates = [float(line.split(",")[3]) for line in unbroken.training_csv.read_text().splitlines()[200:]]
    tell("tokens a second, 25M parameters, deterministic", sorted(rates)[len(rates) // 2], "tokens/s")


def test_dumped_halted_and_resumed_is_bitwise_the_unbroken_run(orch: Orch, unbroken: RunDir) -> None:
    began = time.monotonic()
    run = launch(orch, "halted")
    orch.wait_step(run, 1)
    tell("launch to first step, Ray up", time.monotonic() - began, "s")
    orch.wait_step(run, 150)
    assert "loop.py" in orch("dump", run.run_id)
    began = time.monotonic()
    orch("halt", run.run_id)
    tell("halt, from the command to every rank gone", time.monotonic() - began, "s")
    assert not marked(run.run_id)
    wait_for(lambda: all(g.used_mib < 1000 for g in cards()), 180, lambda: str(cards()))
    step = read_json(run.halt_ack(0))["step"]
    assert {read_json(run.halt_ack(r))["step"] for r in range(len(cards()))} == {step}
    began = time.monotonic()
    orch("resume", run.run_id)
    orch.wait_step(run, step + 1)
    tell("resume, from the command to the first new step", time.monotonic() - began, "s")
    orch.wait(run, "succeeded", "failed")
    assert losses_of(run) == losses_of(unbroken)


def test_a_killed_rank_is_restarted_bitwise(orch: Orch, unbroken: RunDir) -> None:
    run = launch(orch, "killed")
    orch.wait_step(run, 150)
    assert rank_pid(run, 1, len(cards()) - 1).signal(9)
    began = time.monotonic()
    wait_for(lambda: any(r["attempt"] == 2 for r in rows(run.ledger)), 600, lambda: orch.story(run))
    tell("kill -9 of a rank to the first step of the next attempt", time.monotonic() - began, "s")
    orch.wait(run, "succeeded", "failed")
    assert losses_of(run) == losses_of(unbroken)
    assert len(restarts_of(run)) == 1


def test_a_second_run_queues_behind_the_cards(orch: Orch, unbroken: RunDir) -> None:
    first, second = launch(orch, "first"), launch(orch, "second")
    orch.wait(second, "queued")
    wait_for(lambda: first.run_id in orch.status(second)["reason"], 600, lambda: orch.story(second))
    orch("halt", "--all", "--now")
    assert [orch.state(r) for r in (first, second)] == ["halted", "halted"]
