"""The rank of a run of kind `data`: what it answers, and how it stops and goes on. Real processes."""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.corpora import write_jsonl
from tests.dataprep.corpus import bytes_of
from tests.tokenizers.vocabularies import tokenizer_json
from tests.train.harness import Ranks, launch_ranks, make_run
from workloads.contract.beats import Beat, BeatReader
from workloads.contract.config.job import JobSpec
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome, RunDir
from workloads.dataprep.check import Reading, check

RANK = [sys.executable, "-P", "-m", "workloads.dataprep"]


def run_of(tmp_path: Path, task: dict[str, Any], data: dict[str, Any], **more: Any) -> RunDir:
    return make_run(tmp_path, {"kind": "data", "task": task, "data": {"seq_len": 64, **data}, **more})


def carry_out(run: RunDir, home: OrchHome, attempt: int = 1) -> int:
    with launch_ranks(run, 1, attempt, RANK, {"ORCH_HOME": str(home.path)}) as ranks:
        return ranks.wait()[0]


def answer(run: RunDir) -> dict[str, Any]:
    row = read_json(run.verdict)
    return {**row["data"], "verdict": row["verdict"], "why": row["why"], "attempt": row["attempt"]}


def beats(run: RunDir) -> list[Beat]:
    return BeatReader(run.heartbeat(0), 0).read()


def test_a_check_that_goes(tmp_path: Path, home: OrchHome) -> None:
    run = run_of(tmp_path, {"kind": "check", "batches": 12}, {"source": "stdlib"})
    assert carry_out(run, home) == 0
    told = answer(run)
    assert (told["verdict"], told["sources"], told["batches"]) == ("go", ["stdlib"], 12)
    assert told["tokens"] == 11 * 8 * 64  # the first batch shows when data is there, and is in no rate
    assert told["tokens_per_s"] > 0
    assert told["fetch"]["p50_s"] <= told["fetch"]["p95_s"] <= told["fetch"]["longest_s"]
    assert len(told["head"]) > 20
    assert beats(run)[-1].get("data_source") in (None, "stdlib")


def test_the_first_batch_is_that_of_a_training(tmp_path: Path, home: OrchHome) -> None:
    """The hash of a training's ledger, at step 1."""
    from workloads.contract.config.job import DataSpec, TrainSpec
    from workloads.data.feeds import open_feed
    from workloads.data.stream import FeedState, batch_hash

    run = run_of(tmp_path, {"kind": "check", "batches": 2}, {"source": "synthetic"})
    assert carry_out(run, home) == 0
    ranks = [open_feed(DataSpec(source="synthetic", seq_len=64), TrainSpec(global_batch=8), rank=r, world_size=2)
             for r in (0, 1)]  # fmt: skip
    parts = [feed.batch(FeedState()) for feed in ranks]
    assert answer(run)["first_hash"] == batch_hash(
        sum(p.hash_high for p in parts), sum(p.hash_low for p in parts)
    )  # fmt: skip


def test_a_check_that_does_not_go_says_why(tmp_path: Path, home: OrchHome) -> None:
    run = run_of(tmp_path, {"kind": "check"}, {"source": "text", "path": str(tmp_path / "absent")})
    assert carry_out(run, home) == 78
    told = answer(run)
    assert told["verdict"] == "no-go"
    assert told["error"]["code"] == "E-DATA-001"
    assert str(tmp_path / "absent") in told["error"]["text"]


def test_another_source_than_the_one_asked_for_is_no_go(tmp_path: Path) -> None:
    """The files vanish under the reader; the job allows synthetic text, which a check must not call good."""
    folder = write_jsonl(tmp_path / "data", count=20_000)
    data = {
        "source": "jsonl", "path": str(folder), "fallback": ["synthetic"], "read_timeout_s": 1.0, "read_tries": 1,
        "seq_len": 64,
    }  # fmt: skip
    job = {"name": "data", "kind": "data", "data": data, "task": {"batches": 2000, "seconds": 60.0}}

    def vanish(seen: Reading, batch: object, waited: float) -> None:
        for path in folder.glob("*.jsonl"):
            path.unlink()

    seen = check(JobSpec.model_validate(job), vanish, lambda: False)
    assert seen.sources == ["jsonl", "synthetic"]
    assert seen.why == "read from jsonl, synthetic instead of jsonl"


def test_a_source_that_goes_away_without_another(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path / "data", count=20_000)
    data = {"source": "jsonl", "path": str(folder), "read_timeout_s": 1.0, "read_tries": 1, "seq_len": 64}
    job = {"name": "data", "kind": "data", "data": data, "task": {"batches": 2000, "seconds": 60.0}}

    def vanish(seen: Reading, batch: object, waited: float) -> None:
        for path in folder.glob("*.jsonl"):
            path.unlink()

    seen = check(JobSpec.model_validate(job), vanish, lambda: False)
    assert "the data source jsonl is gone" in seen.why
    assert seen.batches > 0


def checked(data: dict[str, Any], batches: int = 8) -> Reading:
    job = {"name": "data", "kind": "data", "data": {"seq_len": 64, **data}, "task": {"batches": batches}}
    return check(JobSpec.model_validate(job), lambda *_: None, lambda: False)


@pytest.mark.parametrize("tokenizer", ["byte", "json"])
def test_bytes_that_are_no_text_do_not_go(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    if tokenizer == "json":
        tokenizer = str(tokenizer_json(tmp_path / "tokenizer.json"))
    text = {"source": "text", "path": str(folder), "tokenizer": tokenizer}
    (folder / "a.txt").write_text("Grüße aus Zürich, ça va très bien; дом; 日本語のテキスト。\n" * 400)
    good = checked(text)
    assert (good.why, good.error, good.text.share) == ("", None, 0.0) and good.text.chars > 500
    (folder / "a.txt").write_bytes("Die Käuferin hörte über Straßen und Gärten.\n".encode("latin-1") * 400)
    latin = checked(text)
    assert latin.error is not None and latin.error["code"] == "E-DATA-054" and latin.text.share is not None
    (folder / "a.txt").write_bytes(random.Random(1).randbytes(60_000))
    noise = checked(text)
    assert noise.error is not None and noise.error["code"] == "E-DATA-054"
    assert (noise.text.share or 0.0) > 0.3 and "of the characters are no UTF-8" in noise.why
    assert str(folder) in noise.error["where"] and noise.error["fix"].startswith("file -i ")


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    good = [json.dumps({"text": f"document {n} " * 20}) for n in range(400)]
    odd = ['{"text": ""}', "no json", '{"body": "x"}', '{"text": 5}', '{"text": ""}', "[1]"]
    (folder / "a.jsonl").write_text("\n".join([*good, *odd, ""]))
    with (folder / "a.jsonl").open("ab") as f:
        f.write(b'{"text": "caf\xe9"}\n')
    seen = checked({"source": "jsonl", "path": str(folder), "shards": 2}, batches=200)
    assert seen.why == "" and seen.left_out == {
        "'text' is empty": 2, "no JSON": 1, "no field 'text'": 1, "'text' is no text": 1, "no JSON object": 1,
        "no UTF-8": 1,
    }  # fmt: skip
    (folder / "b.txt").write_text("something long enough to be read as one sample and more\n" * 20)
    (folder / "c.txt").write_text("")
    (folder / "a.jsonl").unlink()
    assert checked({"source": "text", "path": str(folder)}).left_out == {"empty": 1}


def slow(tmp_path: Path) -> dict[str, Any]:
    """A source and tokenizer that take some seconds: many parts, a library that is slow on few merges."""
    folder = write_jsonl(tmp_path / "data", count=6000)
    return {"source": "jsonl", "path": str(folder), "tokenizer": str(tokenizer_json(tmp_path / "tokenizer.json"))}


def started(run: RunDir, ranks: Ranks, out: Path) -> None:
    ranks.until(lambda: bool(list(out.with_name(f".tmp_{out.name}").glob("shard_*.json"))))


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "halted"])
def test_a_prepare_that_is_interrupted_goes_on(tmp_path: Path, home: OrchHome, how: str) -> None:
    data, out = slow(tmp_path), tmp_path / "out"
    run = run_of(tmp_path, {"kind": "prepare", "out": str(out), "workers": 1}, data)
    with launch_ranks(run, 1, 1, RANK, {"ORCH_HOME": str(home.path)}) as ranks:
        started(run, ranks, out)
        if how == "halted":
            run.halt.write_text("enough")
            assert ranks.wait() == [75]
            run.halt.unlink()
        else:
            ranks.procs[0].kill()
            assert ranks.wait() == [-signal.SIGKILL]
    assert not out.exists()
    assert carry_out(run, home, attempt=2) == 0
    told = answer(run)
    assert told["attempt"] == 2
    assert 0 < told["kept_parts"] < told["parts"]
    assert told["tokens"] == max(b.get("step") for b in beats(run) if b.get("step") is not None)
    assert told["documents"] == 6000
    other = tmp_path / "other"
    other.mkdir()
    unbroken = run_of(other, {"kind": "prepare", "out": str(other / "out")}, data)
    assert carry_out(unbroken, home) == 0
    assert bytes_of(out) == bytes_of(other / "out")
    assert any(b.get("documents") and b.get("steps") for b in beats(unbroken)) or told["parts"] == told["kept_parts"]


def test_a_prepare_that_cannot_be_says_why(tmp_path: Path, home: OrchHome) -> None:
    (tmp_path / "out").mkdir()
    run = run_of(tmp_path, {"kind": "prepare", "out": str(tmp_path / "out")}, {"source": "stdlib"})
    assert carry_out(run, home) == 78
    assert answer(run)["error"]["code"] == "E-DATA-044"


def test_outside_a_run_it_says_what_to_type(tmp_path: Path) -> None:
    import subprocess

    from tests.train.harness import ROOT

    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(RANK, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "orch data check" in done.stderr
