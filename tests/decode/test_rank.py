"""The rank of a decode run: what it says, what it writes of it, where it stops and how it goes on, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.decode.conftest import TRAINED
from tests.decode.desk import SPEC, Desk, make
from tests.models.published import published
from workloads.contract.errors import OrchError
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome, RunDir
from workloads.decode.generate import generate
from workloads.decode.sampling import Sampling
from workloads.models.decoder import Decoder

POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4"
WEIGHTS = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 128 + 2 * 32) + 32 + 256 * 32  # numbers of SPEC, without the embeddings


def replies(model: Decoder, turns: list[str], tokens: int, sampling: Sampling | None = None) -> list[list[int]]:
    """Each turn's reply to the whole conversation before it, without a cache."""
    said: list[int] = []
    found = []
    for turn, text in enumerate(turns):
        said += list(text.encode())
        how = sampling or Sampling()
        how = Sampling(how.temperature, how.top_k, how.top_p, how.seed + turn)
        (reply,) = generate(model, [said], tokens, eos=0, sampling=how, use_cache=False)
        said += reply
        found.append(reply)
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 40, 0.9, 3)], ids=["greedy", "drawn"])
def test_with_a_cache_and_without_the_same_is_said(home: OrchHome, model: Decoder, sampling: Sampling) -> None:
    how = {k: v for k, v in vars(sampling).items() if v is not None}
    said = {}
    for number, backend in enumerate(("cache", "full")):
        desk = make(
            home.path, run_id=f"decode-20261121T09300{number}Z-00ff", weights=TRAINED, backend=backend,
            prompts=[["one", "two", "three"]], max_new_tokens=10, **how,
        )  # fmt: skip
        assert desk.here() == 0
        said[backend] = desk.ids
        assert desk.summary["weights"]["step"] == 7 and desk.summary["turns"] == 3
    assert said["cache"] == said["full"] == replies(model, ["one", "two", "three"], 10, sampling)
    assert len({token for reply in said["cache"] for token in reply}) > 8  # it does not say one thing for ever


def test_every_turn_leaves_a_row_and_the_whole_a_summary(tmp_path: Path) -> None:
    desk = make(tmp_path, repeats=2)
    assert desk.here() == 0
    rows = desk.rows
    assert [(r["case"], r["prompt"], r["before"], r["prompt_tokens"]) for r in rows] == [
        ("1.1", "one", 0, 3), ("1.2", "two", 9, 3), ("1.3", "three", 18, 5), ("2.1", "four", 0, 4),
    ]  # fmt: skip
    for r in rows:
        assert r["tokens"] == len(r["ids"]) == 6 and not r["ended"] and r["commit"] == "c" * 40
        assert len(r["prefill_runs_s"]) == len(r["decode_runs_s"]) == 2
        assert r["decode_s"] == min(r["decode_runs_s"]) > 0 and r["tokens_per_s"] == pytest.approx(6 / r["decode_s"])
        # two layers, two heads of 8, k and v in fp32: 256 bytes a token; the reply's tokens are read by the later ones
        length = r["before"] + r["prompt_tokens"] + 3.5
        assert r["bytes_a_token"] == 4 * (WEIGHTS + 32) + 256 * length
        assert r["memory"]["weights"] == 4 * (WEIGHTS + 256 * 32) and r["memory"]["process_rss"] > 50 << 20
        assert r["memory"]["cache"] == 256 * 64  # room for a conversation, rounded up
        assert (r["ratio"], r["read_tbs"], r["agreement"], r["step"]) == (None, None, None, "single launches")
        assert [s[0] for s in r["memory_steps"]] == list(range(6))
    summary = desk.summary
    assert summary["tokens"] == 24 and summary["decode_s"] == pytest.approx(sum(r["decode_s"] for r in rows))
    assert summary["weights"]["kind"] == "random" and summary["environment"]["gpu"] == "cpu"
    beats = [json.loads(line) for line in desk.run.heartbeat(0).read_text().splitlines()]
    assert [b["msg"] for b in beats][-1] == "done" and (beats[-1]["step"], beats[-1]["steps"]) == (48, 48)


def test_a_policy_is_measured_against_the_plain_cache(home: OrchHome) -> None:
    said = {}
    for number, values in enumerate((POLICY, POLICY.replace("q4_0@32", "fp16").replace("q8_0@32", "fp16"))):
        desk = make(
            home.path, run_id=f"decode-20261121T09300{number}Z-00ff", weights=TRAINED, backend="decoupled",
            kv_policy=values, prompts=[["one", "two"]], max_new_tokens=8, repeats=2,
        )  # fmt: skip
        assert desk.here() == 0
        said[values] = desk.summary["agreement"]
        (row, second) = desk.rows
        assert row["kv_policy"] == values and row["agreement"]["steps"] == 8 and second["before"] == 11
    rough, fine = said.values()
    assert rough["steps"] == fine["steps"] == 16 and fine["largest_logit"] > 1
    assert 0 < fine["max_logit_difference"] < 0.02 < rough["max_logit_difference"] < fine["largest_logit"]
    assert fine["same_token"] == 1.0


@pytest.mark.long
def test_halted_it_stops_at_once_and_goes_on_behind_the_turns_that_are_done(home: OrchHome) -> None:
    turns = ["one", "two", "three", "four", "five", "six"]
    desk = make(home.path, weights=TRAINED, prompts=[turns], max_new_tokens=150)
    process = desk.start()
    deadline = time.monotonic() + 600
    while len(desk.rows) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    desk.run.halt.touch()
    out, _ = process.communicate(timeout=600)
    done = desk.ids
    assert process.returncode == 75 and 2 <= len(done) < 6 and f"halted: {len(done)} of 6 turns" in out, out
    ack = read_json(desk.run.halt_ack(0))
    assert ack["step"] == 150 * len(done) and len(ack["hash"]) == 64 and not desk.run.decode_summary.exists()
    desk.run.halt.unlink()
    assert desk.here(2) == 0
    assert desk.ids[: len(done)] == done and [r["case"] for r in desk.rows] == [f"1.{i}" for i in range(1, 7)]
    unbroken = make(
        home.path, run_id="decode-20261121T093001Z-00ff", weights=TRAINED, prompts=[turns], max_new_tokens=150
    )
    assert unbroken.here() == 0 and desk.ids == unbroken.ids and desk.summary["turns"] == 6


def test_turns_count_only_beside_what_they_were_made_with(tmp_path: Path) -> None:
    desk = make(tmp_path)
    assert desk.here() == 0
    first = desk.rows
    row = json.loads(desk.run.run_json.read_text())
    row["job"]["decode"]["seed"] = 5
    desk.run.run_json.write_text(json.dumps(row))
    assert desk.here(2) == 0
    assert len(desk.rows) == 4 and desk.ids != [r["ids"] for r in first]
    assert len(desk.run.archived_decode_rows(2).read_text().splitlines()) == 4


def published_folder(folder: Path) -> Path:
    """A published Llama with a tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    published("llama").save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w96"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    words.save(str(folder / "tokenizer.json"))
    return folder


def test_a_published_folder_speaks_through_its_own_tokenizer(tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "llama")
    desk = make(tmp_path, weights=str(folder), prompts=[["w5 w6", "w7"]], max_new_tokens=5)
    assert desk.here() == 0
    theirs = published("llama")
    tokens = torch.tensor([[1, 5, 6]])  # the token that opens a text comes once
    for row, more in zip(desk.rows, ([7], []), strict=True):
        whole = theirs.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert row["ids"] == whole[0, tokens.shape[1] :].tolist()
        assert row["text"].split() == [f"w{i}" for i in row["ids"]]
        tokens = torch.cat((whole, torch.tensor([more], dtype=torch.int64)), 1)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [desk.ids[0][1], 3]}))
    again = make(tmp_path, run_id="decode-20261121T093001Z-00ff", weights=str(folder), prompts=["w5 w6"])
    assert again.here() == 0 and again.ids == [desk.ids[0][:2]] and again.rows[0]["ended"]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"weights": "/nowhere/at-all"}, "E-DECODE-008", "there is no folder"),
        ({"weights": "tiny-20261121T093000Z-0bad"}, "E-DECODE-010", "no checkpoint"),
        ({"prompts": "/nowhere/prompts.txt"}, "E-DECODE-003", "No such file"),
        ({"device": "cuda"}, "E-DECODE-004", "torch finds none"),
    ],
)
def test_what_cannot_be_decoded_is_refused(tmp_path: Path, asked: dict[str, Any], code: str, words: str) -> None:
    desk = make(tmp_path, **asked)
    with pytest.raises(OrchError, match=words) as told:
        desk.here()
    assert told.value.code == code and told.value.fix and not desk.run.decode_summary.exists()


def test_a_checkpoint_with_a_changed_byte_is_refused(home: OrchHome) -> None:
    checkpoint = RunDir(home.runs / TRAINED).checkpoint(7)
    (data,) = checkpoint.glob("__0_*")
    raw = bytearray(data.read_bytes())
    raw[-1] ^= 1
    data.write_bytes(raw)
    with pytest.raises(OrchError, match="sha256") as told:
        make(home.path, weights=str(checkpoint)).here()
    assert told.value.code == "E-DECODE-011"
    with pytest.raises(OrchError, match="none of 1 checkpoints verifies"):
        make(home.path, run_id="decode-20261121T093001Z-00ff", weights=TRAINED).here()


def test_the_rank_of_no_run_and_a_refusal_end_the_process_as_agreed(tmp_path: Path) -> None:
    alone = subprocess.run([sys.executable, "-m", "workloads.decode"], capture_output=True, text=True, check=False)
    assert alone.returncode == 2 and "orch decode" in alone.stderr
    process = Desk(make(tmp_path, weights="/nowhere/at-all").run).start()
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 77 and "error[E-DECODE-008]" in out


def test_the_weights_of_the_test_are_those_of_the_model() -> None:
    assert sum(p.numel() for p in Decoder(SPEC, 256).parameters()) == WEIGHTS + 256 * 32
