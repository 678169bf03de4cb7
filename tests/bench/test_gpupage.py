"""`orch gpu`: its page out of the rows that the suite writes, what it makes of lies, and its exit codes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from kernels.bench import rows as benchrows
from kernels.bench.rows import Facts
from kernels.bench.timing import summary
from orchestrator.jobs.gpu import gpu_job
from orchestrator.jobs.place import place_ranks
from orchestrator.runs.bench import result_of
from orchestrator.runs.gpu import Page
from orchestrator.runs.views import snapshot
from pods.facts import Gpu, PodFacts
from tests.bench.test_smi import H200
from tests.cli.conftest import make_run
from workloads.bench import gpuprobe, smi
from workloads.bench.gpuprobe import Case, Value
from workloads.contract.files import atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.contract.rundir import OrchHome

(IDLE,) = smi.parse_states(H200, smi.FIELDS)
IDLE = replace(IDLE, others=(), xids=())
LOAD = replace(IDLE, sm_mhz=1755, reasons=("power cap",), power_w=699.0, temperature_c=61, pcie_gen=5)
FACTS = Facts("NVIDIA H200", "580.159.04", "2.11.0", "3.6.0", "c" * 40, "orch gpu box", "2026-11-21", "2 x NVIDIA H200")
GOOD = {"read": 4.69, "copy": 2.7, "bf16": 700.0, "fp32": 51.0, "to-device": 55.0, "from-device": 54.0, "peers": 390.0}


@pytest.fixture
def home(tmp_path: Any) -> OrchHome:
    made = OrchHome(tmp_path / "home")
    made.path.mkdir(mode=0o700)
    return made


def rows_of(gpu: int, state: smi.GpuState = IDLE, load: smi.GpuState = LOAD, **figures: float) -> list[dict[str, Any]]:
    """As the rank writes them."""
    made = []
    for figure, number in {**GOOD, **figures}.items():
        value = Value(number, summary([100.0], 1, "graph", "rotated"), 1, {}, "-", load=load)
        row = gpuprobe.judged(Case(figure, gpu), value, state)
        made.append(benchrows.row_of("device", row, FACTS, 4.69))
    return made


def page(home: OrchHome, rows: list[dict[str, Any]], **info: Any) -> Page:
    made = make_run(home, "gpu", world=1, kind="bench")
    made.run.run_json.write_text(json.dumps({**json.loads(made.run.run_json.read_text()), **info}))
    wrong = sum(r["verdict"] != "ok" for r in rows)
    word = "no-go" if wrong else "go"
    made.status({"go": "succeeded", "no-go": "failed"}[word], word)
    made.run.bench_rows.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = RunVerdict(made.run.run_id, 1, word, "x", 1.0, {"cases": len(rows), "wrong": wrong, "environment": {}})
    atomic_write_json(made.run.verdict, as_wire(said))
    return Page(result_of(snapshot(made.run, time.time()), "box"))


def test_two_healthy_cards(home: OrchHome) -> None:
    found = page(home, [*rows_of(0), *rows_of(1)])
    lines = found.lines()
    assert lines[0] == "gpu0  NVIDIA H200, driver 580.159.04" and lines[-1] == "as expected: 2 GPUs, 14 figures"
    text = "\n".join(lines)
    assert "  memory read            4.69 TB/s      as expected  100 % of 4.69; measured: runbooks/results/" in text
    assert "of 450; 65% of the data sheet's peak: NVIDIA H200" in text and "likely:" not in text
    assert "as found: SM 345 MHz, memory 3201 MHz; under load: SM 1755 of 1980 MHz (power cap), memory 3201" in text
    assert "699 of 700 W, 61 C" in text and "PCIe gen 5 of 5, x16 of x16" in text
    assert "0 of 143771 MiB in use, ECC on, 0 uncorrected errors" in text and "no Xid in the kernel's log" in text
    document = found.as_json()
    assert [g["gpu"] for g in document["gpus"]] == [0, 1] and document["verdict"] == "as expected"
    assert document["gpus"][1]["figures"][0]["value"] == 4.69 and document["cpu"] == []


def test_a_figure_that_is_low_is_told_with_its_causes(home: OrchHome) -> None:
    sick = replace(IDLE, xids=(79,), repair_pending=True)
    narrow = replace(LOAD, pcie_width=8)
    found = page(home, [*rows_of(0), *rows_of(1, sick, narrow, **{"to-device": 27.0})])
    assert found.verdict == "below" and found.why == "1 of 14 figures: gpu1 host to GPU"
    lines = found.lines()
    at = next(i for i, line in enumerate(lines) if "BELOW" in line)
    assert lines[at].split()[:6] == ["host", "to", "GPU", "27", "GB/s", "BELOW"]
    assert [line.strip() for line in lines[at + 1 : at + 4]] == [
        "likely: a repair of its memory waits for a reset of the GPU (pages to retire, rows to remap)",
        "likely: the kernel's log has Xid 79",
        "likely: PCIe x8 of x16",
    ]


def test_a_case_that_failed_is_told_under_its_card(home: OrchHome) -> None:
    rows = rows_of(1)
    failed = {"suite": "device", "case": "gpu1 memory read", "verdict": "failed", "error": "out of memory\x1b[2J"}
    found = page(home, [failed, *rows[1:]])
    assert found.verdict == "wrong" and found.why.startswith("1 of 7 figures")
    text = "\n".join(found.lines())
    assert "memory read" in text and "FAILED  out of memory" in text and "\x1b" not in text
    assert "nvidia-smi does not tell of this GPU" in text  # its state stands in the row that failed


def test_a_model_that_nobody_knows_is_measured_and_not_judged(home: OrchHome) -> None:
    found = page(home, rows_of(0, replace(IDLE, name="NVIDIA B9000")))
    assert (found.verdict, found.as_json()["gpus"][0]["name"]) == ("no reference", "NVIDIA B9000")


@pytest.mark.parametrize(("leased", "words"), [(0, "this pod has none"), (2, "torch finds none of the pod's 2 GPUs")])
def test_no_gpu_and_a_torch_that_finds_none_are_two_things(home: OrchHome, leased: int, words: str) -> None:
    value = Value(0.02, summary([100.0], 1, "wall", "rotated"), 1, {}, "-")
    row = benchrows.row_of("device", gpuprobe.judged(Case("read", None), value, None), FACTS, 0.02)
    found = page(home, [row], gpus_per_rank=leased)
    assert found.verdict == "no gpu" and words in found.why and found.lines()[0] == "CPU"
    assert found.as_json()["cpu"][0]["unit"] == "GB/s" and found.as_json()["cpu"][0]["value"] == 20.0


def test_rows_of_the_wrong_type_are_shown_as_unknown(home: OrchHome) -> None:
    (row,) = rows_of(0)[:1]
    row |= {
        "value": "4",
        "unit": 7,
        "causes": [1, "\x1b]0;x"],
        "state": {"xids": "79", "sm_mhz": True},
        "said": "below",
    }
    text = "\n".join(page(home, [row]).lines())
    assert "\x1b" not in text and "SM ? MHz" in text and "unknown: the kernel's log" in text


def test_the_job_has_its_own_words() -> None:
    loaded = gpu_job("local", "/opt/my python")
    assert loaded.source == "orch gpu local --python '/opt/my python'" and loaded.spec.bench.suites == ["device"]
    assert (loaded.spec.name, loaded.spec.kind, gpu_job().source) == ("gpu", "bench", "orch gpu")


@pytest.mark.parametrize(("gpus", "leased"), [(0, 0), (1, 1), (8, 8)])
def test_its_rank_has_every_gpu_of_the_pod(gpus: int, leased: int) -> None:
    cards = tuple(Gpu(i, f"GPU-{i:08d}", "NVIDIA H200", 143771, 0) for i in range(gpus))
    facts = PodFacts("box", "b", 64, 1, 1, 1, 1, "/usr/bin/python3", "3.12.3", cards)
    placed = place_ranks(gpu_job("box").spec, "box", facts, lambda key: key)
    assert (placed.ranks, placed.gpus_per_rank) == (1, leased)
