"""A bench run as it is read: its rows, its verdict, and both as a table, a document or CSV. Pure but for reading files.

What is believed of them is decided in `orchestrator.runs.judged`. Called by `orch bench`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.runs import judged
from orchestrator.runs.judged import Judged, Row, is_good, number, ordered
from orchestrator.runs.render import clip, harmless, one_line, table
from orchestrator.runs.views import RunView
from workloads.contract.files import try_read_json
from workloads.contract.rundir import RunDir

MAX_NOTES, MAX_WORDS = 12, 200
CSV = (
    "suite", "case", "dtype", "us", "p10_us", "p90_us", "limit_us", "ratio", "best_peer", "best_peer_us", "err", "tol",
    "verdict", "must_us", "strong_us", "met", "bytes", "read_tbs", "launches", "how", "l2", "device", "machine",
    "driver", "torch", "triton", "commit", "date", "command",
)  # fmt: skip


class Result(Judged):
    def as_json(self) -> dict[str, Any]:
        """The document of `orch bench --json`, but for what else was asked."""
        more = try_read_json(self.view.run.thresholds)
        return self.document("cases", ("suites", "absent", "quick", "seed"), thresholds=more)

    def lines(self, width: int = 0) -> list[str]:
        """For a person: wrong cases first, what was left out, where it comes from; the verdict last."""
        if not self.rows:
            return [f"{self.view.run.run_id}  no case was measured"]
        told = rows_table(ordered(self.rows), width)
        figures = figures_of(self.rows)
        told += ["", *(clip(line, width) for line in figures)] if figures else []
        noted = notes(self.rows)
        more = [f"and {len(noted) - MAX_NOTES} more; {self.view.run.bench_report.name} has them all"]
        told += ["", *noted[:MAX_NOTES], *(more if len(noted) > MAX_NOTES else [])] if noted else []
        told += ["", *(f"  {k:<11} {one_line(v)}" for k, v in self.facts()), ""]
        if self.verdict is not None:
            told.append(f"{self.verdict.verdict}: {one_line(self.verdict.why)}")
        return told

    def facts(self) -> list[tuple[str, str]]:
        e, d, run = self.environment, self.data, self.view.run
        where = f"{e.get('gpus')} x {e.get('gpu')}, driver {e.get('driver')}"
        commit = f"{d.get('commit')}{', with uncommitted changes' if d.get('dirty') else ''}"
        told = [
            ("device", where if e.get("device") == "cuda" else "CPU, by wall clock: a test of the bench, no figures"),
            ("software", f"Python {e.get('python')}, torch {e.get('torch')}, triton {e.get('triton')}"),
            ("code", f"commit {commit}; kernels {e.get('code')}, workloads {e.get('workloads')}"),
            ("timing", timing(self.rows)),
            ("command", str(d.get("command"))),
        ]
        chosen = choices(try_read_json(run.thresholds))
        told += [("thresholds", chosen)] if chosen else []
        page = [("page", str(run.bench_page))] if run.bench_page.exists() else []
        first = ("run", f"{run.run_id} on pod {self.pod}")
        return [first, *(told if self.verdict else []), *page, ("directory", str(run.path))]


def choices(document: Mapping[str, Any] | None) -> str:
    """In a line, which backend thresholds.json has the kernels choose and from which length; "" where it says nothing.

    `triton` is ours.
    """
    rules = document.get("rules") if document else None
    known = [r for r in rules if isinstance(r, dict) and r.get("backend")] if isinstance(rules, list) else []
    others = [
        f"{r['backend']} from {r.get('from_length')} keys ({r.get('group')} heads a KV head of {r.get('head_dim')}, "
        f"{r.get('dtype')}, {r.get('pairs')} pairs)"
        for r in known
        if r["backend"] != "triton"
    ]  # fmt: skip
    if not known:
        return ""
    shapes = f"{len(known)} shape{'s' * (len(known) > 1)}"
    return "; ".join(others) or f"ours at every length that was measured, {shapes}"


def result_of(view: RunView, pod: str) -> Result:
    """What `view` has answered. IntegrityError when its verdict is not that of its rows."""
    path = view.run.bench_rows
    rows = judged.read_rows(path)
    return Result(view, rows, judged.verdict_of(view, rows, path, counted="cases", code="E-BENCH-011"), pod)


def read_rows(run: RunDir) -> tuple[Row, ...]:
    return judged.read_rows(run.bench_rows)


def rows_table(rows: Sequence[Row], width: int = 0) -> list[str]:
    header = ("SUITE", "CASE", "OURS US", "LIMIT", "OF IT", "BEST PEER US", "ERROR / ALLOWED", "GOAL")
    cells = [
        (
            str(r.get("suite")), str(r.get("case")), number(r.get("us")) if is_good(r) else _word(r),
            number(r.get("limit_us") or None), share(r.get("ratio")), peer(r), errors(r), goal(r),
        )
        for r in rows
    ]  # fmt: skip
    return table(header, cells, right=(2, 3, 4), width=width).split("\n")


def _word(row: Row) -> str:
    return "FAILED" if row.get("verdict") == "failed" else "WRONG"


def share(value: object) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, int | float) and value else "-"


def figures_of(rows: Sequence[Row]) -> list[str]:
    """What a suite says of its own rows in its own units: tokens a second, bus bandwidth, a verdict of a device."""
    said = [(str(r.get("case")), r["told"]) for r in rows if is_good(r) and isinstance(r.get("told"), str)]
    return table(("CASE", "FIGURE"), said).split("\n") if said else []


def best_peer(row: Mapping[str, Any]) -> tuple[str, float] | None:
    timed = row.get("peers")
    found = [(str(n), float(us)) for n, us in timed.items() if _is_time(us)] if isinstance(timed, dict) else []
    return min(found, key=lambda item: item[1], default=None)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def peer(row: Mapping[str, Any]) -> str:
    best = best_peer(row)
    return "-" if best is None else f"{number(best[1])} {best[0]}"


def errors(row: Mapping[str, Any]) -> str:
    err, tol = row.get("err"), row.get("tol")
    both = isinstance(err, int | float) and isinstance(tol, int | float)
    return f"{err:.1e} / {tol:.1e}" if both else "-"


def goal(row: Mapping[str, Any]) -> str:
    return "-" if not _is_time(row.get("must_us")) else f"{row.get('met')} (must {number(row.get('must_us'))})"


def timing(rows: Sequence[Row]) -> str:
    """How it was timed and what lay in the L2; the memory behind the limits."""
    ways = sorted({f"{r['how']}, L2 {r.get('l2') or 'as it comes'}" for r in rows if r.get("how")})
    read = sorted({float(r["read_tbs"]) for r in rows if _is_time(r.get("read_tbs"))})
    speed = " to ".join(f"{x:.3g}" for x in dict.fromkeys([*read[:1], *read[-1:]]))
    return "; ".join([*ways, f"memory {speed} TB/s read, measured first"] if read else ways) or "-"


def notes(rows: Sequence[Row]) -> list[str]:
    """What did not go as it should, each thing once: what was said of a wrong case, peers without a time."""
    said = {f"{r['suite']} {r['case']}: {r.get('error') or r.get('verdict')}": None for r in rows if not is_good(r)}
    for r in rows:
        told = r.get("peer_notes")
        said |= {f"peer {n}: {why}": None for n, why in told.items()} if isinstance(told, dict) else {}
    return [one_line(text, MAX_WORDS) for text in said]


def as_csv(rows: Sequence[Row]) -> str:
    """A line a row below a header; a field that a row does not have is empty. Safe to open in a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV)
    for row in rows:
        best = best_peer(row)
        told = {**row, "best_peer": best and best[0], "best_peer_us": best and best[1]}
        writer.writerow([_field(told.get(name)) for name in CSV])
    return out.getvalue()


def _field(value: object) -> object:
    """A text that a spreadsheet would take for a formula stays a text."""
    if value is None or isinstance(value, int | float):
        return value
    text = harmless(str(value)).replace("\n", " ")
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and len(text) > 1 else text
