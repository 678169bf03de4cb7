"""Cells of damaged files: checkpoints that lost a bit, beats and events that are none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.book import cells
from tests.faults.ranks import STRUCK, says
from tests.faults.stand import EVERY, Stand
from tests.faults.words import Fault, When
from workloads.contract.rundir import RunDir


def flip(path: Path) -> None:
    victim = path / "state_rank0.bin"
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)


def cut(path: Path) -> None:
    os.truncate(path / "state_rank1.bin", 1000)


def lose(path: Path) -> None:
    (path / "state_rank1.bin").unlink()


def swap(path: Path) -> None:
    """Another step's file of the same name and size."""
    older = path.parent / RunDir(path).checkpoint(EVERY).name
    shutil.copyfile(older / "state_rank0.bin", path / "state_rank0.bin")


def damaged(stand: Stand, when: When, damage: Callable[[Path], None], words: str) -> None:
    """Two checkpoints, the newer one spoilt while no rank lives: the older one is used, the newer one named."""
    stand.launch(restart={"max": 3, "backoff_s": [2.0]})
    stand.control.gate(2 * EVERY + 3)
    stand.until(lambda: stand.step() >= 2 * EVERY + 3, "two checkpoints")
    newest = stand.run.checkpoint(2 * EVERY)
    stand.damaged, stand.intervals = {newest.name}, 2
    if when is When.ENDED:
        for rank in range(stand.world):  # no checkpoint of the halt's own
            stand.control.do(rank, "exit", code=77, attempt=1)
        stand.until_state("failed")
    else:
        stand.rank(STRUCK).signal(signal.SIGKILL)
        stand.until_state("resuming")
    damage(newest)
    stand.control.release()
    stand.bring_back()
    log = stand.log(0)
    assert f"resume: step {EVERY} from" in log, log
    line = next(x for x in log.splitlines() if newest.name in x and "not used" in x)
    says(line, words)
    rejected = [p.name for p in stand.run.checkpoints.glob("rejected_*")]
    assert len(rejected) == 1 and newest.name in rejected[0], rejected


@cells(Fault.CHECKPOINT_FLIPPED, When.BETWEEN, When.ENDED)
def checkpoint_flipped(stand: Stand, when: When) -> None:
    damaged(stand, when, flip, "state_rank0.bin does not match its sha256")


@cells(Fault.CHECKPOINT_CUT, When.BETWEEN)
def checkpoint_cut(stand: Stand, when: When) -> None:
    damaged(stand, when, cut, "state_rank1.bin has 1000 bytes")


@cells(Fault.CHECKPOINT_FILE_LOST, When.BETWEEN)
def checkpoint_file_lost(stand: Stand, when: When) -> None:
    damaged(stand, when, lose, "state_rank1.bin is missing")


@cells(Fault.CHECKPOINT_SWAPPED, When.BETWEEN)
def checkpoint_swapped(stand: Stand, when: When) -> None:
    damaged(stand, when, swap, "state_rank0.bin does not match its sha256")


@cells(Fault.CHECKPOINTS_ALL_BAD, When.BETWEEN)
def checkpoints_all_bad(stand: Stand, when: When) -> None:
    """Refused, each one named; nothing is moved or begun anew. Mended from a copy, it goes on."""
    stand.bring_to(when)
    only = stand.run.checkpoint(EVERY)
    copy = stand.control.control / "copy"
    shutil.copytree(only, copy)
    flip(only)
    stand.control.release()
    says(stand.until_state("failed")["reason"], "exit code 77")
    assert only.is_dir() and only.name in stand.log(0)
    assert any("E-TRAIN-005" in line for e in stand.events("rank-exit") for line in e["data"]["lines"])
    shutil.rmtree(only)
    shutil.copytree(copy, only)
    stand.bring_back()


def goes_on(stand: Stand, when: When, spoil: Callable[[Path], None]) -> None:
    """What is wrong with the beats of a rank changes nothing for it; a real death is still seen behind it."""
    stand.bring_to(when)
    spoil(stand.run.heartbeat(STRUCK))
    time.sleep(1)
    assert stand.state == "running" and stand.attempt == 1
    stand.rank(STRUCK).signal(signal.SIGKILL)
    stand.until(lambda: stand.attempt == 2, "the next attempt")
    stand.control.release()
    stand.until_state("succeeded")
    assert stand.attempt == 2
    stand.bring_back()


def append(path: Path, raw: bytes) -> None:
    with path.open("ab") as f:
        f.write(raw)


@cells(Fault.BEAT_TORN, When.TRAINING)
def beat_torn(stand: Stand, when: When) -> None:
    goes_on(stand, when, lambda path: append(path, b'{"v":1,"seq":9,"ts":17'))


@cells(Fault.BEAT_GARBAGE, When.TRAINING)
def beat_garbage(stand: Stand, when: When) -> None:
    lines = [
        b"\xff\xfe\0" * 50,
        b"[" * 100_000,
        b'{"v":1,"seq":' + b"9" * 400 + b"}",
        b"null",
        b'{"v":1}',
        b"x" * 5_000_000,
    ]
    goes_on(stand, when, lambda path: append(path, b"\n".join([b"", *lines, b""])))


@cells(Fault.BEAT_FLOOD, When.TRAINING)
def beat_flood(stand: Stand, when: When) -> None:
    """100,000 lines at once, of this rank and attempt."""

    def flood(path: Path) -> None:
        row = {"v": 1, "ts": time.time(), "msg": "progress", "rank": STRUCK, "world_size": 2, "attempt": 1, "step": 25}
        head = json.dumps(row)[:-1].encode()
        with path.open("ab") as f:
            f.writelines(head + b',"seq":%d,"loss":2.5,"toks_per_s":1000.0}\n' % n for n in range(100, 100_100))

    goes_on(stand, when, flood)


@cells(Fault.BEAT_REPLACED, When.TRAINING)
def beat_replaced(stand: Stand, when: When) -> None:
    def replace(path: Path) -> None:
        path.rename(stand.control.control / path.name)
        path.mkdir()

    goes_on(stand, when, replace)


@cells(Fault.EVENTS_TORN, When.TRAINING, When.HALTING)
def events_torn(stand: Stand, when: When) -> None:
    """A line that a full disk cut, and a foreign one: the next supervisor folds the rest and goes on behind them."""
    attempt = stand.bring_to(when)
    stand.auto = False
    stand.supervisor.kill()
    append(stand.run.events, b'hello\n{"seq":99,"ts":1,"attempt":')
    stand.torn_events = 2
    stand.auto = True
    stand.control.release()
    stand.until_state("halted" if when is When.HALTING else "succeeded")
    assert stand.attempt == attempt
    stand.bring_back()
