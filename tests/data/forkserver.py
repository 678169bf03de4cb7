"""Children that read a stream and are killed, a thousand of them: forked from one process that has everything imported.

Each child goes on from the last commit, as ranks of a random world size would, through the real prefetch threads: it
appends a batch to `log`, then commits {batches, state} by a rename. It is killed by a clock or, at a point of its own
choice, by itself. A record that no commit covers is cut off by the next child, as rows after a checkpoint are.

    python -m tests.data.forkserver WORK SOURCE CORPUS CYCLES SEED      prints a row of counts at the end
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.data.corpora import feeds, saved, spec
from workloads.data import rowfiles
from workloads.data.prefetch import Prefetcher
from workloads.data.stream import FeedState

GLOBAL_BATCH = 8
WORLDS = (1, 2, 4, 8)
POINTS = ("opened", "fetched", "half-logged", "logged", "committed", "clock", "clock", "clock")
LONGEST_S = 0.02
RECORD = GLOBAL_BATCH * 32


def read_state(work: Path) -> tuple[int, FeedState]:
    try:
        row = json.loads((work / "state.json").read_text())
    except FileNotFoundError:
        return 0, FeedState()
    return row["batches"], FeedState(row["samples"], {int(v): at for v, at in row["shards"].items()})


def commit(work: Path, batches: int, state: FeedState) -> None:
    row = {"batches": batches, "samples": state.samples, "shards": dict(state.shards)}
    (work / "state.tmp").write_text(json.dumps(row))
    (work / "state.tmp").rename(work / "state.json")


def child(work: Path, data: Any, world: int, point: str, after: int) -> None:
    """Never returns. `point`: where it kills itself, at its batch number `after`."""

    def here(name: str, n: int) -> None:
        if name == point and n >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    batches, state = read_state(work)
    log = os.open(work / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.ftruncate(log, batches * RECORD)
    os.lseek(log, 0, os.SEEK_END)
    loaders = [Prefetcher(feed.batch, state) for feed in feeds(data, world, GLOBAL_BATCH)]
    here("opened", after)
    n = 0
    while True:
        parts = [loader.next() for loader in loaders]
        here("fetched", n)
        rows = [parts[i % world].x_BT[i // world].tobytes() for i in range(GLOBAL_BATCH)]
        record = b"".join(rows)
        os.write(log, record[: RECORD // 2])
        here("half-logged", n)
        os.write(log, record[RECORD // 2 :])
        here("logged", n)
        commit(work, batches + n + 1, saved([p.state for p in parts]))
        here("committed", n)
        n += 1


def main() -> None:
    work, source, corpus, cycles, seed = sys.argv[1:]
    choose = random.Random(int(seed))
    data = spec(source, corpus)
    if source == "hub":
        rowfiles.preload()
        rowfiles.CHUNK_ROWS = 5  # a state of `datasets` in nearly every position
    ended: Counter[str] = Counter()
    barren = 0
    for _ in range(int(cycles)):
        world, point, after = choose.choice(WORLDS), choose.choice(POINTS), choose.randrange(3)
        pause_s = choose.uniform(0, LONGEST_S)
        before = read_state(Path(work))[0]
        pid = os.fork()
        if not pid:
            try:
                child(Path(work), data, world, point, after)
            finally:
                os._exit(1)  # an error: only SIGKILL ends a child
        if point == "clock":
            time.sleep(pause_s)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        ended[point if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else "failed"] += 1
        barren += read_state(Path(work))[0] == before
    print(json.dumps({"ended": ended, "batches": read_state(Path(work))[0], "barren": barren}))


if __name__ == "__main__":
    main()
