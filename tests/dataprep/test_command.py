"""`orch data` on this machine, from the command to the answer: a real keeper, a real Ray, a rank that is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.corpora import write_jsonl
from tests.dataprep.corpus import bytes_of, make, spec
from tests.local.conftest import Orch, orch, rank_pid, wait_for
from tests.tokenizers.vocabularies import tokenizer_json
from workloads.contract.rundir import RunDir

__all__ = ["orch"]
pytestmark = [pytest.mark.ray, pytest.mark.long]


def newest(orch: Orch) -> RunDir | None:
    found = sorted(p.name for p in orch.home.runs.iterdir()) if orch.home.runs.is_dir() else []
    return orch.home.run(found[-1]) if found else None


def test_checked_prepared_killed_and_used(orch: Orch) -> None:
    data = write_jsonl(orch.work / "data", count=6000)
    tokenizer = tokenizer_json(orch.work / "tokenizer.json")
    asked = ("--source", "jsonl", "--path", str(data), "--tokenizer", str(tokenizer))
    checked = orch.json("data", "check", *asked, "--batches", "20")
    assert (checked["verdict"], checked["sources"], checked["batches"]) == ("go", ["jsonl"], 20)
    assert checked["head"].startswith("<")

    process = orch.popen("data", "prepare", *asked, "--out", "shards", "--workers", "1")
    wait_for(lambda: list(orch.work.glob(".tmp_shards/shard_*.json")), 120)
    run = newest(orch)
    assert run is not None
    rank_pid(run, 1, 0).signal(9)
    told, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "parts were there from before" in told
    assert "go: " in told and "source: prepared" in told
    again = orch("data", "--run", run.run_id)
    assert again.splitlines()[-1] == told.splitlines()[-1]

    here = Path(orch.work / "here")
    make(spec(data, str(tokenizer)).model_copy(update={"source": "jsonl"}), here)
    assert bytes_of(orch.work / "shards") == bytes_of(here)

    prepared = ("--source", "prepared", "--path", str(orch.work / "shards"), "--tokenizer", str(tokenizer))
    assert orch.json("data", "check", *prepared, "--batches", "5")["verdict"] == "go"
    shard = orch.work / "shards" / "shard_00003.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    refused = orch.json("data", "check", *prepared, "--batches", "5", code=1)
    assert refused["error"]["code"] == "E-DATA-033"
    assert "shard_00003.bin" in refused["why"]
