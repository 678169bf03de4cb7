"""A run that was trained on tokens of a tokenizer.json speaks in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.decode.desk import SPEC, make
from tests.tokenizers.vocabularies import tokenizer_json
from workloads.contract.config.bound import bound_fields
from workloads.contract.config.job import JobSpec, padded_vocab
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome, RunDir
from workloads.data.tokenizers import load_tokenizer
from workloads.models.decoder import Decoder
from workloads.runtime.agreement import Agreement
from workloads.runtime.checkpoint import Checkpointer, Provenance
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.retention import Retention
from workloads.runtime.state import TorchState

TRAINED = "tiny-20261120T093000Z-0002"


def test_replies_are_in_the_tokens_of_the_data(tmp_path: Path) -> None:
    path = tokenizer_json(tmp_path / "tokenizer.json")
    coder = load_tokenizer(str(path))
    torch.manual_seed(7)
    model = Decoder(SPEC, padded_vocab(coder.vocab_size)).eval()
    home = OrchHome(tmp_path / "home")
    run = RunDir(home.runs / TRAINED)
    for folder in run.skeleton():
        folder.mkdir(parents=True)
    run.epoch.write_text("1")
    env = RankEnv.read({"ORCH_RUN_DIR": str(run.path)})
    assert env is not None
    job = {"name": "tiny", "model": SPEC.model_dump(), "data": {"tokenizer": str(path)}}
    bound = bound_fields(JobSpec.model_validate_json(json.dumps(job)))
    alone, optimizer = Agreement(), torch.optim.SGD(model.parameters(), lr=0.1)
    saver = Checkpointer(env, alone, TorchState(0, alone, model, optimizer), Provenance("c", "d", {}), Retention(2))
    assert saver.save(3, {"v": 1, "step": 3, "samples": 3, "config": bound, "corpus": "x"})

    desk = make(home.path, weights=TRAINED, prompts=["the theatre then"], max_new_tokens=8)
    assert desk.here() == 0
    (row,) = desk.rows
    assert row["prompt_tokens"] == len(coder.encode("the theatre then"))
    assert row["prompt_tokens"] < len("the theatre then")
    assert row["text"] == coder.decode([i for i in row["ids"] if i < coder.vocab_size])

    path.unlink()
    with pytest.raises(OrchError) as caught:
        make(home.path, run_id="decode-20261121T093001Z-00ff", weights=TRAINED, prompts=["a"]).here()
    assert caught.value.code == "E-DATA-024"
