"""Real ranks that train on a stream: killed, halted, resumed by other numbers of ranks."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.data.corpora import run as hashes
from tests.data.corpora import spec, write_jsonl, write_packed
from tests.train.harness import TINY, exactness, launch_ranks, ledger, make_run, train
from workloads.contract.files import read_json
from workloads.contract.manifest import verify

STEPS = 40


def job(corpus: Path, **data: object) -> dict[str, object]:
    return {
        "data": {"source": "jsonl", "path": str(corpus), "shards": 8, "seq_len": 32, **data},
        "train": {"steps": STEPS},
        "checkpoint": {"every_s": None, "every_steps": 10},
    }


@pytest.mark.long
@pytest.mark.parametrize("source", ["jsonl", pytest.param("hub", marks=pytest.mark.proof)])
def test_a_killed_run_goes_on_with_another_number_of_ranks(tmp_path: Path, source: str) -> None:
    corpus = (write_jsonl if source == "jsonl" else write_packed)(tmp_path / "corpus")
    unbroken = hashes(spec(source, corpus), STEPS, global_batch=TINY["train"]["global_batch"])[0]
    where = {} if source == "jsonl" else {"source": "hub", "path": None, "dataset": {"repo": str(corpus)}}
    run = make_run(tmp_path / "killed", job(corpus, **where))
    with launch_ranks(run) as ranks:
        ranks.until_step(23)
        os.kill(ranks.procs[1].pid, signal.SIGKILL)
        ranks.wait()
    newest = max(p for p in run.checkpoints.iterdir() if p.name.startswith("step_"))
    assert {"data_rank0.json", "data_rank1.json"} <= {p.name for p in newest.iterdir()}
    assert {"data_rank0.json", "data_rank1.json"} <= {f["name"] for f in read_json(run.manifest(newest))["files"]}
    damaged = Path(shutil.copytree(newest, tmp_path / newest.name))
    assert not verify(damaged, run_id=run.run_id)
    (damaged / "data_rank1.json").write_text("{}")
    assert verify(damaged, run_id=run.run_id)  # a changed position is a damaged checkpoint
    assert train(run, world=1, attempt=2) == [0]
    assert [(step, batch) for step, batch, _ in exactness(run)] == list(enumerate(unbroken, 1))
    assert [r["world_size"] for r in ledger(run)].count(1) >= STEPS - 30


@pytest.mark.long
def test_documents_that_do_not_see_each_other_train_too(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus")
    runs = [make_run(tmp_path / name, job(corpus, pack=name)) for name in ("stream", "documents")]
    for run in runs:
        assert train(run, world=1) == [0]
    stream, documents = ([r["batch_hash"] for r in ledger(run)] for run in runs)
    assert stream == documents
    assert exactness(runs[0])[0][2] != exactness(runs[1])[0][2]
