"""A pod over SSH for the whole session: a real sshd on loopback, an `$ORCH_HOME` there and another one here."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.sshd import Sshd, why_no_sshd
from tests.local.conftest import Orch, make_orch
from workloads.contract.rundir import OrchHome, RunDir

POD = "box"


@dataclass
class Far:
    """The `orch` command of an operator, and the pod it uses, seen from inside."""

    orch: Orch
    sshd: Sshd
    there: Orch

    def run_there(self, run_id: str) -> RunDir:
        return self.there.home.run(run_id)

    def mirror(self, run_id: str) -> RunDir:
        return self.orch.home.mirrored(run_id)

    def launch(self, *args: str) -> RunDir:
        """Launch on the pod; the run's directory there."""
        return self.run_there(json.loads(self.orch("launch", "--json", "--pod", POD, *args))["run"])

    def another_operator(self) -> Orch:
        """A machine that never saw the runs, with the same pod."""
        other = make_orch()
        add_pod(other, self.sshd, self.there.home)
        return other


def add_pod(orch: Orch, sshd: Sshd, root: OrchHome, name: str = POD) -> None:
    orch(
        "pods", "add", name, sshd.target, "--identity", str(sshd.identity), "--fingerprint", fingerprint(sshd.host_key),
        "--root", str(root.path), "--python", sys.executable,
    )  # fmt: skip


@pytest.fixture(scope="session")
def far() -> Iterator[Far]:
    why = why_no_sshd()
    if why:
        pytest.skip(why)
    orch, there = make_orch(), make_orch()
    with (
        tempfile.TemporaryDirectory(prefix="orch-sshd-") as folder,
        Sshd(Path(folder), env={"ORCH_LEASES": str(there.home.path / "leases")}) as sshd,
    ):
        try:
            add_pod(orch, sshd, there.home)
            yield Far(orch, sshd, there)
        finally:
            orch.remove()
            there.remove()


def fingerprint(key: str) -> str:
    """As OpenSSH shows it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
