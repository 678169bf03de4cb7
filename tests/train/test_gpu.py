"""The trainer on GPUs: bf16, NCCL, sums that come back through pinned memory, and the same exactness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.harness import exactness, launch_ranks, ledger, make_run, train
from workloads.contract.beats import BeatReader
from workloads.contract.files import read_json
from workloads.contract.manifest import verify

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")]

JOB: dict[str, Any] = {
    "model": {"dim": 256, "layers": 4, "heads": 4, "kv_heads": 2},
    "data": {"source": "synthetic", "seq_len": 256},
    "train": {"steps": 600, "global_batch": 16, "log_every": 100},
    "checkpoint": {"every_s": None, "every_steps": 200},
}


@pytest.mark.parametrize("world", [w for w in (1, 2) if w <= GPUS] or [1])
def test_halt_and_resume_are_bitwise(tmp_path: Path, world: int) -> None:
    whole = make_run(tmp_path / "whole", JOB, gpus=1)
    assert train(whole, world=world) == [0] * world, whole.rank_log(0).read_text()
    env = read_json(whole.env_json)
    assert env["bf16"] is True and env["device"] == "cuda:0"
    assert any(b.get("gpu_mem_alloc") for b in BeatReader(whole.heartbeat(0), 0).read())

    run = make_run(tmp_path / "halted", JOB, gpus=1)
    with launch_ranks(run, world=world, fence=(0, 500)) as ranks:
        ranks.until_step(60)
        run.halt.touch()
        assert ranks.wait() == [75] * world, ranks.log(0)
    acks = [read_json(run.halt_ack(k)) for k in range(world)]
    assert {a["step"] for a in acks} == {len(ledger(run))}
    assert verify(run.checkpoints / acks[0]["checkpoint"], run_id=run.run_id) == []
    run.halt.unlink()
    assert train(run, world=world, attempt=2) == [0] * world
    assert exactness(run) == exactness(whole)
    print(whole.rank_log(0).read_text()[-600:])
