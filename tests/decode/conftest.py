"""One thread, no interpreter, and a home in which a run has left a checkpoint of a small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.decode.desk import SPEC
from workloads.contract.config.bound import bound_fields
from workloads.contract.config.job import JobSpec
from workloads.contract.rundir import OrchHome, RunDir
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention
from workloads.runtime.state import TorchState

TRAINED = "tiny-20261120T093000Z-0001"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def model() -> Decoder:
    """Its likeliest tokens differ clearly and depend on the text."""
    torch.manual_seed(7)
    made = Decoder(SPEC, 256).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(6.0 if p.ndim > 1 else 1.0)
    return made


@pytest.fixture
def home(tmp_path: Path, model: Decoder) -> OrchHome:
    """A home with the run `TRAINED`, whose newest checkpoint holds `model`, written as the trainer writes it."""
    found = OrchHome(tmp_path / "home")
    run = RunDir(found.runs / TRAINED)
    for folder in run.skeleton():
        folder.mkdir(parents=True)
    run.epoch.write_text("1")
    env = RankEnv.read({"ORCH_RUN_DIR": str(run.path)})
    assert env is not None
    bound = bound_fields(JobSpec.model_validate_json(json.dumps({"name": "tiny", "model": SPEC.model_dump()})))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alone = Agreement()
    saver = Checkpointer(env, alone, TorchState(0, alone, model, optimizer), Provenance("c", "d", {}), Retention(2))
    assert saver.save(7, {"v": 1, "step": 7, "samples": 7, "config": bound, "corpus": "x"})
    return found
