"""Suite `device`: its path on a machine without a GPU, what it says of figures that are low, and of healthy cards."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kernels.bench import probe
from kernels.bench.timing import summary
from tests.bench.test_smi import H200
from workloads.bench import gpuload, gpuprobe, smi
from workloads.bench.gpuprobe import Case, Value
from workloads.bench.healthy import MODELS, OF_SHEET, causes, reference
from workloads.bench.suites import Context

CPU = torch.device("cpu")
(IDLE,) = smi.parse_states(H200, smi.FIELDS)
BUSY = replace(IDLE, sm_mhz=1980, pcie_gen=5, reasons=())


def value(figure: float, load: smi.GpuState | None = BUSY, **more: float) -> Value:
    return Value(figure, summary([100.0], 1, "graph", "rotated"), 10, {}, "int32", load=load, **more)  # type: ignore[arg-type]


def test_without_a_gpu_every_case_is_measured_and_held_against_nothing() -> None:
    context = Context(CPU, True, 0, probe.measure(CPU, quick=True))
    rows = [gpuprobe.measure(c, context) for c in gpuprobe.cases(CPU, quick=True)]
    assert [r.case for r in rows] == ["cpu memory read", "cpu memory copy", "cpu fp32 matmul"]
    assert all(r.verdict == "ok" and r.timing and r.timing.us > 0 and math.isnan(r.limit_us) for r in rows)
    assert [r.extra["unit"] for r in rows] == ["GB/s", "GB/s", "GFLOP/s"] and all(r.extra["value"] > 0 for r in rows)
    assert {r.extra["said"] for r in rows} == {"no reference"}
    matmul = rows[-1]
    assert matmul.timing is not None and matmul.err is not None and matmul.tol is not None
    assert matmul.extra["value"] == pytest.approx(2 * 512**3 / matmul.timing.us / 1e3) and 0 < matmul.err < matmul.tol


def test_fp32_is_fp32_whatever_the_container_says_and_nothing_stays_changed() -> None:
    seen: list[str] = []
    right = torch.mm

    def asked(*args: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return right(*args, out=out)

    torch.set_float32_matmul_precision("high")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "mm", asked)
            found = gpuload.matmul(64, torch.float32, CPU, 0, 0.0)
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 0 < found.err < found.tol


def test_every_card_has_its_cases_and_an_old_one_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0) if gpu == 0 else (7, 5))
    found = [(c.gpu, c.figure) for c in gpuprobe.cases(torch.device("cuda", 0))]
    assert [f for g, f in found if g == 0] == list(gpuprobe.TITLES)
    assert {f for g, f in found if g == 0} - {f for g, f in found if g == 1} == {"bf16"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "peers" not in {c.figure for c in gpuprobe.cases(torch.device("cuda", 0))}


def test_a_matmul_that_is_wrong_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.mm

    def broken(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        right(a, b, out=out)
        out[-1, 5] += 1.0
        return out

    monkeypatch.setattr(torch, "mm", broken)
    row = gpuprobe.measure(Case("fp32", None), Context(CPU, True, 0, probe.measure(CPU, quick=True)))
    assert row.verdict == "wrong" and row.timing is None and row.err is not None and row.err > 0.9


def test_what_was_measured_healthy_is_asked_for_at_85_percent() -> None:
    good = gpuprobe.judged(Case("read", 0), value(0.86 * 4.693), IDLE)
    assert (good.extra["said"], good.extra["causes"], good.goal.met(100.0)) == ("as expected", [], "must")
    assert good.limit_us == pytest.approx(86.0) and "kernels.jsonl" in good.extra["basis"]
    assert good.extra["state"]["sm_mhz"] == 345
    low = gpuprobe.judged(Case("read", 0), value(0.84 * 4.693, replace(BUSY, mem_mhz=1600)), IDLE)
    assert (low.verdict, low.extra["said"], low.goal.met(100.0)) == ("ok", "below", "missed")
    assert low.extra["causes"] == ["memory clock 1600 of 3201 MHz"]


def test_a_figure_nobody_measured_is_held_to_a_share_of_the_data_sheet() -> None:
    known = reference("bf16", "NVIDIA H100 80GB HBM3")
    assert known is not None and known.value == 989.4 and known.floor == pytest.approx(OF_SHEET["bf16"] * 989.4)
    assert reference("copy", "NVIDIA L40S") is None  # no share of a sheet says how copies are made
    assert reference("read", "NVIDIA Unheard Of") is None
    row = gpuprobe.judged(Case("read", 1), value(2.0), replace(IDLE, name="NVIDIA Unheard Of"))
    assert (row.extra["said"], row.extra["expected"], row.goal.met(100.0)) == ("no reference", None, "-")


@pytest.mark.parametrize(
    ("figure", "found", "load", "words"),
    [
        ("bf16", {}, {"sm_mhz": 1200, "reasons": ("power cap",)}, "SM clock 1200 of 1980 MHz: power cap"),
        ("bf16", {}, {"power_limit_w": 350.0}, "power limit 350 W, by default 700 W"),
        ("read", {"others": ("python (pid 9, 70000 MiB)",)}, {}, "1 more on this GPU: python (pid 9, 70000 MiB)"),
        ("read", {"repair_pending": True}, {}, "waits for a reset"),
        ("read", {"repair_failed": True, "repair_pending": True}, {}, "is to be replaced"),
        ("copy", {"ecc_uncorrected": 3}, {}, "3 uncorrected memory errors"),
        ("fp32", {"xids": (79, 31)}, {}, "Xid 79, 31"),
        ("fp32", {"mig": True}, {}, "MIG is on"),
        ("to-device", {}, {"pcie_width": 8}, "PCIe x8 of x16"),
        ("from-device", {}, {"pcie_gen": 4, "pcie_gen_max": 4}, "PCIe gen 4 of 5; the slot gives gen 4"),
        ("to-device", {}, {}, "the host's memory"),
        ("bf16", {}, {}, "none of the known ones"),
    ],
)
def test_causes(figure: str, found: dict[str, object], load: dict[str, object], words: str) -> None:
    told = causes(figure, "NVIDIA H200", replace(IDLE, **found), replace(BUSY, **found, **load))  # type: ignore[arg-type]
    assert len(told) == 1 and words in told[0]


def test_a_card_that_nvidia_smi_does_not_know_has_no_excuse() -> None:
    assert "clocks, link and faults are unknown" in causes("read", "NVIDIA H200", None, None)[0]


def test_every_figure_of_a_data_sheet_is_plausible() -> None:
    for model in MODELS:
        assert 0.5 < model.read < 10 and model.fp32 < model.bf16 < 3000 and model.sheet
        assert 30 < (model.peak("to-device") or 0) < 65
        for figure, found in model.measured.items():
            peak = model.peak(figure)
            assert found.source and (peak is None or found.value < peak)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_every_card_here() -> None:
    device = torch.device("cuda", 0)
    context = Context(device, True, 0, probe.measure(device, quick=True))
    found = {c.name: gpuprobe.measure(c, context) for c in gpuprobe.cases(device, quick=True)}
    for gpu in range(torch.cuda.device_count()):
        assert gpuload.uuid_of(gpu) in smi.ask(thorough=False).gpus
        mine = {c: m for c, m in found.items() if c.startswith(f"gpu{gpu} ")}
        assert len(mine) >= 6 and {m.verdict for m in mine.values()} == {"ok"}, mine
        load = found[f"gpu{gpu} bf16 matmul"].extra["load"]
        assert load["sm_mhz"] > 0 and "idle" not in load["reasons"]
        for name, m in mine.items():
            print(name, f"{m.extra['value']:.4g} {m.extra['unit']}", m.extra["said"], m.extra["causes"])
