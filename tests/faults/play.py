"""One cell, here and now: `python -m tests.faults.play CELL`. Prints one JSON line with the verdict.

A process of its own a cell, so that mounts, forks and whatever a fault leaves behind end with it. Called by `__main__`
and by the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.book import all_cells
from tests.faults.invariants import check
from tests.faults.stand import Stand
from tests.faults.words import CannotRun, Cell
from workloads.contract.rundir import OrchHome
from workloads.shim.spawn import PR_SET_PDEATHSIG, prctl


def play(cell: Cell) -> dict[str, Any]:
    """{verdict: ok | FAIL | skipped, seconds, why}."""
    began = time.monotonic()
    if cell.root and os.geteuid() != 0:
        return {"verdict": "skipped", "seconds": 0.0, "why": "needs root"}
    base = Path(tempfile.mkdtemp(prefix="orch-f-", dir="/tmp"))
    os.environ["ORCH_LEASES"] = str(base / "leases")
    stand = Stand(OrchHome(base / "home"), "f")
    verdict, why = "ok", ""
    try:
        cell.play(stand, cell.when)
        if broken := check(stand.instead or stand):
            verdict, why = "FAIL", "\n".join(broken) + f"\n{(stand.instead or stand).story()}"
    except CannotRun as e:
        verdict, why = "skipped", str(e)
    except Exception:
        verdict, why = "FAIL", traceback.format_exc()
        if hasattr(stand, "run") and "events.jsonl" not in why:
            why += stand.story()
    finally:
        stand.close()
        shutil.rmtree(base, ignore_errors=True)
    return {"verdict": verdict, "seconds": round(time.monotonic() - began, 2), "why": why}


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    cell = all_cells().get(argv[1])
    if cell is None:
        print(f"no such cell: {argv[1]}", file=sys.stderr)
        return 2
    print(json.dumps(play(cell)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
