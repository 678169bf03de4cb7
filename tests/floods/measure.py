"""What a process needs at most: VmHWM (proc(5)), read by itself when it ends. Called by the tests and `__main__` here.

Each subject is a process of its own that does what the real part does, on a run that was flooded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 256
"""Stated bound of every part of orch that reads what ranks and other people write."""
TELL = """
import atexit, os
def _tell():
    with open('/proc/self/status') as f:
        line = next(x for x in f if x.startswith('VmHWM'))
    with open(os.environ['PEAK_FILE'], 'w') as f:
        f.write(line.split()[1])
atexit.register(_tell)
"""

ENGINE = """
import sys, time
from pathlib import Path
from tests.supervisor.direct import Desk
from workloads.contract.rundir import RunDir
desk = Desk(RunDir(Path(sys.argv[1])))
for _ in range(int(sys.argv[2])):
    desk.engine.tick(time.monotonic())
print(desk.status.get("state"), desk.status.get("step"))
"""

KEEPER = """
import sys, time
from pathlib import Path
from pods.keeper.keeper import Keeper
from workloads.contract.rundir import OrchHome
keeper = Keeper(OrchHome(Path(sys.argv[1])))
for _ in range(3):
    keeper.runs.look(time.monotonic())
    for watch in keeper.runs.active():
        keeper._care(watch)
print(len(list(keeper.runs.active())))
"""

MIRROR = """
import sys
from pathlib import Path
from orchestrator.runs.source import FarSource
from pods.pod import FarPod
from pods.remote.runfiles import name_in
from pods.transport.local import LocalTransport
from workloads.contract.rundir import OrchHome
home, there, run = OrchHome(Path(sys.argv[1])), OrchHome(Path(sys.argv[2])), sys.argv[3]
pod = FarPod("box", LocalTransport(), root=str(there.path))
source = FarSource(home, home.mirrored(run), "box", lambda: pod)
names = {name_in(there.run(run), there.run(run).rank_log(k)): None for k in (0, 1)}
for _ in range(5):
    while source.refresh("logs", names):
        pass
view = source.view()
with open("/proc/%d/status" % pod.hello["pid"]) as f:
    print(int(next(x for x in f if x.startswith("VmHWM")).split()[1]) // 1024, view.state)
pod.close()
"""

CLI = """
import runpy, sys
sys.argv = ["orch", *sys.argv[1:]]
runpy.run_module("orchestrator.cli", run_name="__main__")
"""


@dataclass(frozen=True)
class Peak:
    mib: int
    seconds: float
    out: str
    err: str


def peak(code: str, *args: str, folder: Path, timeout_s: float = 3000.0, **env: str) -> Peak:
    """Run `code` with `args`; AssertionError when it ends badly."""
    told, out_path = folder / "peak", folder / "out"
    given = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    given |= {"PYTHONPATH": str(ROOT), "PEAK_FILE": str(told), **env}
    began = time.monotonic()
    with out_path.open("wb") as out:  # not a pipe: what is printed may be a gigabyte
        done = subprocess.run(
            [sys.executable, "-c", TELL + code, *args], env=given, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.PIPE, timeout=timeout_s,
        )  # fmt: skip
    seconds = time.monotonic() - began
    err = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"exit {done.returncode}: {err[-2000:]}"
    with out_path.open("rb") as f:
        head = f.read(4000).decode(errors="replace")
    return Peak(int(told.read_text()) // 1024, seconds, head, err)
