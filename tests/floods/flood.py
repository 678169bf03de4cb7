"""A running run that is flooded: logs, heartbeats, events, requests, lines of megabytes. See `measure`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.endhome import end_home
from tests.supervisor.direct import Desk
from tests.supervisor.runs import make_run
from workloads.contract.files import append_line
from workloads.contract.rundir import OrchHome, RunDir

SLEEP = "import time; print('up', flush=True); time.sleep(3600)"
LONG_LINE_BYTES = 10 << 20


@dataclass(frozen=True)
class Size:
    log_bytes: int  # real ones, in rank 0's log
    sparse_bytes: int  # rank 1's log: this large, and nearly all of it a hole
    beats: int
    events: int
    requests: int


SMALL = Size(40 << 20, 10 << 30, 150_000, 60_000, 1000)
LARGE = Size(1 << 30, 10 << 30, 2_000_000, 300_000, 20_000)


def fitting(size: Size, folder: Path) -> Size:
    """`size`, with a log of at most a fifth of what the disk has free: it is printed and copied as well."""
    room = shutil.disk_usage(folder).free // 5
    return Size(min(size.log_bytes, room), size.sparse_bytes, size.beats, size.events, size.requests)


@dataclass
class Flooded:
    home: OrchHome
    desk: Desk

    @property
    def run(self) -> RunDir:
        return self.desk.run

    def close(self) -> None:
        """Also the keeper, which the commands start for a run that nobody supervises, and what it started."""
        self.desk.close()
        end_home(self.home)


def flooded(folder: Path, size: Size) -> Flooded:
    """A run of two ranks that live, and everything that was written by them and to them."""
    home = OrchHome(folder / "home")
    desk = Desk(make_run(home, [sys.executable, "-c", SLEEP], world=2, name="flood"))
    desk.until("running", timeout_s=60)
    made = Flooded(home, desk)
    _log(made.run.rank_log(0), size.log_bytes)
    with made.run.rank_log(1).open("ab") as f:
        f.truncate(size.sparse_bytes)
        f.seek(size.sparse_bytes)
        f.write(b"\nafter the hole\n")
    _beats(made.run, size.beats)
    _events(made.run, size.events)
    for i in range(size.requests):
        (made.run.requests / f"20261121T000000Z-dance-{i:08x}.json").write_bytes(b'{"verb":"dance"}')
    return made


def _log(path: Path, size_bytes: int) -> None:
    block = b"".join(b"step %08d | loss 1.5 | toks/s 1000\n" % i for i in range(28_000))
    with path.open("ab") as f:
        f.write(b"x" * LONG_LINE_BYTES + b"\n")
        while f.tell() < size_bytes:
            f.write(block)
        f.write(b"RuntimeError: the last line\n")


def _beats(run: RunDir, count: int) -> None:
    with run.heartbeat(0).open("ab") as f:
        f.write(b"y" * LONG_LINE_BYTES + b"\n")
        now = time.time()
        for i in range(count):
            f.write(
                b'{"v":1,"seq":%d,"ts":%.3f,"msg":"progress","rank":0,"world_size":2,"attempt":1,"step":%d,"loss":1.5,'
                b'"lr":0.0003,"grad_norm":1.25,"toks_per_s":51234.5,"step_time_s":0.02}\n' % (i, now - 1, i)
            )


def _events(run: RunDir, count: int) -> None:
    with run.events.open("ab") as f:
        for i in range(count):
            f.write(
                b'{"seq":%d,"ts":1.0,"attempt":1,"who":"supervisor","what":"note","why":"a note that says much of '
                b'little, again and again","data":{"n":%d},"v":1}\n' % (1000 + i, i)
            )
        f.write(b"z" * LONG_LINE_BYTES + b"\n")
    append_line(run.events, {"seq": 2_000_000, "ts": 2.0, "attempt": 1, "who": "supervisor", "what": "note", "v": 1})
    os.sync()
