"""`make cuts`: a thousand resets and twenty silences of the connection over which a log is copied and followed.

    python -m tests.cuts [--resets 1000] [--silences 20] [--seed 1] [--save runbooks/results/cuts.jsonl]

Four fifths of the resets meet the mirror, the others four `orch logs -f` at once. The silences need the lab (root on
Linux). Prints how far it is; exits 1 when a byte was lost or came twice. Not a test.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchrows import Row, report  # noqa: E402
from tests.cuts.drive import Outcome, copied, followed  # noqa: E402
from tests.cuts.silence import silenced  # noqa: E402
from tests.lab.sshd import Sshd  # noqa: E402

FOLLOWERS, PODS = 4, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resets", type=int, default=1000)
    parser.add_argument("--silences", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    if options.resets:
        mirror, follow = resets(options.resets, options.seed)
        rows += told("resets while the mirror copies", [mirror]) + told("resets while `orch logs -f` follows", follow)
    if options.silences:
        rows += told("silences while `orch logs -f` follows", silenced(options.silences, PODS, options.seed, say))
    command = f"python -m tests.cuts --resets {options.resets} --silences {options.silences} --seed {options.seed}"
    return report(rows, "cuts", command, options.save)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def resets(n: int, seed: int) -> tuple[Outcome, list[Outcome]]:
    share = n // 5 // FOLLOWERS
    with tempfile.TemporaryDirectory(prefix="orch-cuts-") as name, Sshd(Path(name) / "sshd") as sshd:
        places = [Path(name) / f"f{i}" for i in range(FOLLOWERS)]
        for place in (*places, Path(name) / "m"):
            place.mkdir()
        with ThreadPoolExecutor(FOLLOWERS) as pool:
            jobs = [pool.submit(followed, share, seed + i, p, sshd, 60.0 + 20.0 * share) for i, p in enumerate(places)]
            follow = [job.result() for job in jobs]
        say(f"{sum(f.cuts for f in follow)} resets while `orch logs -f` follows")
        return copied(n - share * FOLLOWERS, seed, Path(name) / "m", sshd, say), follow


def told(case: str, outcomes: list[Outcome]) -> list[Row]:
    for o in outcomes:
        if o.problem:
            say(f"{case}: {o.problem}")
    size_mib = sum(o.size_bytes for o in outcomes) / (1 << 20)
    return [
        Row(case, sum(o.cuts for o in outcomes), "cuts", None),
        Row(f"{case}: log", size_mib, "MiB", None),
        Row(f"{case}: logs not byte for byte", sum(bool(o.problem) for o in outcomes), "logs", 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
