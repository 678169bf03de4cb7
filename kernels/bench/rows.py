"""One JSON line a case: what was measured, against what limit and which peers, and where it comes from.

The field names are a contract with `runbooks.evidence` and `plot`. A row without a time says why in its verdict
("wrong": the answer differed, so it was not timed; "failed": it raised). Called by `kernels.bench`, never by kernels.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kernels.bench.goals import Goal
from kernels.bench.timing import Timing

ROOT = Path(__file__).resolve().parents[2]
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """Where and when: the part of a row that is the same for a whole run."""

    device: str
    driver: str
    torch: str
    triton: str
    commit: str
    command: str
    date: str
    machine: str


@dataclass(frozen=True)
class Measured:
    """A case as a suite found it. `limit_us`: `bytes` over the run's read bandwidth; err, tol: see kernels.checks."""

    case: str
    shape: dict[str, int]
    dtype: str
    bytes: int
    limit_us: float
    verdict: str
    timing: Timing | None = None
    err: float | None = None
    tol: float | None = None
    goal: Goal = field(default_factory=Goal)
    peers: dict[str, float] = field(default_factory=dict)
    peer_notes: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def facts(device: torch.device, command: str) -> Facts:
    """The facts of this process. ValueError when neither git nor KERNELS_COMMIT tells the commit."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    chip = f"{torch.cuda.device_count()} x {name}" if cuda else f"{os.cpu_count()} CPUs, {platform.machine()}"
    return Facts(
        device=name,
        driver=_driver() if cuda else "-",
        torch=torch.__version__,
        triton=_version("triton"),
        commit=commit(),
        command=command,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=chip,
    )


def commit() -> str:
    """KERNELS_COMMIT, else git's HEAD. ValueError when there is neither: a row without a commit proves nothing."""
    named = os.environ.get("KERNELS_COMMIT", "").strip()
    if named:
        return named
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        raise ValueError("no commit to name: this is no git checkout; set KERNELS_COMMIT=<40 hex digits>") from e
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


@functools.cache
def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def row_of(suite: str, m: Measured, where: Facts, read_tbs: float) -> dict[str, Any]:
    """The row of one case; times to 4 significant digits, NaN and infinity as null."""
    t = m.timing
    us = None if t is None else t.us
    return {
        "v": VERSION,
        "suite": suite,
        "case": m.case,
        "shape": m.shape,
        "dtype": m.dtype,
        "us": _short(us),
        "limit_us": _short(m.limit_us),
        "ratio": _short(None if us is None else m.limit_us / us),
        "err": _short(m.err),
        "tol": _short(m.tol),
        "verdict": m.verdict,
        "must_us": _short(m.goal.must_us),
        "strong_us": _short(m.goal.strong_us),
        "met": m.goal.met(us),
        "peers": {name: _short(value) for name, value in m.peers.items()},
        "peer_notes": m.peer_notes,
        "bytes": m.bytes,
        "read_tbs": _short(read_tbs),
        "p10_us": _short(None if t is None else t.p10),
        "p90_us": _short(None if t is None else t.p90),
        "launches": None if t is None else t.launches,
        "how": None if t is None else t.how,
        "l2": None if t is None else t.l2_state,
        **{k: _short(v) if isinstance(v, float) else v for k, v in m.extra.items()},
        **vars(where),
    }


def _short(value: float | None) -> float | None:
    if value is None or not abs(value) < float("inf"):
        return None
    return float(f"{value:.4g}")


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Appends one line a row; makes the folder. OSError as it comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person: at most 110 columns, the best peer beside ours."""
    lines = [f"{'case':<44} {'ours us':>8} {'limit':>7} {'of it':>5} {'best peer us':<19} {'err/tol':<15} goal"]
    for r in rows:
        errors = "-" if r["err"] is None else f"{r['err']:.1e}/{r['tol']:.1e}"
        said = r["met"] if r["verdict"] == "ok" else r["verdict"].upper()
        line = f"{r['case']:<44} {_cell(r['us'])} {_cell(r['limit_us'], 7)} {_share(r['ratio'])} {best_peer(r):<19}"
        lines.append(f"{line} {errors:<15} {said}")
    return "\n".join(lines)


def best_peer(row: dict[str, Any]) -> str:
    """Name and time of the fastest peer of a row, "-" when none was timed."""
    if not row["peers"]:
        return "-"
    name, us = min(row["peers"].items(), key=lambda item: float(item[1]))
    return f"{us:.4g} {name}"


def _cell(value: float | None, width: int = 8) -> str:
    return f"{'-' if value is None else f'{value:.4g}':>{width}}"


def _share(ratio: float | None) -> str:
    return f"{'-' if ratio is None else f'{100 * ratio:.0f}%':>5}"
