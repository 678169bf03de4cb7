"""One graph or one a block: what `train.compile: auto` makes of the links that nvidia-smi tells of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.judging.machine import nvlink, nvlinked
from workloads.models.decoder import Decoder
from workloads.train.compiling import as_one
from workloads.train.machine import Machine

A, B, C = ("GPU-529a4e26-004e-6c8a-b9ca-0274c8849886", "GPU-0ea3114c-964c-59a4-5dca-e53626381a60", "GPU-c")
LINKED = "".join(
    f"GPU {i}: NVIDIA H200 (UUID: {uuid})\n" + "".join(f"\t Link {n}: 26.562 GB/s\n" for n in range(18))
    for i, uuid in enumerate((A, B))
)
DOWN = f"GPU 2: NVIDIA A100-PCIE-40GB (UUID: {C})\n\t Link 0: <inactive>\n\t Link 1: <inactive>\n"
BARE = f"GPU 2: NVIDIA GeForce RTX 4090 (UUID: {C})\n"


@pytest.mark.parametrize(
    ("status", "uuids", "linked"),
    [
        (LINKED, [A], True), (LINKED, [], True), (LINKED, [A, B], True), (LINKED + DOWN, [B], True),
        (LINKED + DOWN, [C], False), (LINKED + BARE, [C], False), (LINKED + DOWN, [], False),
        (LINKED + BARE, [A, C], False), (LINKED, ["MIG-1"], False),
        (LINKED, ["0"], False), ("", [], False), ("", [A], False),
        ("NVML: Unable to retrieve NVLink information as all links are inActive\n", [A], False),
    ],
)  # fmt: skip
def test_links_are_up_only_where_nvidia_smi_says_so(status: str, uuids: list[str], linked: bool) -> None:
    assert nvlinked(status, uuids) is linked


def test_the_device_that_is_leased_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvlink() is False  # there is no nvidia-smi
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\n[ "$*" = "nvlink --status" ] || exit 2\nprintf %s \'{LINKED + BARE}\'\n')
    smi.chmod(0o755)
    for device, linked in ((A, True), (B, True), (C, False)):
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", device)
        assert nvlink() is linked


@pytest.mark.parametrize("linked", [False, True])
def test_several_ranks_compile_as_one_over_nvlink_alone(linked: bool) -> None:
    machine = Machine(torch.device("cpu"), False, linked=linked)
    model = Decoder(ModelSpec(dim=16, layers=1, heads=2, kv_heads=2), 64)
    ranks = DistributedDataParallel.__new__(DistributedDataParallel)  # joined to nobody: its kind is what counts
    trains = {c: TrainSpec.model_validate({"compile": c}) for c in ("auto", "model", "blocks")}
    form = {c: as_one(model, ranks, train, machine) for c, train in trains.items()}
    assert form == {"auto": linked, "model": True, "blocks": False}
    assert as_one(model, model, trains["auto"], machine) and not as_one(model, model, trains["blocks"], machine)
