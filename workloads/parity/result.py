"""What a parity run leaves: the table `parity.md`, `verdict.json`, and in the pod's home what later launches ask for.

The pod's home is where a verdict is true: GPU, driver and installed packages are the pod's, every operator that
reaches the pod finds the same answer, and a lost laptop loses nothing. Called by `workloads.parity.loop`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from workloads.contract.files import atomic_write, atomic_write_json
from workloads.contract.records import RunVerdict, as_wire
from workloads.contract.rundir import OrchHome
from workloads.judging.book import Row
from workloads.parity.config import ParityConfig
from workloads.parity.matrix import GOOD, family_of, is_good, words
from workloads.parity.place import Place
from workloads.runtime.rankenv import RankEnv

GO, NO_GO = "go", "no-go"


def conclude(env: RankEnv, config: ParityConfig, place: Place, rows: Sequence[Row], left_out: int) -> RunVerdict:
    """The verdict over all cells; the table first, `verdict.json` last. OSError when one cannot be written.

    `left_out`: cells for the other device: a GPU where there is none, the interpreter where there is one.
    """
    wrong = [r for r in rows if not is_good(r)]
    asked = config.asked
    why = _why(len(wrong), len(rows), left_out, place.device)
    verdict = RunVerdict(
        env.run_id, env.attempt, NO_GO if wrong else GO, why, time.time(),
        data={
            "cells": len(rows), "wrong": len(wrong), "left_out": left_out, "suites": list(asked.suites),
            "full": asked.full, "only": asked.only, "seed": asked.seed, "environment": place.environment(),
            "commit": config.commit, "dirty": config.dirty, "command": config.command,
        },
    )  # fmt: skip
    atomic_write(env.run.parity_report, markdown(env, config, place, rows, verdict).encode())
    if asked.only is None:
        for suite in asked.suites:
            _remember(env, place, verdict, suite, [r for r in rows if family_of(r) == suite])
    atomic_write_json(env.run.verdict, as_wire(verdict))
    return verdict


def _why(wrong: int, cells: int, left_out: int, device: str) -> str:
    """`112 cells`, `2 of 112 cells`; and how many were not judged."""
    told = f"{wrong} of {_count(cells)}" if wrong else _count(cells)
    other = "the interpreter" if device == "cuda" else "a GPU"
    return told + (f"; {left_out} more are for {other}" if left_out else "")


def _count(cells: int) -> str:
    return f"{cells} cell{'' if cells == 1 else 's'}"


def _remember(env: RankEnv, place: Place, verdict: RunVerdict, suite: str, rows: Sequence[Row]) -> None:
    """One file a suite, matrix and environment. A full disk costs the next launch a parity run, and is told."""
    wrong = sum(not is_good(r) for r in rows)
    about = {k: getattr(place, k) for k in ("gpu", "driver", "torch", "triton", "code")}
    about |= {"suite": suite, "full": verdict.data["full"]}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    row: dict[str, Any] = {
        "v": 1, **about, "verdict": NO_GO if wrong else GO, "cells": len(rows), "wrong": wrong,
        "run": env.run_id, "ts": verdict.ts,
    }  # fmt: skip
    home = OrchHome(env.run.path.parents[1])
    try:
        home.parity.mkdir(exist_ok=True, mode=0o700)
        atomic_write_json(home.parity / f"{key}.json", row)
    except OSError as e:
        print(f"warning: the verdict was not kept for later launches: {e}", file=sys.stderr, flush=True)


def markdown(env: RankEnv, config: ParityConfig, place: Place, rows: Sequence[Row], verdict: RunVerdict) -> str:
    """The result for a person, wrong cells first."""
    facts = [
        ("run", f"`{env.run_id}` on pod {env.pod}"),
        ("command", f"`{config.command}`"),
        ("commit", config.commit + (", with uncommitted changes" if config.dirty else "")),
        ("kernels", f"code hash {place.code}"),
        ("device", f"{place.gpu}, driver {place.driver}" if place.device == "cuda" else "CPU, Triton's interpreter"),
        ("software", f"Python {place.python}, torch {place.torch}, triton {place.triton}"),
        ("matrix", f"{', '.join(config.asked.suites)}; {_size(config)}; seed {config.asked.seed}"),
    ]
    ordered = sorted(rows, key=is_good)
    lines = [f"# Kernel parity: {verdict.verdict}, {verdict.why}", ""]
    lines += [f"- {name}: {text}" for name, text in facts]
    lines += ["", "| suite | cell | error | tolerance | worst element | verdict |", "|---|---|---|---|---|---|"]
    for r in ordered:
        said = words(r) if r.get("err") is None else GOOD if is_good(r) else "WRONG"
        cells = (family_of(r), r["case"], r.get("err"), r.get("tol"), r.get("worst"), said)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    wrong = [r for r in ordered if not is_good(r)]
    if wrong:
        lines += ["", "Each wrong cell alone:", "", *(f"    {r['command']}" for r in wrong)]
    return "\n".join([*lines, ""])


def _size(config: ParityConfig) -> str:
    if config.asked.only:
        return f"only {config.asked.only}"
    return "the whole matrix" if config.asked.full else "the short matrix"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = "-" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
