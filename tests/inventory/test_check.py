"""`orch pods check` as a person has it: the real command, real sshds, and pods that do not answer or refuse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from orchestrator.inventory.check import Checked, worst
from orchestrator.inventory.finding import Finding
from tests.cli.conftest import Orch
from tests.lab.sshd import Sshd, free_port, make_key, public_key
from workloads.contract.errors import ConflictError, OrchError, RefusedError, RemoteError, UnreachableError
from workloads.contract.rundir import OrchHome


@pytest.fixture
def pods(home: OrchHome, sshd: Sshd, tmp_path: Path) -> OrchHome:
    """Four pods: one that is fine, one whose root cannot be, one that is not there, one that shows another key.

    An inventory has one name for one key, so a test takes some of them (`only`).
    """
    here = {"ssh": sshd.target, "host_key": sshd.host_key, "identity": str(sshd.identity), "root": str(tmp_path / "o")}
    user = sshd.target.split("@")[0]
    nobody, other = (public_key(make_key(tmp_path / name)) for name in ("nobody", "other"))
    inventory = {
        "good": here,
        "bad-root": {**here, "root": "/proc/no/such"},
        "gone": {**here, "ssh": f"{user}@127.0.0.1:{free_port()}", "host_key": nobody},
        "other": {**here, "ssh": sshd.target.replace("127.0.0.1", "localhost"), "host_key": other},
    }
    home.path.mkdir(exist_ok=True)
    home.inventory.write_text(yaml.safe_dump({"pods": inventory}))
    home.inventory.chmod(0o600)
    return home


def only(home: OrchHome, *names: str) -> None:
    pods = yaml.safe_load(home.inventory.read_text())["pods"]
    home.inventory.write_text(yaml.safe_dump({"pods": {n: pods[n] for n in names}}))


def test_a_pod_that_is_fine(orch: Orch, pods: OrchHome) -> None:
    only(pods, "good")
    ran = orch("pods", "check")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("good  ok")
    for label in ("gpus", "machine", "cpu", "memory", "disks", "python", "user", "ssh"):
        assert f"\n  {label} " in ran.out
    assert os.uname().nodename in ran.out and "round trip" in ran.out and "clock " in ran.out


def test_a_failing_fact_and_what_to_type(orch: Orch, pods: OrchHome) -> None:
    only(pods, "bad-root")
    ran = orch("pods", "check", "bad-root")
    assert ran.code == 1 and "bad-root  not ok: 1 failure" in ran.out
    lines = ran.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  fail"))
    assert at == 1 and "/proc/no/such cannot be written by " in lines[1]
    assert lines[2].strip().startswith("fix: set `root:` of pod bad-root in pods.yaml")


def test_pods_that_do_not_answer_do_not_hide_the_others(orch: Orch, pods: OrchHome) -> None:
    only(pods, "gone", "good", "other")
    ran = orch("pods", "check")
    assert ran.code == 5
    assert "gone  unreachable\n  error[E-" in ran.out and "good  ok" in ran.out and "other  refused\n" in ran.out
    assert ran.out.index("gone") < ran.out.index("good  ok") < ran.out.index("other  refused")
    only(pods, "gone", "good")
    told = orch("pods", "check", "--json")
    assert told.code == 4 and told.json["v"] == 1 and told.json["ok"] is False
    gone, good = told.json["pods"]
    assert (gone["pod"], gone["ok"]) == ("gone", False) and gone["error"]["code"].startswith("E-SSH-")
    assert (good["pod"], good["ok"]) == ("good", True)
    assert good["facts"]["uid"] == os.getuid() and good["facts"]["unasked"] == []
    assert {"level", "name", "text", "fix"} == set(good["findings"][0]) if good["findings"] else True


def test_this_machine_and_a_name_that_nobody_knows(orch: Orch, home: OrchHome) -> None:
    ran = orch("pods", "check", "--json")
    assert [p["pod"] for p in ran.json["pods"]] == ["local"]
    assert ran.json["pods"][0]["facts"]["orch_home"] == str(home.path)
    assert orch("pods", "check", "nobody").code == 2


@pytest.mark.parametrize(
    ("kinds", "code"),
    [((), 0), (("fail",), 1), (("warn", "note"), 0), ((ConflictError,), 6), ((UnreachableError, "fail"), 4),
     ((RemoteError, UnreachableError), 4), ((UnreachableError, RefusedError, RemoteError), 5)],
)  # fmt: skip
def test_the_exit_code_says_the_worst(kinds: tuple[type[OrchError] | str, ...], code: int) -> None:
    checked = [
        Checked("x", findings=(Finding(k, "n", "t"),)) if isinstance(k, str) else Checked("x", error=k("E-X-1", "w"))  # type: ignore[arg-type]
        for k in kinds
    ]
    assert worst(checked) == code
