"""The wire form of every record, version 1. A change here is a change of contract: bump the version, keep this file.

`ORCH_REGEN=1` writes the golden file again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from workloads.contract import records
from workloads.contract.beats import parse_beat
from workloads.contract.config.job import JobSpec
from workloads.contract.manifest import FileEntry, Manifest, parse_manifest, sealed
from workloads.contract.records import (
    Ack,
    Event,
    HaltAck,
    HaltClocks,
    RankRecord,
    Request,
    RunVerdict,
    ShimOrder,
    Status,
    as_wire,
    from_wire,
)
from workloads.contract.rundir import RunDir

GOLDEN = Path(__file__).parents[1] / "golden" / "contract" / "v1.json"
RUN = "tiny-20261121T093000Z-00ff"
T = 1795253400.5
SAMPLES: dict[str, Any] = {
    "HaltClocks": HaltClocks(),
    "ShimOrder": ShimOrder(
        RUN, f"/h/runs/{RUN}", 1, 0, 0, 2, "local", ["python", "x.py"], "/w", {"RANK": "0"}, ["GPU-1"], {"term_s": 9.0}
    ),
    "RankRecord": RankRecord(
        RUN, 1, 0, "local", 10, 100, "boot", ["python", "x.py"], T, 11, 101, T + 9, None, 9, None, "signalled", True,
        812.5, [12], [],
    ),
    "Status": Status(
        RUN, "tiny", "running", "the first step was made", 1, T, T + 1, ["local"], 7, 400, 2.5, 1000.0, {"0": -9}, 1,
        [], {"pid": 1, "start_time": 2, "boot_id": "boot"},
    ),
    "Request": Request("halt", "me@here", T, "dinner", {"now": False}),
    "Ack": Ack(True, "supervisor", T, "", {"step": 7}),
    "HaltAck": HaltAck(RUN, 0, 1, 7, T, "step_00000007", "ab" * 32),
    "RunVerdict": RunVerdict(RUN, 1, "no-go", "2 of 112 cells", T, {"cells": 112, "wrong": 2}),
}  # fmt: skip
EVENT = Event(3, T, 1, "supervisor", "state", "placed", "queued", "preparing", {"x": 1})
BEAT = {
    "v": 1, "seq": 7, "ts": T, "msg": "progress", "rank": 0, "world_size": 2, "attempt": 1, "step": 12, "loss": 2.5,
    "lr": 0.001, "grad_norm": 0.5, "toks_per_s": 1000.0, "step_time_s": 0.1, "dt_fetch_s": 0.001, "fetch_p50_s": 0.001,
    "fetch_p95_s": 0.002, "gpu_mem_alloc": 10.5, "gpu_mem_reserved": 20.0, "data_source": "stdlib",
}  # fmt: skip
MANIFEST = Manifest(RUN, 7, 1, 1, 2, "c" * 64, "d" * 16, (FileEntry("a", 1, "ab" * 32),), {"torch": "2.13.0"})


def today() -> dict[str, Any]:
    wire = {name: as_wire(sample) for name, sample in SAMPLES.items()}
    run = RunDir(Path("/r"))
    names = {
        name: str(getattr(run, name)) for name in dir(RunDir) if isinstance(getattr(RunDir, name), property)
    }  # fmt: skip
    return {
        **wire,
        "Event": EVENT.wire(),
        "Manifest": MANIFEST.wire(),
        "JobSpec": JobSpec(name="x").model_dump(mode="json"),
        "RunDir": {k: v for k, v in names.items() if k not in ("path", "run_id")},
    }


def test_the_wire_form_is_that_of_version_1() -> None:
    text = json.dumps(today(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("ORCH_REGEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("name", SAMPLES)
def test_an_old_record_is_read_back_and_an_unknown_key_is_ignored(name: str) -> None:
    row = json.loads(GOLDEN.read_text())[name]
    assert from_wire(getattr(records, name), {**row, "from_the_future": 1}) == SAMPLES[name]


def test_an_old_heartbeat_and_an_old_manifest_are_read() -> None:
    beat = parse_beat(json.dumps(BEAT).encode())
    assert beat is not None and beat.fields.keys() == BEAT.keys() - {
        "v", "seq", "ts", "msg", "rank", "world_size", "attempt",
    }  # fmt: skip
    for manifest_row in (today()["Manifest"], json.loads((GOLDEN.parent / "manifest_v1.json").read_text())):
        manifest, problems = parse_manifest(manifest_row)
        assert manifest == MANIFEST and problems == []


def test_a_newer_version_is_not_taken_for_this_one() -> None:
    assert parse_beat(json.dumps({**BEAT, "v": 2}).encode()) is None
    manifest, problems = parse_manifest(sealed({**MANIFEST.wire(), "v": 3}))
    assert manifest is None and "version" in problems[0]
