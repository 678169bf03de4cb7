"""What a job takes: held to what was measured, to a model that really lies in memory, and to the recipes' own words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.jobs.jobfile import load_job, recipes
from orchestrator.jobs.sizes import parameters as parameters_of_the_plan
from orchestrator.runs.estimate import GIB, estimate
from orchestrator.runs.estimaterun import held_against, measured
from workloads.bench.healthy import MODELS
from workloads.contract.config.job import JobSpec, ModelSpec
from workloads.contract.flops import flops_a_token, parameters
from workloads.contract.gpusheets import SHEETS, sheet_of

NAMES = sorted(recipes())


def job(**train: Any) -> JobSpec:
    """The 124 M model that was measured: 64 rows of 1024 tokens, all heads with keys of their own."""
    row = {
        "name": "a", "model": {"dim": 768, "layers": 12, "heads": 12, "kv_heads": 12, "vocab": 50304},
        "data": {"seq_len": 1024}, "train": {"global_batch": 64, "steps": 1000, "deterministic": False, **train},
    }  # fmt: skip
    return JobSpec.model_validate_json(json.dumps(row))


def test_the_model_that_was_measured_on_an_h200() -> None:
    """508 k tokens/s, 26.9 GiB: compiled, loss in chunks (torch 2.11)."""
    found = estimate(job(), sheets=[s for s in SHEETS if s.short == "h200"])
    assert found.gpus[0].toks_per_s == pytest.approx(508_000, rel=0.2) and found.gpus[0].fits
    assert found.memory.total / GIB == pytest.approx(26.9, rel=0.2)


def test_less_memory_for_checkpointing_shards_and_small_batches() -> None:
    whole, one = estimate(job()).memory, estimate(job(), ranks=1).memory
    assert whole == one
    again = estimate(job(activation_checkpointing=True))
    assert (
        again.memory.activations < whole.activations / 4
        and again.gpus[0].toks_per_s < estimate(job()).gpus[0].toks_per_s
    )
    assert estimate(job(micro_batch=8)).memory.activations * 8 == whole.activations
    shards = estimate(job(parallel="fsdp2"), ranks=4).memory
    assert shards.optimizer * 4 == whole.optimizer and shards.total < estimate(job(), ranks=4).memory.total
    assert estimate(job(loss_chunk=1024)).memory.logits < whole.logits
    small = estimate(job(), sheets=[replace(SHEETS[0], memory_gib=8.0)])
    assert not small.gpus[0].fits and "NO" in "\n".join(small.lines())


def test_parameters_are_those_of_a_model_that_was_made() -> None:
    import torch

    from workloads.models.decoder import Decoder

    for spec in (
        ModelSpec(),
        ModelSpec(tie_embeddings=False, qk_norm=True, kv_heads=4, ffn_dim=100),
        ModelSpec(vocab=999),
    ):
        with torch.device("meta"):
            made = sum(p.numel() for p in Decoder(spec, 256).parameters())
        assert made == parameters(spec, spec.vocab or 256) == parameters_of_the_plan(spec)


def test_the_flops_of_the_design_are_these() -> None:
    spec = job().model
    assert flops_a_token(spec, 1024, 50304) == pytest.approx(0.860e9, rel=0.01)
    assert flops_a_token(spec, 2048, 50304) == pytest.approx(0.973e9, rel=0.01)


def test_sheets_agree_with_those_that_cards_are_judged_by() -> None:
    known = {name: m.bf16 for m in MODELS for name in m.names}
    assert {s.name: s.bf16 for s in SHEETS} == known
    assert sheet_of("H200") is sheet_of("nvidia h200") is SHEETS[0] and sheet_of("h2") is None


@pytest.mark.parametrize("name", NAMES)
def test_recipes_say_what_is_estimated(name: str) -> None:
    """The words at the head of a recipe are for people who read no other; they are held to the figures."""
    loaded = load_job(name, cwd=Path("/"))
    found = estimate(loaded.spec)
    text = recipes()[name].read_text().replace("\n# ", " ").split("name:")[0]
    if size := re.search(r"([\d.]+) (million|billion|M) param|the (\d+) M model", text):
        told = float(size[1] or size[3]) * (1e9 if size[2] == "billion" else 1e6)
        assert found.parameters == pytest.approx(told, rel=0.05)
    if memory := re.search(r"about (\d+) GiB of (GPU )?memory", text):
        assert found.memory.total / GIB == pytest.approx(float(memory[1]), rel=0.2)
        assert found.gpus[0].fits
    if disk := re.search(r"checkpoints of ([\d.]+) GB, (\d+) GB of disk", text):
        assert found.checkpoint_bytes / 1e9 == pytest.approx(float(disk[1]), rel=0.1)
        assert found.disk_mib * 2**20 / 1e9 == pytest.approx(float(disk[2]), rel=0.2)
    if rate := re.search(r"([\d.]+) M tokens a second", text):
        assert found.gpus[0].toks_per_s == pytest.approx(float(rate[1]) * 1e6, rel=0.2)
    if hours := re.search(r"(\d+) hours", text):
        assert found.gpus[0].seconds / 3600 == pytest.approx(float(hours[1]), rel=0.2)
    if name != "tiny":
        assert memory and disk and size and not loaded.spec.train.deterministic


def test_what_a_run_tells_stands_beside_it() -> None:
    found = estimate(job(), sheets=[s for s in SHEETS if s.short == "h200"])
    beats = [{"toks_per_s": 5e5, "mfu": 0.43, "gpu_mem_reserved": 27_000.0}, {"toks_per_s": 4.9e5}, {"toks_per_s": 9.0}]
    took = measured({"gpu": "NVIDIA H200"}, beats, found.checkpoint_bytes)
    lines = held_against(found, took)
    assert took.toks_per_s == 4.9e5 and took.mfu == 0.43
    shares = [float(line.split()[-1]) for line in lines[1:]]
    expected = [27_000 * 2**20 / found.memory.total, 4.9e5 / found.gpus[0].toks_per_s, 0.43 / 0.42, 1.0]
    assert shares == pytest.approx(expected, abs=0.006)
    nothing = measured({"gpu": ["x"]}, [{"toks_per_s": "fast", "mfu": float("nan")}, {"toks_per_s": True}], None)
    assert nothing.gpu is None and nothing.mfu is None
    assert all(line.split()[-1] == "-" for line in held_against(found, nothing)[1:])


def orch(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, **env}, check=False,
    )  # fmt: skip


def test_the_command(tmp_path: Path) -> None:
    told = orch("estimate", "125m", "--gpu", "h200", "--ranks", "2", "--json", ORCH_HOME=str(tmp_path))
    row = json.loads(told.stdout)
    assert told.returncode == 0 and row["ranks"] == 2 and [g["gpu"] for g in row["gpus"]] == ["NVIDIA H200"]
    assert row["memory"]["total_gib"] > row["memory"]["activations_gib"] > 1
    for words, code in (
        (["125m", "--gpu", "h900"], "E-EST-004"),
        ([], "E-EST-001"),
        (["125m", "--run", "x"], "E-EST-001"),
    ):
        wrong = orch("estimate", *words, ORCH_HOME=str(tmp_path))
        assert wrong.returncode == 2 and code in wrong.stderr and "fix:" in wrong.stderr


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, orchestrator.runs.estimaterun; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
