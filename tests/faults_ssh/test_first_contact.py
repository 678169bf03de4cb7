"""A link that is cut after any number of bytes while orch first comes to a pod: the next try is as if nothing was."""

from __future__ import annotations

import time

import pytest

from pods.bundle import remote_bundle
from tests.faults_ssh.conftest import Reach
from tests.lab.disk import PodOptions
from tests.lab.fixtures import MakeLab
from tests.lab.lab import Lab
from tests.lab.pod import LabPod
from workloads.contract.errors import UnreachableError

pytestmark = pytest.mark.lab


def laid_down(pod: LabPod, home: str) -> dict[str, int]:
    """Files below an ORCH_HOME there, with their sizes; none of Python's own, none that a lost command still has."""
    top = pod.path(home)
    found = (p for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts and ".tmp." not in p.name)
    return {str(p.relative_to(top)): p.stat().st_size for p in found}


def first_contact(lab: Lab, pod: LabPod, reach: Reach, home: str) -> None:
    far = reach(lab, pod, root=home, timeout_s=2)
    try:
        assert far.call("home.tree", {"hash": "0" * 12}).fields["there"] is False
    finally:
        far.close()


def undisturbed(lab: Lab, pod: LabPod, reach: Reach) -> tuple[int, dict[str, int]]:
    """The bytes that a first contact costs, and what it leaves there."""
    with pod.metered() as read:
        first_contact(lab, pod, reach, "/workspace/whole")
        total = read()
    return total, laid_down(pod, "/workspace/whole")


def nothing_begun_stays(pod: LabPod) -> None:
    """A command whose connection is lost removes what it began once its sshd has noticed (here by ClientAlive)."""
    deadline = time.monotonic() + 60
    while left := [p for p in pod.path("/workspace").rglob("*") if ".tmp." in p.name or ".new." in p.name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def cut_points(total: int, count: int) -> list[int]:
    """Bytes after which to cut: the handshakes closely, the rest evenly."""
    early = [0, 2000, 4000, 6000]
    return early + [6000 + (total - 6000) * k // (count + 1) for k in range(1, count + 1)]


QUICK = PodOptions(sshd={"ClientAliveInterval": "1"})


def test_a_first_contact_cut_anywhere_is_made_good_by_the_next(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(1, QUICK)
    pod = lab["pod-a"]
    with lab.inside():
        total, whole = undisturbed(lab, pod, reach)
        assert total > len(remote_bundle().data) and len(whole) > 10
        cut = 0
        for n, size in enumerate(cut_points(total, 4)):
            home = f"/workspace/cut{n}"
            with pod.cut_after(size):
                try:
                    first_contact(lab, pod, reach, home)
                except UnreachableError:
                    cut += 1
            first_contact(lab, pod, reach, home)
            assert laid_down(pod, home) == whole, f"cut after {size} of {total} bytes"
        assert cut >= 7
    nothing_begun_stays(pod)


@pytest.mark.long
def test_a_first_contact_that_falls_silent_anywhere_is_made_good_by_the_next(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(1, QUICK)
    pod = lab["pod-a"]
    with lab.inside():
        total, whole = undisturbed(lab, pod, reach)
        for n, size in enumerate([2000, 5000, total // 3, total * 2 // 3, total - 1000]):
            home = f"/workspace/cut{n}"
            with pod.cut_after(size, silent=True), pytest.raises(UnreachableError):
                first_contact(lab, pod, reach, home)
            first_contact(lab, pod, reach, home)
            assert laid_down(pod, home) == whole, f"silent after {size} of {total} bytes"
    nothing_begun_stays(pod)
