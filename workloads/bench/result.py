"""What a bench run leaves: `bench.md`, plots, `bench.html`, `thresholds.json`, and last of all `verdict.json`.

The verdict speaks of right and wrong alone: go when every case answered right. A missed goal stands in its row and
fails nothing; whether something became slower is for `orch bench --compare`. Called by `workloads.bench.loop`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from workloads.bench.config import BenchConfig
from workloads.bench.knees import Knees, install, knees_of
from workloads.bench.matrix import is_good
from workloads.bench.page import page
from workloads.bench.place import Place
from workloads.bench.plots import drawn
from workloads.bench.tables import facts_of, markdown
from workloads.contract.errors import escape
from workloads.contract.files import atomic_write, atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.judging.book import Row
from workloads.runtime.rankenv import RankEnv

GO, NO_GO = "go", "no-go"
T = TypeVar("T")


def conclude(env: RankEnv, config: BenchConfig, place: Place, rows: Sequence[Row], absent: Sequence[str]) -> RunVerdict:
    """The verdict over all cases; everything else first. OSError when a file cannot be written.

    `absent`: suites without a case for this device.
    """
    wrong = sum(not is_good(r) for r in rows)
    why = f"{wrong} of {_cases(len(rows))}" if wrong else _cases(len(rows))
    why += f"; no case here for {', '.join(absent)}" if absent else ""
    asked = config.asked
    verdict = RunVerdict(
        env.run_id, env.attempt, NO_GO if wrong else GO, why, time.time(),
        data={
            "cases": len(rows), "wrong": wrong, "absent": list(absent), "suites": list(asked.suites),
            "quick": asked.quick, "seed": asked.seed, "environment": place.environment(), "commit": config.commit,
            "dirty": config.dirty, "command": config.command,
        },
    )  # fmt: skip
    _tell(env, config, place, rows, verdict)
    atomic_write_json(env.run.verdict, as_wire(verdict))
    return verdict


def _tell(env: RankEnv, config: BenchConfig, place: Place, rows: Sequence[Row], verdict: RunVerdict) -> None:
    """Table, plots, page and thresholds. What cannot be made is said, and costs the rest nothing."""
    run, suites = env.run, config.asked.suites
    facts = facts_of(env, config, place, rows)
    none: tuple[dict[str, bytes], str] = ({}, "the plots could not be drawn")
    plots, missing = _attempt(lambda: drawn(suites, rows, _note(place, config)), none)
    if missing:
        print(missing, flush=True)
    found = _attempt(lambda: knees_of(rows, f"{env.run_id}/{run.bench_rows.name}", place.device), Knees("", None))
    atomic_write(run.bench_report, markdown(verdict, facts, rows, found.words).encode())
    for suite, png in plots.items():
        atomic_write(run.bench_plot(suite), png)
    atomic_write(run.bench_page, page(verdict, facts, rows, plots, missing, found.words).encode())
    if found.words:
        print(found.words, flush=True)
    if found.found is not None:
        atomic_write(run.thresholds, found.found.text().encode())
    if config.asked.write_thresholds:
        _install(env, found)


def _install(env: RankEnv, found: Knees) -> None:
    if found.found is None:
        print("no thresholds were installed: no backend beside ours was timed on a GPU", flush=True)
        return
    held, home = found.found, env.run.path.parents[1]
    place = _attempt(lambda: install(held, home), None)
    if place is not None:
        print(f"the kernels' dispatch reads them from now on: {place}", flush=True)


def _attempt(make: Callable[[], T], otherwise: T) -> T:
    """What `make` gives; where it fails that is told, and hides neither the rows nor the verdict."""
    try:
        return make()
    except Exception as e:
        print(f"warning: {type(e).__name__}: {escape(e, 400)}", file=sys.stderr, flush=True)
        return otherwise


def _note(place: Place, config: BenchConfig) -> str:
    return f"{place.gpu}, {time.strftime('%Y-%m-%d', time.gmtime())}, commit {config.commit[:12]}"


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"
