"""The rows of a bench run for a person: the cells of its table, its facts, and both as Markdown. Pure.

Called by `workloads.bench.result` and `workloads.bench.page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workloads.bench.config import BenchConfig
from workloads.bench.matrix import is_good
from workloads.bench.place import Place
from workloads.contract.records import RunVerdict
from workloads.judging.book import Row
from workloads.runtime.rankenv import RankEnv

Facts = list[tuple[str, str]]
HEADER = ("suite", "case", "ours, us", "p10 to p90", "limit, us", "of it", "best peer, us", "error / allowed", "goal")
RIGHT = frozenset({2, 3, 4, 5})
"""Columns of numbers."""
L2_WORDS = {"rotated": "inputs rotated past the L2", "hot": "hot in the L2"}


def facts_of(env: RankEnv, config: BenchConfig, place: Place, rows: Sequence[Row]) -> Facts:
    """Where the rows come from, in words."""
    gpu = f"{place.gpus} x {place.gpu}, driver {place.driver}"
    return [
        ("run", f"{env.run_id} on pod {env.pod}"),
        ("command", config.command),
        ("commit", config.commit + (", with uncommitted changes" if config.dirty else "")),
        ("code", f"kernels {place.code}, workloads {place.workloads}"),
        ("device", gpu if place.device == "cuda" else "CPU, by wall clock: a test of the bench, no figures"),
        ("software", f"Python {place.python}, torch {place.torch}, triton {place.triton}"),
        ("measured", f"{', '.join(config.asked.suites)}{'; quick' if config.asked.quick else ''}; "
                     f"seed {config.asked.seed}"),
        ("timing", how(rows)),
        ("memory", memory(rows)),
    ]  # fmt: skip


def how(rows: Sequence[Row]) -> str:
    """How the times came about, and what of the L2; each way with the number of its cases."""
    counted: dict[str, int] = {}
    ways = {"graph": "CUDA graphs between events", "events": "eager launches between events", "wall": "wall clock"}
    for r in rows:
        if r.get("how"):
            said = f"{ways.get(str(r['how']), str(r['how']))}, {L2_WORDS.get(str(r.get('l2')), 'L2 as it comes')}"
            counted[said] = counted.get(said, 0) + 1
    return "; ".join(f"{said} ({n} cases)" for said, n in counted.items()) or "nothing was timed"


def memory(rows: Sequence[Row]) -> str:
    """The read bandwidth behind the limits; a range where a run was resumed."""
    read = sorted({float(r["read_tbs"]) for r in rows if r.get("read_tbs")})
    if not read:
        return "not measured"
    return f"{' to '.join(f'{x:.3g}' for x in dict.fromkeys((read[0], read[-1])))} TB/s read, measured first"


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Wrong ones first, else as they were measured."""
    return sorted(rows, key=is_good)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """As in HEADER."""
    return (
        str(row["suite"]), str(row["case"]), us_of(row), span(row), number(row.get("limit_us") or None),
        share(row.get("ratio")), peer(row), errors(row), goal(row),
    )  # fmt: skip


def us_of(row: Mapping[str, Any]) -> str:
    return number(row.get("us")) if is_good(row) else str(row.get("verdict")).upper()


def span(row: Mapping[str, Any]) -> str:
    low, high = row.get("p10_us"), row.get("p90_us")
    return "-" if low is None or high is None else f"{number(low)} to {number(high)}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def share(value: float | None) -> str:
    return "-" if not value else f"{100 * value:.0f} %"


def peer(row: Mapping[str, Any]) -> str:
    timed = row.get("peers") or {}
    if not timed:
        return "-"
    name, us = min(timed.items(), key=lambda item: float(item[1]))
    return f"{number(us)} {name}"


def errors(row: Mapping[str, Any]) -> str:
    err, tol = row.get("err"), row.get("tol")
    return "-" if err is None or tol is None else f"{err:.1e} / {tol:.1e}"


def goal(row: Mapping[str, Any]) -> str:
    must, met = row.get("must_us"), row.get("met")
    return "-" if must is None else f"{met} (must {number(must)})"


def notes(rows: Sequence[Row]) -> list[str]:
    """What did not go as it should, each thing once: cases that failed, peers without a time."""
    said = {f"{r['suite']} {r['case']}: {r['error']}": None for r in rows if r.get("error")}
    said |= {f"peer {name}: {why}": None for r in rows for name, why in (r.get("peer_notes") or {}).items()}
    return list(said)


def markdown(verdict: RunVerdict, facts: Facts, rows: Sequence[Row], knees: str = "") -> str:
    """The result for a person, wrong cases first. `knees`: from which length which backend is faster."""
    lines = [f"# Benchmark: {verdict.verdict}, {verdict.why}", "", *(f"- {name}: {text}" for name, text in facts), ""]
    lines += [f"| {' | '.join(HEADER)} |", f"|{''.join('---:|' if i in RIGHT else '---|' for i in range(len(HEADER)))}"]
    lines += [f"| {' | '.join(map(_escaped, cells(r)))} |" for r in ordered(rows)]
    if knees:
        lines += ["", "From which length which backend is faster:", "", "```", knees, "```"]
    if told := notes(rows):
        lines += ["", *(f"- {_escaped(text)}" for text in told)]
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
