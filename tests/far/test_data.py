"""`orch data` on a pod over SSH: the vocabulary is brought, the shards are made there, the answer comes home."""

from __future__ import annotations

import sys

import pytest

from tests.data.corpora import write_jsonl
from tests.far.conftest import POD, Far
from tests.tokenizers.conftest import gpt2_folder
from workloads.contract import gptvocab
from workloads.data.shardfiles import read_index

__all__ = ["gpt2_folder"]
pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_prepared_on_the_pod_and_checked_there(far: Far, gpt2_folder: object) -> None:
    brought = far.orch.json("data", "import", str(gpt2_folder), "--pod", POD)
    assert brought["path"] == str(far.there.home.tokenizers / gptvocab.FILE)
    data = write_jsonl(far.there.work / "data")
    out = far.there.work / "shards"
    asked = ("--source", "jsonl", "--path", str(data), "--tokenizer", "gpt2", "--pod", POD)
    made = far.orch.json("data", "prepare", *asked, "--out", str(out), "--python", sys.executable)
    index = read_index(out)
    assert (made["verdict"], made["pod"], made["documents"]) == ("go", POD, 600)
    assert (made["tokens"], made["fingerprint"]) == (index.tokens, index.fingerprint)
    assert far.mirror(made["run"]).verdict.exists()
    source = ("--source", "prepared", "--path", str(out), "--tokenizer", "gpt2", "--pod", POD)
    checked = far.orch.json("data", "check", *source, "--batches", "3", "--python", sys.executable)
    assert (checked["verdict"], checked["sources"]) == ("go", ["prepared"])
    told = far.orch("data", "--run", made["run"])
    assert told.rstrip().endswith("shards")
