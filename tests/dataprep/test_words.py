"""`orch data` without a run: the job it makes, what it refuses, and how an answer is read that a pod made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.jobs.data import Asked, data_job
from orchestrator.jobs.jobfile import requirements_of
from orchestrator.runs.data import CHECKED, PREPARED, result_of, seconds
from orchestrator.runs.views import snapshot
from pods.remote.dispatch import dispatch
from tests.tokenizers.vocabularies import small_ranks
from workloads.contract import gptvocab
from workloads.contract.errors import IntegrityError, OrchError, UsageError
from workloads.contract.rundir import OrchHome, RunDir

CHECK = {"kind": "check"}


def test_a_training_job_gives_its_data_and_what_that_needs(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: mine\nenv: {HF_HOME: /cache}\nsecrets: [HF_TOKEN]\nmodel: {dim: 64}\n"
        "data: {source: text, path: corpus, tokenizer: gpt2, seq_len: 256}\n"
        "train: {global_batch: 4, seed: 9, steps: 5, warmup_steps: 1}\n"
    )
    loaded = data_job(Asked("job.yaml", {}, {**CHECK, "seconds": 2.0}, sets=["data.seq_len=512"]), tmp_path)
    job = loaded.spec
    assert (job.kind, job.name, job.task.seconds, job.data.seq_len) == ("data", "data", 2.0, 512)
    assert (job.train.global_batch, job.train.seed, job.data.tokenizer) == (4, 9, "gpt2")
    assert (job.env, job.secrets, job.device) == ({"HF_HOME": "/cache"}, ["HF_TOKEN"], "cpu")
    assert loaded.source == "orch data check job.yaml --seconds 2.0 --set data.seq_len=512"


def test_what_is_typed_goes_before_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\ndata: {source: text, path: corpus, seq_len: 64}\n")
    task = {"kind": "prepare", "out": "shards"}
    typed = {"source": "hub", "dataset": {"repo": "a/b"}, "tokenizer": "gpt2"}
    job = data_job(Asked("job.yaml", typed, task), tmp_path).spec
    assert (job.data.source, job.data.path, job.data.tokenizer) == ("hub", None, "gpt2")
    assert job.task.out == str(tmp_path / "shards")


def test_its_environment_is_the_jobs(tmp_path: Path) -> None:
    """The file of requirements lies beside the job file, wherever the command was typed."""
    (tmp_path / "jobs").mkdir()
    for name, line in (("named", "requirements: reqs.txt\n"), ("none", "requirements: null\n")):
        (tmp_path / "jobs" / f"{name}.yaml").write_text(f"name: {name}\n{line}")
    for task in (CHECK, {"kind": "prepare", "out": "~/shards"}):
        made = data_job(Asked("jobs/named.yaml", {}, task, pod="far"), tmp_path)
        assert requirements_of(made, tmp_path) == tmp_path / "jobs" / "reqs.txt"
    asked = Asked("jobs/named.yaml", {}, CHECK, sets=[f"requirements={tmp_path}/other.txt"], pod="far")
    assert requirements_of(data_job(asked, tmp_path), tmp_path) == tmp_path / "other.txt"
    assert requirements_of(data_job(Asked("jobs/none.yaml", {}, CHECK), tmp_path), tmp_path) is None


def test_a_folder_on_a_pod_is_named_from_its_root_or_home(tmp_path: Path) -> None:
    typed = {"source": "stdlib"}
    for out in ("/data/shards", "~/shards"):
        assert data_job(Asked(None, typed, {"kind": "prepare", "out": out}, pod="far"), tmp_path).spec.task.out == out
    with pytest.raises(UsageError) as caught:
        data_job(Asked(None, typed, {"kind": "prepare", "out": "shards"}, pod="far"), tmp_path)
    assert caught.value.fix == "--out ~/shards"


@pytest.mark.parametrize(
    ("job", "data", "code"),
    [(None, {}, "E-DATA-050"), ("name: a\nkind: parity\n", {}, "E-DATA-051"),
     (None, {"source": "tape"}, "E-JOB-006"), (None, {"source": "text"}, "E-JOB-008")],
)  # fmt: skip
def test_what_names_no_data_is_refused(tmp_path: Path, job: str | None, data: dict[str, Any], code: str) -> None:
    if job is not None:
        (tmp_path / "job.yaml").write_text(job)
    with pytest.raises(OrchError) as caught:
        data_job(Asked(None if job is None else "job.yaml", data, CHECK), tmp_path)
    assert caught.value.code == code


def ended(tmp_path: Path, state: str, verdict: object, kind: str = "check") -> RunDir:
    run = RunDir(tmp_path / "runs" / "data-20260101T000000Z-abcd")
    for folder in run.skeleton():
        folder.mkdir(parents=True, exist_ok=True)
    job = {"name": "data", "kind": "data", "task": {"kind": kind}}
    run.run_json.write_text(json.dumps({"v": 1, "run": run.run_id, "kind": "data", "job": job}))
    status = {
        "run": run.run_id, "name": "data", "state": state, "reason": "x", "attempt": 1, "since": 1.0, "ts": time.time(),
        "pods": ["local"], "v": 1,
    }  # fmt: skip
    run.status.write_text(json.dumps(status))
    run.verdict.write_text(verdict if isinstance(verdict, str) else json.dumps(verdict))
    return run


def told(state: str, data: dict[str, Any]) -> dict[str, Any]:
    word = "go" if state == "succeeded" else "no-go"
    return {"v": 1, "run": "data-20260101T000000Z-abcd", "attempt": 1, "verdict": word, "why": "w", "ts": 1.0,
            "data": data}  # fmt: skip


@pytest.mark.parametrize("kind", ["check", "prepare"])
@pytest.mark.parametrize(
    "data",
    [{}, {"sources": 7, "fetch": [1], "first_s": "soon", "shards": "\x1b[2J", "error": "x", "out": None},
     {"sources": ["a\x1b[31m"], "first_s": 1, "fetch": {"p50_s": "x"}, "head": ["\u202e"], "shards": 3, "bytes": "n",
      "left_out": {"\x1b[2J": 3, "x": "y"}, "no_utf8_share": "\x1b"}],
    ids=["nothing", "wrong types", "terminal"],
)  # fmt: skip
def test_whatever_a_pod_says_is_shown_harmlessly(tmp_path: Path, kind: str, data: dict[str, Any]) -> None:
    run = ended(tmp_path, "succeeded", told("succeeded", data), kind)
    result = result_of(snapshot(run, time.time()), "far")
    text = "\n".join(result.lines())
    assert text.endswith("go: w")
    assert "\x1b" not in text and "\u202e" not in text
    keys = result.as_json().keys()
    assert set(CHECKED if kind == "check" else PREPARED) < set(keys)


def test_what_is_not_used_is_told_by_reason(tmp_path: Path) -> None:
    data = {"first_s": 0.1, "left_out": {"no UTF-8": 2, "'text' is empty": 1200}, "no_utf8_share": 0.00213}
    result = result_of(snapshot(ended(tmp_path, "succeeded", told("succeeded", data)), time.time()), "p")
    text = "\n".join(result.lines())
    assert "left out   1 202 documents: 1 200 'text' is empty, 2 no UTF-8" in text
    assert "no UTF-8   0.21 % of the characters" in text


@pytest.mark.parametrize("verdict", ["", "[]", json.dumps(told("failed", {})), json.dumps({"verdict": "go"})])
def test_a_verdict_that_the_end_contradicts_is_none(tmp_path: Path, verdict: str) -> None:
    result = result_of(snapshot(ended(tmp_path, "succeeded", verdict), time.time()), "local")
    assert result.verdict is None
    assert result.as_json()["verdict"] is None


def test_times_are_for_people() -> None:
    assert [seconds(v) for v in (0.00123, 0.5, 75.0, None, True)] == ["1.2 ms", "0.50 s", "1 min 15 s", "-", "-"]


def test_a_pod_keeps_gpt2_and_nothing_else(tmp_path: Path, gpt2_folder: Path) -> None:
    home = OrchHome(tmp_path / "far")
    with pytest.raises(IntegrityError):
        dispatch(home, "tokenizers.keep", {}, gptvocab.canonical(small_ranks()))
    assert not (home.tokenizers / gptvocab.FILE).exists()
    path = dispatch(home, "tokenizers.keep", {}, gptvocab.read_import([gpt2_folder])).fields["path"]
    assert gptvocab.checked(Path(path).read_bytes(), path)


def test_import_by_command(tmp_path: Path, gpt2_folder: Path, home: OrchHome) -> None:
    argv = [sys.executable, "-m", "orchestrator.cli", "data", "import"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    good = subprocess.run([*argv, str(gpt2_folder), "--json"], env=env, capture_output=True, text=True, timeout=600)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["path"] == str(home.tokenizers / gptvocab.FILE)
    bad = subprocess.run([*argv, str(gpt2_folder / "vocab.bpe")], env=env, capture_output=True, text=True, timeout=600)
    assert bad.returncode == 8
    assert "E-DATA-021" in bad.stderr
