"""`make floods`: what each part needs at most on a run with 10 GB of log and millions of lines. Not a test.

    python -m tests.floods [--save runbooks/results/floods.jsonl]

Rank 1's log is 10 GiB large and sparse; rank 0's is real, 1 GiB or a fifth of what the disk has free. Exits 1 above the
bound of 256 MiB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchrows import Row, report  # noqa: E402
from tests.floods.flood import LARGE, fitting, flooded  # noqa: E402
from tests.floods.measure import LIMIT_MIB  # noqa: E402
from tests.floods.subjects import peaks  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orch-floods-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ["ORCH_LEASES"] = str(folder / "leases")
        size = fitting(LARGE, folder)
        made = flooded(folder, size)
        rows = [
            Row("flood: log", size.log_bytes / (1 << 20), "MiB", None),
            Row("flood: log with a hole", size.sparse_bytes / (1 << 20), "MiB", None),
            Row("flood: heartbeat lines", size.beats, "lines", None),
            Row("flood: events", size.events, "lines", None),
            Row("flood: requests", size.requests, "files", None),
        ]
        try:
            for part, found in peaks(made, size, folder):
                print(f"{part}: {found.mib} MiB, {found.seconds:.1f} s", file=sys.stderr, flush=True)
                rows.append(Row(f"memory of {part}", found.mib, "MiB", LIMIT_MIB))
        finally:
            made.close()
    return report(rows, "floods", "python -m tests.floods", options.save)


if __name__ == "__main__":
    sys.exit(main())
