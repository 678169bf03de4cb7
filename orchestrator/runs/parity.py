"""A parity run as it is read: its rows, its verdict, and both as a table or a document. Pure but for reading two files.

What is believed of them is decided in `orchestrator.runs.judged`. Called by `orch parity` and by the report.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from orchestrator.runs import judged
from orchestrator.runs.judged import GOOD, Judged, Row, is_good, ordered
from orchestrator.runs.render import one_line, program, table
from orchestrator.runs.views import RunView
from workloads.contract.rundir import RunDir

PREFIX = "parity-"
MAX_WORDS = 160


class Result(Judged):
    def as_json(self) -> dict[str, Any]:
        """The document of `orch parity --json`."""
        return self.document("cells", ("left_out", "suites", "full", "only", "seed"))

    def lines(self, width: int = 0) -> list[str]:
        """For a person: wrong cells first, each with the command that judges it alone; the verdict last."""
        if not self.rows:
            return [f"{self.view.run.run_id}  no cell was judged"]
        shown = ordered(self.rows)
        head, *body = cells_table(shown, width)
        lines = [head]
        for row, line in zip(shown, body, strict=True):
            lines.append(line)
            if not is_good(row):
                said = [] if row.get("err") is not None else [f"    {one_line(str(row.get('verdict')), MAX_WORDS)}"]
                lines += [*said, f"    alone: {self.alone(row)}"]
        lines += ["", *(f"  {k:<11} {one_line(v)}" for k, v in self.facts()), ""]
        if self.verdict is not None:
            lines.append(f"{self.verdict.verdict}: {one_line(self.verdict.why)}")
        return lines

    def facts(self) -> list[tuple[str, str]]:
        e, d = self.environment, self.data
        where = (
            f"{e.get('gpu')}, driver {e.get('driver')}" if e.get("device") == "cuda" else "Triton's interpreter, CPU"
        )
        commit = f"{d.get('commit')}{', with uncommitted changes' if d.get('dirty') else ''}"
        told = [
            ("device", where),
            ("software", f"Python {e.get('python')}, torch {e.get('torch')}, triton {e.get('triton')}"),
            ("code", f"commit {commit}; kernels {e.get('code')}"),
            ("command", str(d.get("command"))),
        ]
        run = ("run", f"{self.view.run.run_id} on pod {self.pod}")
        return [run, *(told if self.verdict else []), ("directory", str(self.view.run.path))]

    def alone(self, row: Row) -> str:
        """What judges this one cell again, on the same pod."""
        words = [program(), "parity", str(row.get("suite")).removeprefix(PREFIX), "--only", str(row.get("case"))]
        job = self.view.info.get("job")
        asked = job.get("parity") if isinstance(job, dict) else None
        told = asked if isinstance(asked, dict) else {}
        words += [] if self.pod == "local" else ["--pod", self.pod]
        words += [] if told.get("device", "auto") == "auto" else ["--device", str(told["device"])]
        words += ["--seed", str(told["seed"])] if told.get("seed") else []
        return one_line(shlex.join(words))


def cells_table(rows: Sequence[Row], width: int = 0) -> list[str]:
    header = ("SUITE", "CELL", "ERROR", "ALLOWED", "WORST AT", "VERDICT")
    cells = [
        (
            str(r.get("suite")).removeprefix(PREFIX), str(r.get("case")), number(r.get("err")), number(r.get("tol")),
            "-" if r.get("worst") is None else str(r["worst"]), GOOD if is_good(r) else "WRONG",
        )
        for r in rows
    ]  # fmt: skip
    return table(header, cells, right=(2, 3), width=width).split("\n")


def number(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, int | float) else "-"


def read_rows(run: RunDir) -> tuple[Row, ...]:
    """Whole rows, one a cell, in the order in which they were judged."""
    return judged.read_rows(run.parity_rows)


def result_of(view: RunView, pod: str) -> Result:
    """What `view` has answered. IntegrityError when its verdict is not that of its rows."""
    rows = read_rows(view.run)
    verdict = judged.verdict_of(view, rows, view.run.parity_rows, counted="cells", code="E-PARITY-008")
    return Result(view, rows, verdict, pod)
