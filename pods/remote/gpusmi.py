"""GPUs as nvidia-smi tells them, for machines where NVML cannot be loaded. Bounded; never raises. Called by `gpueye`.

A line that is no well-formed GPU is passed over: what a program found in PATH prints is not trusted.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from pods.remote.boundedrun import run_bounded
from pods.remote.gpustate import GpuProcess, Gpus, GpuState, bus_key

SMI_S = 10.0
MAX_LISTED = 512
NOT_THERE = 127
NOT_IN_TIME = -1
_SMI_GPUS = (
    "--query-gpu=uuid,memory.used,memory.total,ecc.errors.uncorrected.volatile.total,pci.bus_id",
    "--query-gpu=uuid,memory.used,memory.total",  # a version that refuses one of the others
)
_SMI_APPS = "--query-compute-apps=gpu_uuid,pid,used_memory"
_SMI_FORMAT = "--format=csv,noheader,nounits"


def by_smi() -> Gpus:
    """Every GPU as nvidia-smi tells it.

    `error`: it cannot be asked, or it printed a line that is no GPU; one that is not in `states` is then unknown.
    """
    for query in _SMI_GPUS:
        code, text = _run(["nvidia-smi", query, _SMI_FORMAT])
        if code in (0, NOT_THERE, NOT_IN_TIME):
            break
    if "No devices were found" in text:
        return Gpus()
    if code != 0:
        return Gpus(error=f"nvidia-smi: {' '.join(text.split())[:200]}", blind=code == NOT_THERE)
    lines = [line for line in text.splitlines()[:64] if line.strip()]
    found = [s for s in map(_smi_state, lines) if s is not None]
    error = None if len(found) == len(lines) > 0 else "nvidia-smi printed a line that is no GPU"
    return Gpus(_with_processes({s.uuid: s for s in found}), error)


def _with_processes(states: dict[str, GpuState]) -> dict[str, GpuState]:
    code, text = _run(["nvidia-smi", _SMI_APPS, _SMI_FORMAT])
    if code != 0:
        return states
    rows = [[c.strip() for c in line.split(",")] for line in text.splitlines()[:MAX_LISTED]]
    listed = [(r[0], GpuProcess(int(r[1]), _number(r[2]))) for r in rows if len(r) == 3 and _number(r[1]) is not None]
    return {u: replace(s, compute=tuple(p for owner, p in listed if owner == u)) for u, s in states.items()}


def _smi_state(line: str) -> GpuState | None:
    cells = [c.strip() for c in line.split(",")]
    if len(cells) not in (3, 5) or not cells[0].startswith(("GPU-", "MIG-")):
        return None
    state = GpuState(cells[0], True, _number(cells[1]), _number(cells[2]))
    if len(cells) == 3:
        return state
    ecc = _number(cells[3])
    return replace(state, ecc_uncorrected=None if ecc is None else int(ecc), bus=bus_key(cells[4]))


def _number(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _run(argv: list[str]) -> tuple[int, str]:
    if shutil.which(argv[0]) is None:
        return NOT_THERE, f"{argv[0]} is not there"
    ran = run_bounded(argv, SMI_S, {**os.environ, "LC_ALL": "C"})
    return (NOT_IN_TIME, ran.error) if ran.code is None else (ran.code, ran.out or ran.error)
