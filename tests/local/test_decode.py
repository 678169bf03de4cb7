"""`orch decode` on this machine, from the command to the replies: a real Ray, a real shim, a real model."""

from __future__ import annotations

import json
import signal

import pytest

from tests.local.conftest import Orch, wait_for
from workloads.contract.rundir import RunDir

pytestmark = pytest.mark.ray
NO_GPU = ("--set", "resources.gpus_per_rank=0")
POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4"


@pytest.mark.long
def test_a_run_that_was_trained_speaks_with_a_cache_and_without(orch: Orch) -> None:
    trained = orch.launch("tiny", "--set", "train.steps=8", "--set", "checkpoint.every_steps=4", *NO_GPU)
    orch.wait(trained, "succeeded", "failed")
    prompts = orch.work / "prompts.json"
    prompts.write_text(json.dumps([["def f(", "):"], "import"]))
    asked = ("--from", trained.run_id, "--prompts", "prompts.json", "--max-new-tokens", "8", "--device", "cpu")
    cached = orch.json("decode", *asked, "--out", "replies.json")
    assert (cached["state"], cached["pod"], len(cached["turns"])) == ("succeeded", "local", 3)
    assert cached["summary"]["weights"] | {"model": 0, "path": 0} == {
        "kind": "checkpoint", "run": trained.run_id, "step": 8, "model": 0, "path": 0,
    }  # fmt: skip
    assert json.loads((orch.work / "replies.json").read_text())["turns"] == cached["turns"]
    full = orch.json("decode", *asked, "--backend", "full")
    assert [t["ids"] for t in full["turns"]] == [t["ids"] for t in cached["turns"]]
    text = orch("decode", *asked, "--kv-policy", POLICY)
    assert "1.2  > ):" in text and "plain cache's token likeliest" in text and f"decoupled {POLICY}" in text


@pytest.mark.long
def test_left_alone_halted_and_resumed_it_answers_only_the_rest(orch: Orch) -> None:
    (orch.work / "job.yaml").write_text(
        json.dumps({
            "name": "talk", "kind": "decode", "model": {"dim": 64, "layers": 2},
            "decode": {"prompts": ["one", "two", "three", "four", "five"], "max_new_tokens": 1500, "device": "cpu"},
        })
    )  # fmt: skip
    process = orch.popen("decode", "job.yaml")
    run = RunDir(wait_for(lambda: list(orch.home.runs.glob("talk-*")), 300)[0])
    wait_for(lambda: run.decode_rows.exists() and run.decode_rows.stat().st_size, 600, lambda: orch.story(run))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and f"orch decode --run {run.run_id}" in err, err
    orch("halt", run.run_id)
    halted = orch.json("decode", "--run", run.run_id, code=75)
    done = [t["case"] for t in halted["turns"]]
    assert 1 <= len(done) < 5 and halted["summary"] is None and halted["state"] == "halted"
    orch("resume", run.run_id)
    whole = orch.json("decode", "--run", run.run_id)
    assert [t["case"] for t in whole["turns"]] == [f"{i}.1" for i in range(1, 6)]
    assert whole["turns"][: len(done)] == halted["turns"]
    assert f"going on behind the {len(done)} of 5 turns" in run.rank_log(0).read_text()
