"""On a real card: NVML's figures against nvidia-smi's, and the guard over a rank that allocates too much."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from ctypes import c_ulonglong
from pathlib import Path

import pytest

from pods.keeper.guard import Guard
from pods.remote.gpueye import GpuEye
from pods.remote.gpuheld import gpu_memory_back, held, used, visible
from pods.remote.gpusmi import by_smi
from pods.remote.gpustate import GpuState
from pods.remote.nvml import XID_EVENT, Nvml
from pods.remote.podhealth import PodProbe
from tests.pod.shimlab import Lab, until
from workloads.contract.haltfile import Halt, read_halt

pytestmark = pytest.mark.gpu

HOLDS_GIB, LIMIT_GIB = 4, 2
EATER = f"""
import time, torch
def fill_the_card():
    held = torch.empty({HOLDS_GIB} << 30, dtype=torch.uint8, device="cuda").zero_()
    torch.cuda.synchronize()
    print("full", flush=True)
    while True: time.sleep(0.05)
fill_the_card()
"""


@pytest.fixture
def eye() -> Iterator[GpuEye]:
    made = GpuEye()
    yield made
    made.close()


@pytest.fixture
def card(eye: GpuEye) -> GpuState:
    """The emptiest card."""
    seen = eye.look(None, timeout_s=30.0)
    if not seen.states:
        pytest.skip(f"no GPU here: {seen.error}")
    return min(seen.states.values(), key=lambda s: s.used_mib or 0.0)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def fill(lab: Lab, card: GpuState) -> None:
    """A rank on this card that holds 4 GiB of it."""
    clocks = {"term_s": 60.0, "kill_s": 90.0, "now_term_s": 5.0, "now_kill_s": 10.0}
    lab.python(EATER, devices=[card.uuid], env={"CUDA_VISIBLE_DEVICES": card.uuid}, halt=clocks)
    until(lambda: b"full" in lab.log(), 120.0, lambda: lab.story())


def test_nvml_and_nvidia_smi_say_the_same(eye: GpuEye, card: GpuState) -> None:
    told = by_smi()
    assert told.error is None and told.states.keys() == eye.look(None).states.keys()
    other = told.states[card.uuid]
    assert card.present is True and card.total_mib == pytest.approx(other.total_mib, abs=1)
    assert card.used_mib == pytest.approx(other.used_mib, abs=64)
    assert (card.bus, card.ecc_uncorrected) == (other.bus, other.ecc_uncorrected)
    assert card.compute is not None and card.graphics is not None


def test_every_call_that_may_fail_quietly_works_on_this_driver(card: GpuState) -> None:
    nvml = Nvml.load()
    found, dark = nvml.gpus()
    assert found and dark == 0
    for handle in found.values():
        assert nvml._memory(handle)["total_mib"] > 1000 and nvml._bus(handle)["bus"] and nvml._processes(handle)
    assert nvml.xids(found) == {} and nvml._events is not None
    nvml._call("nvmlDeviceRegisterEvents", found[card.uuid], c_ulonglong(XID_EVENT), nvml._events)
    assert nvml.state("GPU-00000000-0000-0000-0000-000000000000", found, 0)["present"] is False


def test_a_look_costs_little(eye: GpuEye, card: GpuState, tmp_path: Path) -> None:
    times = []
    for _ in range(50):
        began = time.monotonic()
        assert eye.look([card.uuid]).error is None
        times.append(time.monotonic() - began)
    assert sorted(times)[25] < 0.05


def test_who_holds_a_card_and_that_it_comes_back(lab: Lab, eye: GpuEye, card: GpuState) -> None:
    before = used([card.uuid], eye)
    assert held([card.uuid], eye) == {} and before.keys() == {card.uuid}
    fill(lab, card)
    words = held([card.uuid], eye, wait_s=0.0)[card.uuid]
    listed = eye.look([card.uuid]).states[card.uuid].compute or ()
    if any(p.pid == lab.rank().pid and visible(p.pid) for p in listed):
        assert f"by pid {lab.rank().pid} (" in words and "user " in words
    else:  # a container with pids of its own
        assert "cannot be seen from here" in words
    (left,) = gpu_memory_back([card.uuid], before, eye, wait_s=0.0)
    assert left.startswith(f"{card.uuid}: ") and "are still used" in left
    lab.close()
    assert gpu_memory_back([card.uuid], before, eye, wait_s=30.0) == []


def test_a_rank_that_allocates_beyond_its_limit_is_named_dumped_and_halted(
    lab: Lab, eye: GpuEye, card: GpuState
) -> None:
    base_mib = card.used_mib or 0.0
    row = {"job": {"health": {"guard": {"mode": "act", "gpu_limit_gb": base_mib / 1024 + LIMIT_GIB, "poll_secs": 0.2}}}}
    said: list[str] = []
    ended = threading.Event()
    guard = Guard(lambda: [(lab.run, row)], said.append, ended)
    guard.start()
    try:
        fill(lab, card)
        until(lab.run.halt.exists, 30.0, lambda: [said, lab.story()])
    finally:
        ended.set()
        guard.settle(30.0)
    breach, dumped = (json.loads(line) for line in lab.run.guard_log.read_text().splitlines())
    assert (breach["rank"], breach["device"], breach["pid"]) == (0, card.uuid, lab.rank().pid)
    assert breach["used_mib"] > base_mib + LIMIT_GIB * 1024 and breach["total_mib"] == pytest.approx(card.total_mib)
    assert "fill_the_card" in dumped["why"] or any(
        "fill_the_card" in p.read_text() for p in lab.run.stackdumps.glob("watchdog_stackdump_rank0_*")
    )
    halt = read_halt(lab.run)
    assert isinstance(halt, Halt) and halt.who == "watchdog" and lab.run.anomaly_type.read_text() == "gpu_oom\n"
    assert lab.ended(timeout_s=120)["cause"] == "halt-term"
    assert gpu_memory_back([card.uuid], {card.uuid: base_mib}, eye, wait_s=30.0) == []


def test_a_probe_sees_the_card(lab: Lab, card: GpuState) -> None:
    (row,) = PodProbe(lab.run, (card.uuid,), GpuEye()).look(0.0)["gpus"]
    if row["present"] is None:  # nvmlInit may take longer than one look where the driver sleeps between users
        pytest.skip("the first look was not in time")
    assert row["present"] is True and row["mem_total_mib"] == card.total_mib and row["xids"] == ()
