"""The operator's side: from what is typed to a job, files of prompts, and what is shown of what a pod tells."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.jobs.decode import Asked, decode_job
from orchestrator.jobs.jobfile import load_job, requirements_of
from orchestrator.runs.decode import Result, result_of, turn_lines
from workloads.contract.errors import OrchError
from workloads.contract.prompts import conversations_of
from workloads.contract.rundir import RunDir

POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"


def test_what_is_typed_becomes_a_job_and_the_same_words_again(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    settings = {"kv_policy": POLICY, "max_new_tokens": 9, "seed": None}
    loaded = decode_job(Asked(weights="/m", prompts="p.txt", pod="box", settings=settings), tmp_path)
    spec = loaded.spec
    assert spec.kind == "decode" and spec.pods == ["box"] and spec.decode.prompts == [["one"], [" two "]]
    assert (spec.decode.backend, spec.decode.kv_policy, spec.decode.max_new_tokens) == ("decoupled", POLICY, 9)
    assert loaded.source == (
        f"orch decode --from /m --prompts p.txt --kv-policy {POLICY} --max-new-tokens 9 --pod box"
    )  # fmt: skip
    plain = decode_job(Asked(prompt=["a", "b"]), tmp_path).spec.decode
    assert (plain.prompts, plain.backend, plain.weights) == ([["a", "b"]], "cache", None)


def test_a_job_file_is_taken_as_it_is_or_changed(tmp_path: Path) -> None:
    job = {"name": "mine", "kind": "decode", "decode": {"backend": "decoupled", "kv_policy": POLICY, "seed": 3}}
    (tmp_path / "j.yaml").write_text(json.dumps({**job, "model": {"dim": 64}}))
    loaded = decode_job(Asked("j.yaml"), tmp_path)
    assert loaded.source == str(tmp_path / "j.yaml") and loaded.spec.model.dim == 64
    changed = decode_job(Asked("j.yaml", settings={"backend": "cache"}), tmp_path).spec
    assert (changed.name, changed.decode.backend, changed.decode.kv_policy) == ("mine", "cache", None)
    assert changed.decode.seed == 3 and changed.model.dim == 64
    other = decode_job(Asked("j.yaml", weights="/m", settings={}), tmp_path).spec
    assert other.decode.weights == "/m" and "model" not in other.model_fields_set
    with pytest.raises(OrchError, match="kind train") as told:
        decode_job(Asked("tiny"), tmp_path)
    assert told.value.code == "E-DECODE-020"


def test_a_changed_job_has_the_environment_of_its_file(tmp_path: Path) -> None:
    """The file of requirements lies beside the job file, wherever the command was typed."""
    (tmp_path / "jobs").mkdir()
    for name, line in (("named", "requirements: reqs.txt\n"), ("none", "requirements: null\n")):
        (tmp_path / "jobs" / f"{name}.yaml").write_text(f"name: {name}\nkind: decode\n{line}decode: {{}}\n")
    for settings in ({}, {"seed": 1}):
        made = decode_job(Asked("jobs/named.yaml", settings=settings), tmp_path)
        assert requirements_of(made, tmp_path) == tmp_path / "jobs" / "reqs.txt"
        none = decode_job(Asked("jobs/none.yaml", settings=settings), tmp_path)
        assert requirements_of(none, tmp_path) is None


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (Asked(settings={"backend": "cach"}), "E-CLI-004", "--backend cannot be 'cach'"),
        (Asked(settings={"dtype": "fp8"}), "E-CLI-004", "--dtype"),
        (Asked(prompts="p", prompt=["x"]), "E-CLI-006", "one of the two"),
        (Asked(prompts="absent.txt"), "E-DECODE-021", "No such file"),
        (Asked(settings={"top_p": 0.5}), "E-JOB-008", "top_p say what is drawn"),
        (Asked(settings={"backend": "decoupled"}), "E-JOB-008", "kv_policy is needed"),
        (Asked(settings={"max_new_tokens": 0}), "E-JOB-007", "max_new_tokens"),
    ],
)
def test_mistakes_are_told_before_anything_is_launched(tmp_path: Path, asked: Asked, code: str, words: str) -> None:
    with pytest.raises(OrchError, match=words) as told:
        decode_job(asked, tmp_path)
    assert told.value.code == code and told.value.fix


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"model": {"dim": 64}, "decode": {"weights": "/m"}}, "model has no effect beside"),
        ({"model": {"vocab": 100}}, "model.vocab is too small"),
        ({"train": {"steps": 3}}, "train has no effect"),
        ({"resources": {"ranks": 2}}, "a decode run is one rank"),
        ({"kind": "train", "decode": {"seed": 1}}, "decode has no effect"),
    ],
)
def test_parts_of_a_job_that_do_not_go_together(tmp_path: Path, more: dict[str, Any], path: str) -> None:
    (tmp_path / "j.yaml").write_text(json.dumps({"name": "x", "kind": "decode", **more}))
    with pytest.raises(OrchError, match=path):
        load_job("j.yaml", cwd=tmp_path)


def test_files_of_prompts() -> None:
    assert conversations_of(b"\xef\xbb\xbfa\r\n\n  b\n", "x.txt") == [["a"], ["  b"]]
    assert conversations_of('[["é", "b"], "c"]'.encode(), "x.json") == [["é", "b"], ["c"]]


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b" \n\n", "x.txt", "no prompt in it"),
        (b"a\xff", "x.txt", "not UTF-8 text .byte 1."),
        (b"[]", "x.json", "no prompt"),
        (b'{"a": 1}', "x.json", "a dict, not a list"),
        (b'["a", []]', "x.json", "conversation 2"),
        (b'["a", ["b", ""]]', "x.json", "conversation 2"),
        (b'["a", ["b", 3]]', "x.json", "conversation 2"),
        (b"[1", "x.json", "not JSON"),
        (b"[" * 100_000, "x.json", "not JSON"),
    ],
)
def test_files_that_are_none(data: bytes, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conversations_of(data, name)


def test_what_a_pod_tells_is_harmless_and_of_the_right_type(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "decode-20261121T093000Z-00ff")
    run.path.mkdir()
    row = {"suite": "decode", "case": "1.1", "prompt": "a\x1b[2J", "text": "b\x1b]0;x\x07\nc", "tokens": "many",
           "tokens_per_s": None, "ratio": "high", "prefill_s": [], "agreement": 4}  # fmt: skip
    run.decode_rows.write_text(json.dumps(row) + '\n{"suite": "decode", "ca')
    run.decode_summary.write_text(json.dumps({"run": run.run_id, "environment": 3, "memory": [], "weights": None}))
    view: Any = SimpleNamespace(run=run, state="succeeded", reason="")
    result = result_of(view, "box")
    text = "\n".join(result.lines())
    assert "\x1b" not in text and "\x07" not in text and "- tokens, - tokens/s" in text and "\n     c\n" in text
    assert result.summary is not None and result.as_json()["turns"][0]["case"] == "1.1"
    view.state = "failed"
    assert result_of(view, "box").summary is None
    assert Result(view, (), None, "box").lines() == [f"{run.run_id}  no turn was answered"]


def test_the_figures_of_a_turn() -> None:
    near = {"steps": 8, "same_token": 0.875, "max_logit_difference": 0.5, "largest_logit": 12.0}
    row = {"case": "1.2", "prompt": "x", "text": "y", "tokens": 8, "tokens_per_s": 812.34, "ratio": 0.712,
           "prompt_tokens": 3, "prefill_s": 0.002, "agreement": near}  # fmt: skip
    assert turn_lines(row)[2] == (
        "     [8 tokens, 812.3 tokens/s (71 % of the read limit); prompt of 3 read in 2 ms; 87.5 % of 8 steps find the "
        "plain cache's token likeliest, logits off by at most 0.5 (largest logit 12)]"
    )
