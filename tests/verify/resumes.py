"""Runs on two ranks that lose ranks to SIGKILL and go on, held against one that nobody kills: steps and last bytes.

Real shims under the real supervisor's engine, without Ray; gloo, checkpoints beside training. Not a test by itself:
`test_resumes.py` asserts what is found here, `python -m tests.verify.resumes` counts it for `runbooks/results`.

    python -m tests.verify.resumes [--kind ddp] [--n 20] [--seed 1] [--save runbooks/results/resumes.jsonl]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils._pytree import keystr, tree_flatten_with_path

from orchestrator.runs.ledgers import first_difference, first_unlike, read_ledger
from orchestrator.runs.source import LocalSource
from orchestrator.runs.verifyresume import Kill, Made, kill_along, lost_rows, plan_kills
from orchestrator.runs.waiting import Live
from tests.benchrows import Row, report
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from tests.train.harness import TINY, merged
from workloads.contract.manifest import verify
from workloads.contract.rundir import OrchHome, RunDir

STEPS, WORLD = 200, 2
LIMIT_S = 900.0
KINDS = ("ddp", "fsdp2")
SAVED_BESIDE = "s of it before the next step"  # what the log says of a checkpoint that training did not wait for


def killed_along(desk: Desk, plan: list[Kill], timeout_s: float) -> list[Made]:
    """`kill_along` beside the engine's loop, which stands for the supervisor's process."""
    home = OrchHome(desk.run.path.parents[1])
    made: list[Made] = []

    def kill() -> None:
        made.extend(kill_along(LocalSource(home, desk.run), plan, Live(silent=True))[0])

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    desk.turn(lambda: desk.status.get("state") in ("succeeded", "failed"), timeout_s)
    desk.leave()
    thread.join(60)
    assert not thread.is_alive()
    return made


def trained(folder: Path, parallel: str, plan: list[Kill], steps: int = STEPS) -> tuple[RunDir, list[Made]]:
    """A run of the tiny job on two ranks, killed as planned and brought to its end."""
    job = merged(
        TINY,
        {
            "train": {"steps": steps, "parallel": parallel}, "checkpoint": {"every_s": None, "every_steps": 7},
            "restart": {"max": 3, "backoff_s": [0]},
        },
    )  # fmt: skip
    argv = [sys.executable, "-m", "workloads.train"]
    desk = Desk(make_run(OrchHome(folder), argv, world=WORLD, kind="train", job=job))
    try:
        made = killed_along(desk, plan, LIMIT_S)
        assert desk.status["state"] == "succeeded", desk.run.rank_log(0).read_text()[-3000:]
    finally:
        desk.close()
    return desk.run, made


@dataclass(frozen=True)
class Outcome:
    """wrong: what differs from the unbroken run; empty: nothing, in no bit."""

    parallel: str
    seed: int
    made: tuple[Made, ...]
    again: int
    """steps that were made a second time"""
    wrong: str


def against(unbroken: RunDir, folder: Path, parallel: str, seed: int, steps: int = STEPS) -> Outcome:
    """One run with one kill, of one rank or of both, at a step that the seed draws."""
    run, made = trained(folder, parallel, plan_kills(1, steps, WORLD, seed), steps)
    final, lost = read_ledger(run.ledger), lost_rows(LocalSource(OrchHome(folder), run), 3)
    found = first_difference(read_ledger(unbroken.ledger), final, steps) or first_unlike(lost, final)
    wrong = f"step {found.step}: {found.what}" if found else ""
    if not made:
        wrong = wrong or "nothing was killed"
    if SAVED_BESIDE not in run.rank_log(0).read_text(errors="replace"):
        wrong = wrong or "no checkpoint was written beside training"
    return Outcome(
        parallel,
        seed,
        tuple(made),
        len(lost),
        wrong or unlike(unbroken.checkpoint(steps), run.checkpoint(steps), folder),
    )


def unlike(one: Path, other: Path, folder: Path) -> str:
    """The first difference between two checkpoints of runs: tensors, counts, generators; empty: none."""
    states = []
    for name, checkpoint in (("one", one), ("other", other)):
        if flaws := verify(checkpoint, run_id=checkpoint.parents[1].name):
            return f"{checkpoint}: {flaws}"
        whole = folder / f"{name}.pt"
        dcp_to_torch_save(checkpoint, whole)
        states.append(tree_flatten_with_path(torch.load(whole, weights_only=True))[0])
    if [path for path, _ in states[0]] != [path for path, _ in states[1]]:
        return "the checkpoints hold other tensors"
    if not any(isinstance(leaf, torch.Tensor) and leaf.numel() > 1000 for _, leaf in states[0]):
        return "the checkpoints hold no weights"
    for (path, a), (_, b) in zip(*states, strict=True):
        if not _same(a, b):
            return f"the checkpoints differ in {keystr(path)}"
    for rank in range(WORLD):
        name = f"rng_rank{rank}.json"
        if (one / name).read_bytes() != (other / name).read_bytes():
            return f"the checkpoints differ in {name}"
    return ""


def _same(a: Any, b: Any) -> bool:
    """Bit for bit: zeros have signs, and NaNs are equal to themselves."""
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def many(folder: Path, parallel: str, seeds: list[int], tell: Callable[[Outcome], None]) -> list[Outcome]:
    """A run for each seed, each against the same unbroken one."""
    unbroken, _ = trained(folder / "unbroken", parallel, [])
    outcomes = []
    for seed in seeds:
        outcomes.append(against(unbroken, folder / str(seed), parallel, seed))
        tell(outcomes[-1])
    return outcomes


def told(one: Outcome) -> str:
    kills = ", ".join(f"ranks {list(m.ranks)} behind step {m.step}" for m in one.made)
    return (
        f"{one.parallel} seed {one.seed}: killed {kills or 'nobody'}; {one.again} steps again; {one.wrong or 'equal'}"
    )


def rows_of(kind: str, outcomes: list[Outcome]) -> list[Row]:
    alone = sum(len(made.ranks) < WORLD for one in outcomes for made in one.made)
    return [
        Row(f"{kind}, 2 ranks, {STEPS} steps: runs killed and resumed", len(outcomes), "runs", None),
        Row(f"{kind}: one rank killed, and not both", alone, "runs", None),
        Row(f"{kind}: steps that were made a second time", sum(one.again for one in outcomes), "steps", None),
        Row(f"{kind}: runs that differ in a bit from the unbroken", sum(bool(o.wrong) for o in outcomes), "runs", 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: each of them")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for kind in options.kind or KINDS:
        seeds = [options.seed + k for k in range(options.n)]
        with tempfile.TemporaryDirectory(prefix="orch-resumes-") as name:
            os.environ["ORCH_LEASES"] = str(Path(name) / "leases")
            outcomes = many(Path(name), kind, seeds, lambda one: print(told(one), file=sys.stderr, flush=True))
        rows += rows_of(kind, outcomes)
    kinds = "".join(f" --kind {kind}" for kind in options.kind or ())
    command = f"python -m tests.verify.resumes{kinds} --n {options.n} --seed {options.seed}"
    return report(rows, "resumes", command, options.save)


if __name__ == "__main__":
    sys.exit(main())
