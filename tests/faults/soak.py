"""`make soak HOURS=2`: a seeded random sequence of faults on a few runs at once, the invariants after each run.

    python -m tests.faults.soak [--hours H] [--seed N] [--runs N] [--save FILE]

A run gets two to five faults, one after the other, at random moments, and is then brought to its last step; what must
hold after every fault (`tests.faults.invariants`) must hold then. The same seed makes the same faults again. Exit code
1 when something did not hold; the seed and the round that repeat it are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchrows import ROOT, where_and_when
from tests.faults.invariants import check
from tests.faults.stand import EVERY, Stand
from workloads.contract.rundir import OrchHome
from workloads.contract.states import ENDED

ROUND_LIMIT_S = 600.0
Strike = Callable[[Stand, random.Random], None]


def _rank(number: int) -> Strike:
    def strike(stand: Stand, dice: random.Random) -> None:
        stand.rank(dice.randrange(stand.world)).signal(number)

    return strike


def _shim(stand: Stand, dice: random.Random) -> None:
    stand.shim(dice.randrange(stand.world)).signal(signal.SIGKILL)


def _supervisor(stand: Stand, dice: random.Random) -> None:
    stand.supervisor.kill()


def _supervisor_sleeps(stand: Stand, dice: random.Random) -> None:
    stand.supervisor.signal(signal.SIGSTOP)
    time.sleep(dice.uniform(0.2, 2.0))
    stand.supervisor.signal(signal.SIGCONT)


def _keeper(stand: Stand, dice: random.Random) -> None:
    stand.keeper.kill()
    time.sleep(dice.uniform(0.0, 1.0))
    stand.keeper.start()


def _rank_does(what: str, **args: Any) -> Strike:
    def strike(stand: Stand, dice: random.Random) -> None:
        stand.control.do(dice.randrange(stand.world), what, **args)

    return strike


def _halt(stand: Stand, dice: random.Random) -> None:
    stand.halt("soak")
    if dice.random() < 0.3:
        time.sleep(dice.uniform(0.0, 0.3))
        stand.run.halt.unlink(missing_ok=True)


def _vanish(stand: Stand, dice: random.Random) -> None:
    away = stand.run.path.with_name(f"away-{stand.run.run_id}")
    stand.run.path.rename(away)
    time.sleep(dice.uniform(0.1, 3.0))
    away.rename(stand.run.path)


def _all_at_once(stand: Stand, dice: random.Random) -> None:
    stand.supervisor.kill()
    for rank in range(stand.world):
        stand.rank(rank).signal(signal.SIGKILL)


STRIKES: dict[str, Strike] = {
    "rank-killed": _rank(signal.SIGKILL),
    "rank-term": _rank(signal.SIGTERM),
    "rank-segfault": _rank_does("segfault"),
    "rank-raises": _rank_does("raise"),
    "rank-leaves-child": _rank_does("leave_child", ignore_term=True),
    "shim-killed": _shim,
    "supervisor-killed": _supervisor,
    "supervisor-stopped": _supervisor_sleeps,
    "keeper-killed": _keeper,
    "halt": _halt,
    "run-vanished": _vanish,
    "all-at-once": _all_at_once,
}


def one_round(seed: int) -> dict[str, Any]:
    """One run and its faults: {seed, faults, attempts, broken}."""
    dice = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="orch-soak-", dir="/tmp"))
    os.environ["ORCH_LEASES"] = str(base / "leases")
    stand = Stand(
        OrchHome(base / "home"), "soak", steps=dice.randrange(200, 600), step_s=0.01, world=dice.choice((1, 2, 3))
    )
    names = [dice.choice(list(STRIKES)) for _ in range(dice.randrange(2, 6))]
    row: dict[str, Any] = {"seed": seed, "faults": names, "attempts": 0, "broken": []}
    try:
        stand.launch(restart={"max": 50, "backoff_s": [dice.choice((0.0, 0.5))]})
        for name in names:
            strike_once(stand, name, dice)
        for rank in range(stand.world):
            stand.control.undo(rank)
        stand.bring_back()
        row["attempts"] = stand.attempt
        row["broken"] = check(stand)
    except Exception as e:
        row["broken"] = [f"{type(e).__name__}: {e}"[:6000]]
    finally:
        stand.close()
        shutil.rmtree(base, ignore_errors=True)
    return row


def strike_once(stand: Stand, name: str, dice: random.Random) -> None:
    """After a random number of steps more, if the run has not ended before."""
    goal = stand.step() + dice.randrange(1, 2 * EVERY)
    stand.until(lambda: stand.step() >= goal or stand.state in ENDED, f"step {goal} before {name}")
    if stand.state == "halted":
        attempt = stand.attempt
        stand.resume(f"soak{dice.randrange(1 << 30)}")
        stand.until(lambda: stand.attempt > attempt, "resumed")
    if stand.state in ENDED:
        return
    try:
        STRIKES[name](stand, dice)
    except (FileNotFoundError, KeyError):  # between two attempts there is nothing to hit
        return


def play_round(seed: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.faults.soak", "--round", str(seed)]
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False)
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"seed": seed, "faults": [], "attempts": 0, "broken": [f"not within {ROUND_LIMIT_S:.0f} s"]}
    except (IndexError, ValueError):
        return {"seed": seed, "faults": [], "attempts": 0, "broken": [done.stderr[-4000:]]}
    return row


def soak(hours: float, seed: int, runs: int) -> list[dict[str, Any]]:
    """Rounds until the time is over; the first that breaks something is told at once."""
    ends = time.monotonic() + hours * 3600
    dice = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(max_workers=runs) as pool:
        while time.monotonic() < ends:
            for row in pool.map(play_round, [dice.randrange(1 << 31) for _ in range(runs)]):
                rows.append(row)
                faults = ", ".join(row["faults"])
                print(
                    f"{'FAIL' if row['broken'] else 'ok':<5} round {len(rows)}: {row['attempts']} attempts; {faults}",
                    flush=True,
                )
                if row["broken"]:
                    print("      " + "\n      ".join(row["broken"]))
                    print(f"      again: python -m tests.faults.soak --round {row['seed']}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Break runs at random for hours.")
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--runs", type=int, default=3, help="at once (default 3)")
    parser.add_argument("--round", type=int, default=None, metavar="SEED", help="play one round alone")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append a summary row")
    args = parser.parse_args(argv)
    if args.round is not None:
        row = one_round(args.round)
        print(json.dumps(row), flush=True)
        return int(bool(row["broken"]))
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}, {args.hours:g} h, {args.runs} runs at once", flush=True)
    began = time.monotonic()
    rows = soak(args.hours, seed, args.runs)
    broken = [r for r in rows if r["broken"]]
    faults = sum(len(r["faults"]) for r in rows)
    summary = {
        "v": 1, "suite": "soak", "seed": seed, "hours": round((time.monotonic() - began) / 3600, 3), "runs": len(rows),
        "faults": faults, "attempts": sum(r["attempts"] for r in rows), "broken": len(broken),
        "verdict": "FAIL" if broken else "ok",
    }  # fmt: skip
    row = {**summary, **where_and_when(f"make soak HOURS={args.hours:g}")}
    print(json.dumps(row))
    if args.save is not None:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        with args.save.open("a") as f:
            f.write(json.dumps(row) + "\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
