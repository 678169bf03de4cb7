"""A secret and Ray's token through a whole thread over SSH: who has them, who never does, who may read what is left.

While the run is launched every process of this machine (the pod is on it) is looked at, again and again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pods.keeper.client import KeeperClient
from tests.far.conftest import POD, Far
from tests.local.test_secrets import holders, jobs_of, ray_folders
from workloads.contract.rundir import OrchHome

pytestmark = [pytest.mark.ray, pytest.mark.long]
PROGRAM = (
    'import os, time\nprint("length", len(os.environ["HF_TOKEN"]), os.environ["HF_TOKEN"], flush=True)\ntime.sleep(2)\n'
)


class Eyes:
    """Reads the arguments of every process, and the environment of all but those of `may`, until it is closed."""

    def __init__(self, canary: bytes) -> None:
        self.canary, self.seen = canary, set[bytes]()
        self.looks = 0
        self.environments = set[bytes]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Eyes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _look(self) -> None:
        while not self._end.wait(0.005):
            self.looks += 1
            for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if self.canary in line:
                        self.seen.add(line)
                    if self.canary in Path(f"/proc/{pid}/environ").read_bytes():
                        self.environments.add(line.split(b"\0")[0] + b" " + line.split(b"\0", 1)[-1][:60])


def others(home: OrchHome) -> Iterator[str]:
    """What below `home` somebody else could read or write."""
    for path in [home.path, *home.path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            st = path.lstat()
            if not stat.S_ISLNK(st.st_mode) and st.st_mode & 0o077:
                yield f"{stat.filemode(st.st_mode)} {path.relative_to(home.path)}"


def test_secrets_token_and_modes(far: Far) -> None:
    orch, there = far.orch, far.there
    canary = f"hf_canary_{secrets.token_hex(12)}"
    (orch.work / "tell.py").write_text(PROGRAM)
    orch.extra_env["HF_TOKEN"] = canary
    command = ("--pod", POD, "--name", "teller", "--set", "secrets=[HF_TOKEN]", "--", "python", "tell.py")
    try:
        with Eyes(canary.encode()) as eyes:
            plan = orch("launch", "--dry-run", *command)
            run = far.launch(*command[2:])
            there.wait(run, "succeeded", "failed")
    finally:
        del orch.extra_env["HF_TOKEN"]
    assert f"length {len(canary)} {canary}" in run.rank_log(0).read_text(), there.story(run)
    assert eyes.looks > 5 and eyes.seen == set(), "never an argument of any process"
    foreign = [line for line in eyes.environments if b"orchestrator.cli" not in line and b"tell.py" not in line]
    assert foreign == [], "in the environment of the operator's command and of the rank alone"

    shown = [plan] + [orch(*words) for words in (
        ("logs", run.run_id), ("logs", run.run_id, "--json"), ("status", run.run_id), ("status", "--json"),
        ("runs", "--from", POD), ("pull", run.run_id), ("dashboard", POD, "--help"), ("pods", "list", "--json"),
    )]  # fmt: skip
    ray = KeeperClient(there.home).ray()
    shown += [str(ray), jobs_of(there.home, ray["dashboard_port"], run.run_id)]
    assert not any(canary in text for text in shown) and "[secret HF_TOKEN]" in shown[1]

    copy = far.mirror(run.run_id)
    assert set(holders(there.home.path, canary.encode())) == {run.secrets, run.rank_log(0)}
    assert set(holders(orch.home.path, canary.encode())) == {copy.rank_log(0)}  # what the program itself printed
    assert set(holders(Path(str(far.sshd.home)), canary.encode())) == set()
    assert [p for folder in ray_folders(there.home) for p in holders(folder, canary.encode())] == []

    assert {stat.S_IMODE(folder.stat().st_mode) for folder in ray_folders(there.home)} == {0o700}

    (token_file,) = (there.home.path / "ray").glob("*/token")
    token = token_file.read_text().strip()
    assert not any(token in text for text in shown)
    assert set(holders(orch.home.path, token.encode())) == set()
    assert set(holders(there.home.path, token.encode())) == {token_file}
    with Eyes(token.encode()) as eyes:
        orch("status", run.run_id)
    assert eyes.looks > 1 and eyes.seen == set()

    assert sorted(others(orch.home)) == []
    shared = [x for x in others(there.home) if x.split()[1] == "leases"]  # of all accounts of a machine, as /tmp is
    assert sorted(others(there.home)) == shared
