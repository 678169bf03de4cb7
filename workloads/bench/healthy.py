"""What a healthy GPU of a model does, and what may hold back one that does less. Nothing is measured here.

A figure that was measured on a healthy card of the model is asked for at 85 %. Where there is none, a share of the
data sheet's is: what libraries reach on any healthy card, low enough to accuse none. A model that is not in MODELS has
no reference, and that is said. Called by `workloads.bench.gpuprobe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workloads.bench.smi import GpuState

OF_MEASURED = 0.85
OF_SHEET: Mapping[str, float] = {
    "read": 0.75,
    "bf16": 0.55,
    "fp32": 0.60,
    "to-device": 0.70,
    "from-device": 0.70,
    "peers": 0.65,
}
"""Copies inside the memory depend on the driver's way of copying: no share of a data sheet is asked of them."""
GBS_A_LANE = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""PCIe, one way, after line coding."""


@dataclass(frozen=True)
class Found:
    """A figure of a healthy card, and the row it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Model:
    """Peaks of the data sheet: TB/s, dense TFLOP/s (bf16 with fp32 sums), GB/s one way."""

    names: tuple[str, ...]  # as nvidia-smi and torch say them
    read: float
    bf16: float
    fp32: float
    pcie_gen: int
    sheet: str
    peers: float | None = None  # NVLink
    measured: Mapping[str, Found] = field(default_factory=dict)

    def peak(self, figure: str) -> float | None:
        if figure in ("to-device", "from-device"):
            return 16 * GBS_A_LANE[self.pcie_gen]
        return {"read": self.read, "bf16": self.bf16, "fp32": self.fp32, "peers": self.peers}.get(figure)


_H200 = "runbooks/results/kernels.jsonl, suite bandwidth, 2026-11-21, commit 6a798a0"
_H200_DEVICE = "runbooks/results/device.jsonl, orch gpu, 2026-11-21, commit f1cafcf"
MODELS = (
    Model(
        ("NVIDIA H200",), 4.8, 989.4, 66.9, 5, "NVIDIA H200 Tensor Core GPU Datasheet", 450.0,
        {
            "read": Found(4.693, _H200), "copy": Found(2.713, _H200), "bf16": Found(679.1, _H200_DEVICE),
            "fp32": Found(51.2, _H200_DEVICE), "to-device": Found(55.2, _H200_DEVICE),
            "from-device": Found(55.2, _H200_DEVICE),
        },
    ),
    Model(("NVIDIA H100 80GB HBM3",), 3.35, 989.4, 66.9, 5, "NVIDIA H100 Tensor Core GPU Datasheet (SXM)", 450.0),
    Model(("NVIDIA A100-SXM4-80GB",), 2.039, 312.0, 19.5, 4, "NVIDIA A100 Tensor Core GPU Datasheet", 300.0),
    Model(("NVIDIA A100-SXM4-40GB",), 1.555, 312.0, 19.5, 4, "NVIDIA A100 Tensor Core GPU Datasheet", 300.0),
    Model(("NVIDIA GeForce RTX 4090",), 1.008, 165.2, 82.6, 4, "NVIDIA Ada GPU Architecture whitepaper, appendix A"),
    Model(("NVIDIA L40S",), 0.864, 362.05, 91.6, 4, "NVIDIA L40S Datasheet"),
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """`value`: what a healthy card does; less than `floor` is told; `basis`: where that comes from, in words."""

    value: float
    floor: float
    basis: str


def model_of(name: str) -> Model | None:
    return next((m for m in MODELS if name in m.names), None)


def reference(figure: str, name: str) -> Reference | None:
    """None: nothing is known of this figure on this model."""
    model = model_of(name)
    if model is None:
        return None
    if (found := model.measured.get(figure)) is not None:
        return Reference(found.value, OF_MEASURED * found.value, f"measured: {found.source}")
    peak, share = model.peak(figure), OF_SHEET.get(figure)
    if peak is None or share is None:
        return None
    return Reference(peak, share * peak, f"{share:.0%} of the data sheet's peak: {model.sheet}")


def causes(figure: str, name: str, found: GpuState | None, load: GpuState | None) -> list[str]:
    """What was seen that can make this figure low. `found`: before the work; `load`: in the middle of it."""
    if found is None:
        return ["nvidia-smi does not tell of this GPU: clocks, link and faults are unknown"]
    seen = _any(found)
    busy = load or found
    if figure in ("read", "copy"):
        seen += _clock("memory", busy.mem_mhz, busy.mem_max_mhz)
    elif figure in ("bf16", "fp32"):
        seen += [*_clock("SM", busy.sm_mhz, busy.sm_max_mhz, busy.reasons), *_power(busy)]
    elif figure in ("to-device", "from-device"):
        seen += _link(busy, model_of(name))
    return seen or ["none of the known ones: clocks, memory faults and link are as they should be"]


def _any(state: GpuState) -> list[str]:
    """What slows down everything on a GPU."""
    seen = [f"{len(state.others)} more on this GPU: {', '.join(state.others[:3])}"] if state.others else []
    if state.mig:
        seen.append("MIG is on: this is a part of a GPU")
    if state.repair_failed:
        seen.append("its memory could not be repaired (row remapping failed): the card is to be replaced")
    elif state.repair_pending:
        seen.append("a repair of its memory waits for a reset of the GPU (pages to retire, rows to remap)")
    if state.ecc_uncorrected:
        seen.append(f"{state.ecc_uncorrected} uncorrected memory errors since the driver was loaded")
    if state.xids:
        seen.append(f"the kernel's log has Xid {', '.join(map(str, state.xids[:6]))}")
    return seen


def _clock(which: str, now: int | None, most: int | None, reasons: tuple[str, ...] | None = None) -> list[str]:
    if now is None or most is None or now >= 0.97 * most:
        return []
    why = [r for r in reasons or () if r != "idle"]
    return [f"{which} clock {now} of {most} MHz{': ' + ', '.join(why) if why else ''}"]


def _power(state: GpuState) -> list[str]:
    limit, default = state.power_limit_w, state.power_default_w
    if limit is None or default is None or limit >= default - 1:
        return []
    return [f"power limit {limit:.0f} W, by default {default:.0f} W"]


def _link(state: GpuState, model: Model | None) -> list[str]:
    seen = []
    gen, most = state.pcie_gen, state.pcie_gen_max
    best = model.pcie_gen if model else most
    if gen is not None and best is not None and gen < best:
        slot = f"; the slot gives gen {most}" if most is not None and most < best else ""
        seen.append(f"PCIe gen {gen} of {best}{slot}")
    if state.pcie_width is not None and state.pcie_width < (state.pcie_width_max or 16):
        seen.append(f"PCIe x{state.pcie_width} of x{state.pcie_width_max or 16}")
    return seen or ["the link is as it should be; the host's memory, its sockets or virtualization may be slower"]
