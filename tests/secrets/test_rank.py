"""A real shim: the rank has the secret, and nothing that orch writes, starts or says does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.runs.redact import redactor, secrets_of
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from tests.pod.shimlab import Lab
from workloads.contract.errors import RemoteError
from workloads.contract.files import atomic_write_json
from workloads.contract.secretfile import read_secrets

CANARY = "hf_canary_3f9a1c7e5b"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path)
    yield made
    made.close()


def test_the_rank_has_it_and_nothing_else_does(lab: Lab, tmp_path: Path) -> None:
    atomic_write_json(lab.run.secrets, {"HF_TOKEN": CANARY, "RANK": "77", "MULTI": "line one 1\nline two 2"})
    lab.sh('[ "$HF_TOKEN" = hf_canary_3f9a1c7e5"b" ] && echo it is there, rank $RANK; echo "$MULTI"; read x </dev/zero')
    lab.says(b"line two 2")
    assert b"it is there, rank 0" in lab.log()  # what orch sets itself is not replaced
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert holders == [lab.run.secrets] and lab.run.secrets.stat().st_mode & 0o777 == 0o600
    lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if _exists(p)]
    assert not any(CANARY.encode() in line for line in lines)
    listing = subprocess.run(["ps", "axww"], capture_output=True, check=True).stdout
    assert str(lab.rank().pid).encode() in listing and CANARY.encode() not in listing
    assert CANARY not in lab.story()
    assert CANARY.encode() not in Path(f"/proc/{lab.shims[0].pid}/environ").read_bytes()


def _exists(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def test_what_the_program_prints_is_hidden_when_it_is_shown(lab: Lab) -> None:
    atomic_write_json(lab.run.secrets, {"HF_TOKEN": CANARY})
    lab.sh('echo "token=$HF_TOKEN"; printf "u:%s" "$HF_TOKEN" | base64')
    lab.ended()
    redact = redactor(secrets_of(lab.run))
    text = redact(lab.log().decode())
    assert (
        text.startswith("token=[secret HF_TOKEN]\n") and "canary" not in text and text.count("[secret HF_TOKEN]") == 2
    )


@pytest.mark.parametrize("harm", ["mode", "link", "torn", "number", "fifo"])
def test_a_file_that_is_not_as_it_was_written_is_not_used(lab: Lab, harm: str, tmp_path: Path) -> None:
    path = lab.run.secrets
    atomic_write_json(path, {"HF_TOKEN": CANARY})
    if harm == "mode":
        path.chmod(0o644)
    elif harm == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "torn":
        path.write_text(f'{{"HF_TOKEN": "{CANARY}')
    elif harm == "number":
        path.write_text('{"HF_TOKEN": 3}')
    else:
        path.unlink()
        os.mkfifo(path, 0o600)
    lab.sh("echo started")
    record = lab.ended()
    assert record["cause"] == "spawn-failed" and "secrets cannot be read" in record["error"]
    assert CANARY not in record["error"] and lab.log() == b""
    with pytest.raises((ValueError, OSError)) as e:
        read_secrets(lab.run)
    assert CANARY not in str(e.value)


def test_the_operator_gets_them_over_its_connection(lab: Lab, tmp_path: Path) -> None:
    root = tmp_path / "far"
    (root / "runs").mkdir(parents=True)
    lab.run.path.rename(root / "runs" / lab.run.run_id)
    pod = FarPod("far", LocalTransport(), root=str(root))
    try:
        run = pod.home.run(lab.run.run_id)
        assert pod.call("secrets.read", {"run": run.run_id}).fields == {"values": {}}
        atomic_write_json(run.secrets, {"HF_TOKEN": CANARY})
        assert pod.call("secrets.read", {"run": run.run_id}).fields == {"values": {"HF_TOKEN": CANARY}}
        run.secrets.chmod(0o666)
        with pytest.raises(RemoteError, match="0600"):
            pod.call("secrets.read", {"run": run.run_id})
        with pytest.raises(RemoteError):
            pod.call("secrets.read", {"run": "../../etc"})
    finally:
        pod.close()
