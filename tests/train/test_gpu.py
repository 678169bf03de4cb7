"""The trainer on a card: bf16 by default, memory in the beats, resume bitwise in deterministic mode. `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.harness import exactness, launch_ranks, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir

pytestmark = pytest.mark.gpu

GPU: dict[str, Any] = {
    "model": {"dim": 256, "layers": 4, "heads": 4, "kv_heads": 2},
    "data": {"source": "stdlib", "seq_len": 256},
    "train": {"steps": 120, "global_batch": 16, "lr": 1e-3, "warmup_steps": 10},
    "checkpoint": {"every_s": None, "every_steps": 40},
}


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def gpu_run(root: Path, overrides: dict[str, Any] | None = None) -> RunDir:
    root.mkdir(parents=True, exist_ok=True)
    run = make_run(root, {**GPU, **(overrides or {})})
    spec = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**spec, "gpus_per_rank": 1}))
    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = gpu_run(tmp_path_factory.mktemp("unbroken"))
    assert train(run, world=1) == [0], run.rank_log(0).read_text()
    return run


def test_it_learns_in_bf16_and_says_what_it_used(unbroken: RunDir) -> None:
    env = read_json(unbroken.env_json)
    assert env["bf16"] is True and env["device"].startswith("cuda")
    losses = [float.fromhex(loss) for _, _, loss in exactness(unbroken)]
    assert losses[-1] < losses[0] - 1.5
    beats = [b for b in BeatReader(unbroken.heartbeat(0), 0).read() if b.msg == "progress"]
    assert any((b.get("gpu_mem_alloc") or 0) > 1 for b in beats)


def test_two_unbroken_runs_are_bitwise_equal(tmp_path: Path, unbroken: RunDir) -> None:
    again = gpu_run(tmp_path)
    assert train(again, world=1) == [0]
    assert exactness(again) == exactness(unbroken)


def test_halted_and_resumed_is_bitwise_the_unbroken_run(tmp_path: Path, unbroken: RunDir) -> None:
    run = gpu_run(tmp_path)
    with launch_ranks(run, world=1) as ranks:
        ranks.until_step(30)
        run.halt.touch()
        assert ranks.wait() == [75]
    run.halt.unlink()
    assert train(run, world=1, attempt=2) == [0]
    assert exactness(run) == exactness(unbroken)


def test_killed_and_restarted_is_bitwise_the_unbroken_run(tmp_path: Path, unbroken: RunDir) -> None:
    run = gpu_run(tmp_path)
    with launch_ranks(run, world=1) as ranks:
        ranks.until_step(60)
        ranks.procs[0].kill()
        assert ranks.wait() == [-9]
    assert train(run, world=1, attempt=2) == [0]
    assert exactness(run) == exactness(unbroken)


def test_two_cards_see_the_same_batches_and_halt_at_the_same_step(tmp_path: Path, unbroken: RunDir) -> None:
    if gpus() < 2:
        pytest.skip("needs two GPUs")
    run = gpu_run(tmp_path)
    with launch_ranks(run, world=2) as ranks:
        ranks.until_step(30)
        run.halt.touch()
        assert ranks.wait() == [75, 75]
    assert read_json(run.halt_ack(0))["step"] == read_json(run.halt_ack(1))["step"]
    run.halt.unlink()
    assert train(run, world=2, attempt=2) == [0, 0]
    assert [(s, h) for s, h, _ in exactness(run)] == [(s, h) for s, h, _ in exactness(unbroken)]
