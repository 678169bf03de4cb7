"""`python -m tests.checkpoints.blocking FOLDER [--dim D --layers L --vocab V --device cpu|cuda --saves N]`: how long
training waits for a checkpoint, in both modes by turns, and what a save in the background costs the steps beside it.

One rank, the real model, optimizer, writer and disk. One JSON object: seconds, medians over the saves; the first save
in the background, which also takes its memory, apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints.saver import checkpointer, make_run
from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer
from workloads.runtime.state import TorchState
from workloads.train.optim import make_optimizer

TRAINER = {"v": 1, "config": {}, "corpus": "x"}


class Work:
    """Training steps on random tokens."""

    def __init__(self, asked: argparse.Namespace) -> None:
        torch.manual_seed(1)
        spec = ModelSpec(dim=asked.dim, layers=asked.layers, heads=asked.dim // 64, kv_heads=asked.dim // 128)
        self.cuda = asked.device == "cuda"
        with torch.device(asked.device):
            self.model = Decoder(spec, asked.vocab)
            self.tokens = torch.randint(0, asked.vocab, (asked.batch, asked.seq + 1))
        self.optimizer = make_optimizer(self.model, TrainSpec())

    def step(self) -> float:
        began = time.perf_counter()
        with torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self.cuda):
            loss = self.model(self.tokens[:, :-1], self.tokens[:, 1:]) / self.tokens[:, 1:].numel()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def one_round(work: Work, saver: Checkpointer, step: int) -> dict[str, Any]:
    """Steps alone, a save that is waited for, a save beside steps."""
    alone = [work.step() for _ in range(4)]
    began = time.perf_counter()
    assert saver.save(step, TRAINER)
    waited = time.perf_counter() - began
    work.step()
    began = time.perf_counter()
    saver.begin(step + 1, TRAINER)
    blocked = time.perf_counter() - began
    beside = []
    while not saver.finished:
        beside.append(work.step())
    done = saver.collect()
    assert done is not None and done.path is not None
    return {"alone": alone, "sync": waited, "async": blocked, "background": done.seconds, "beside": beside}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, default in (("dim", 512), ("layers", 8), ("vocab", 256), ("batch", 4), ("seq", 128), ("saves", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    work = Work(asked)
    saver = checkpointer(make_run(asked.folder), state=TorchState(0, Agreement(), work.model, work.optimizer))
    work.step()
    rounds = [one_round(work, saver, 10 * n) for n in range(1, asked.saves + 2)]
    first, rest = rounds[0], rounds[1:]

    def middle(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    size = sum(p.stat().st_size for p in saver.last.iterdir()) if saver.last else 0
    print(json.dumps({
        "parameters": sum(p.numel() for p in work.model.parameters()), "checkpoint_mib": size >> 20,
        "device": asked.device, "torch": torch.__version__, "saves": len(rest),
        "sync_blocked_s": middle([r["sync"] for r in rest]), "async_blocked_s": middle([r["async"] for r in rest]),
        "async_first_blocked_s": round(first["async"], 4), "background_s": middle([r["background"] for r in rest]),
        "step_alone_s": middle([s for r in rest for s in r["alone"]]),
        "step_beside_s": middle([s for r in rest for s in r["beside"]] or [0.0]),
        "steps_beside": sum(len(r["beside"]) for r in rest),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
