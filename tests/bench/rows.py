"""Rows of a benchmark as `kernels.bench.rows` writes them, and those that were filed from a real GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILED = Path(__file__).resolve().parents[2] / "runbooks" / "results" / "kernels.jsonl"
Row = dict[str, Any]


def row(case: str = "B16 S2048", us: float | None = 20.0, **more: Any) -> Row:
    base = {
        "v": 1, "suite": "kv-decode", "case": case, "shape": {"B": 16, "Hq": 8, "Hkv": 8, "D": 64, "S": 2048},
        "dtype": "fp16", "us": us, "limit_us": 14.3, "ratio": 14.3 / us if us else None, "err": 1.5e-4,
        "tol": 2e-4, "verdict": "ok", "must_us": 21.0, "strong_us": 18.5, "met": "must",
        "peers": {"sdpa-flash": 25.13, "fa3": 21.2}, "peer_notes": {"flashinfer": "not installed"}, "bytes": 67108864,
        "read_tbs": 4.69, "p10_us": us and us * 0.99, "p90_us": us and us * 1.01, "launches": 132, "how": "graph",
        "l2": "rotated", "device": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0", "triton": "3.6.0",
        "commit": "c" * 40, "command": "orch bench kv-decode --pod box", "date": "2026-11-21",
        "machine": "1 x NVIDIA H200",
    }  # fmt: skip
    return {**base, **more}


def filed() -> list[Row]:
    """Measured on an H200."""
    return [json.loads(line) for line in FILED.read_text().splitlines()]


def slowed(rows: list[Row], factor: float) -> list[Row]:
    """The same code, every replay slower by a factor."""
    times = ("us", "p10_us", "p90_us")
    return [{**r, **{k: r[k] * factor for k in times if r.get(k) is not None}} for r in rows]
