"""Dumps of real torch programs: a collective waits for a rank whose data loader hangs; alone, and below torchrun."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pods.remote.dump import Dump, dump_run
from pods.remote.dumpgroups import RankDump
from tests.pod.shimlab import Lab, until

pytestmark = pytest.mark.long

DATA = """
import time
from torch.utils.data import DataLoader
class Slow(list):
    def __getitem__(self, i): time.sleep(600)
def batches(how):
    for batch in DataLoader(Slow([0] * 8), batch_size=2, num_workers=2, multiprocessing_context=how):
        yield batch
"""
TRAIN = """
import os, torch, torch.distributed as dist
from data import batches
def step(x):
    dist.all_reduce(x)
def main():
    dist.init_process_group("gloo")
    print("up", flush=True)
    if dist.get_rank() == dist.get_world_size() - 1:
        for batch in batches(os.environ["HOW"]): pass
    step(torch.ones(4))
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "train.py").write_text(TRAIN)
    yield made
    made.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def settled(lab: Lab, condition: Callable[[Dump], object]) -> Dump:
    """The first dump that shows the hang: torch takes its time to get there."""
    last: list[Dump] = []

    def look() -> bool:
        time.sleep(2)  # a signal interrupts what torch waits for; a storm of them keeps it from its rendezvous
        last[:] = [dump_run(lab.run, ranks=None, why="test", by="tester")]
        return bool(condition(last[0]))

    until(look, 180, lambda: last[0].summary + "".join(d.text for d in last[0].dumps))
    return last[0]


def inside(found: Dump, words: str) -> list[RankDump]:
    return [d for d in found.dumps if words in d.text and not d.is_rank]


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_collective_waits_for_a_data_loader(lab: Lab, tmp_path: Path, how: str) -> None:
    env = {
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "HOW": how,
        "OMP_NUM_THREADS": "1",
    }
    for rank in range(3):
        lab.start(lab.order([sys.executable, str(tmp_path / "train.py")], rank=rank, env=env))
    want = "ranks 0, 1 in all_reduce at train.py:5; rank 2 in next(loader) at data.py:7"
    found = settled(lab, lambda f: f.summary == want and len(inside(f, "in __getitem__")) == 2)
    assert found.groups[0].ranks == (2,)
    workers = inside(found, "in _worker_loop")
    assert len(workers) == 2 and {d.how for d in workers} == {"faulthandler"}


def test_below_torchrun_its_workers_speak(lab: Lab, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", str(free_port())]
    lab.start(lab.order([*argv, str(tmp_path / "train.py")], env={"HOW": "fork", "OMP_NUM_THREADS": "1"}))
    want = "rank 0: torchrun: workers 0, 1 in all_reduce at train.py:5, worker 2 in next(loader) at data.py:7"
    found = settled(lab, lambda f: f.summary == want)
    assert sorted(d.worker for d in found.dumps if d.worker is not None) == [0, 1, 2]
