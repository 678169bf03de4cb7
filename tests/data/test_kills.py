"""The loader killed again and again, by SIGKILL, at every point between two batches: nothing is lost or repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.corpora import SEQ, feeds, spec, texts, write_jsonl, write_packed, write_parquet
from tests.data.forkserver import GLOBAL_BATCH, RECORD
from workloads.data.stream import FeedState

ROOT = Path(__file__).resolve().parents[2]


def unbroken(data: object, batches: int) -> bytes:
    feed, state, out = feeds(data, 1, GLOBAL_BATCH)[0], FeedState(), []  # type: ignore[arg-type]
    for _ in range(batches):
        batch = feed.batch(state)
        state = batch.state
        out.append(batch.x_BT.tobytes())
    return b"".join(out)


def epochs_of(log: bytes, shard: int, shards: int) -> list[str]:
    """Names of a shard's whole documents, in the order in which they were read."""
    windows = np.frombuffer(log, np.uint8).reshape(-1, SEQ)[shard::shards]
    documents = windows.tobytes().split(b"\0")[:-1]
    return [d.split(b">")[0].decode() for d in documents]


@pytest.mark.parametrize(
    ("source", "cycles"),
    [("jsonl", 60), pytest.param("jsonl", 300, marks=pytest.mark.long),
     pytest.param("jsonl", 1000, marks=pytest.mark.long),
     pytest.param("parquet", 60, marks=pytest.mark.long),
     pytest.param("hub", 60, marks=[pytest.mark.long, pytest.mark.proof])],
)  # fmt: skip
def test_kills_lose_and_repeat_nothing(tmp_path: Path, source: str, cycles: int) -> None:
    make = {"jsonl": write_jsonl, "parquet": write_parquet, "hub": write_packed}
    corpus = make[source](tmp_path / "corpus", 120)
    work = tmp_path / "work"
    work.mkdir()
    argv = [sys.executable, "-m", "tests.data.forkserver", str(work), source, str(corpus), str(cycles), "7"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=900, check=True)
    said = json.loads(done.stdout)
    assert sum(said["ended"].values()) == cycles and "failed" not in said["ended"], done.stderr[-3000:]
    assert set(said["ended"]) == {"opened", "fetched", "half-logged", "logged", "committed", "clock"}
    assert said["barren"] > cycles / 4 and said["batches"] > cycles / 4, said  # many died before their first batch
    log = (work / "log").read_bytes()[: said["batches"] * RECORD]
    assert log == unbroken(spec(source, corpus), said["batches"])
    known = {t.split(">")[0] for t in texts(120)}
    found = [epochs_of(log, shard, 8) for shard in range(8)]
    if cycles >= 300:  # by documents, too: every epoch of a shard has each of its own once
        own = [set(names) for names in found]
        assert set().union(*own) == known and sum(map(len, own)) == len(known)
        for names, mine in zip(found, own, strict=True):
            assert all(set(names[i : i + len(mine)]) == mine for i in range(0, len(names) - len(mine), len(mine)))
