"""NCCL's flight recorder of a real torch on a real GPU, asked through the pipe. Its trace is never loaded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.remote.dump import dump_run
from tests.pod.shimlab import Lab, until

HUNG = """
import os, time, torch, torch.distributed as dist
os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='29643', WORLD_SIZE='1')
dist.init_process_group('nccl', device_id=torch.device('cuda', 0))
x = torch.ones(8, device='cuda')
for _ in range(3): dist.all_reduce(x)
torch.cuda.synchronize()
print('up', flush=True)
def wait():
    while True: time.sleep(0.05)
wait()
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU")
def test_a_real_recorder_answers(lab: Lab) -> None:
    lab.start(lab.order([sys.executable, "-c", HUNG], devices=["GPU-test"]))
    until(lambda: b"up" in lab.log(), 180, lab.story)
    found = dump_run(lab.run, ranks=None, why="test", by="watchdog", watchdog=True)
    copies = [name for name in found.files if name.startswith("nccl_rank0_")]
    assert len(copies) == 1, found.notes
    assert b"all_reduce" in (lab.run.stackdumps / copies[0]).read_bytes()
    assert any(name.startswith("nvidia_smi_") for name in found.files), found.notes
    assert found.summary == "rank 0 in wait at <string>:10" and found.seconds < 6 and lab.rank().alive()
