"""What the network and the power do to a connected pod: found out in bounded time, told as what it is, and passing."""

from __future__ import annotations

import time

import pytest

from pods.bundle import remote_bundle
from pods.pod import FarPod
from tests.faults_ssh.conftest import Reach
from tests.lab.disk import PodOptions
from tests.lab.fixtures import MakeLab
from tests.lab.lab import Lab
from tests.lab.pod import LabPod
from workloads.contract.errors import RefusedError, UnreachableError

pytestmark = pytest.mark.lab
NOTICED_S = 15.0


def asked(far: FarPod) -> None:
    """One operation, answered."""
    assert far.call("home.tree", {"hash": "0" * 12}).fields["there"] is False


def test_a_reset_loses_one_call_and_no_more(lab: Lab, reach: Reach) -> None:
    pod = lab["pod-a"]
    with lab.inside():
        far = reach(lab, pod)
        asked(far)
        began = time.monotonic()
        with pod.reset(), pytest.raises(UnreachableError):
            asked(far)
        assert time.monotonic() - began < 5
        asked(far)


def test_a_power_cut_is_unreachable_and_the_pod_answers_again_after_the_boot(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    with lab.inside():
        far = reach(lab, pod, timeout_s=1)
        asked(far)
        pod.power_cut()
        with pytest.raises(UnreachableError):
            asked(far)
        with pytest.raises(UnreachableError) as refused:
            asked(far)
        assert "refuses the connection" in refused.value.what
        pod.boot()
        asked(far)


def test_a_pod_at_the_address_of_another_is_refused_before_anybody_logs_in(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(2)
    a, b = lab["pod-a"], lab["pod-b"]
    with lab.inside():
        far_a, far_b = reach(lab, a), reach(lab, b)  # at the addresses they had when they were pinned
        with lab.swapped("pod-a", "pod-b"):
            for far in (far_a, far_b):
                with pytest.raises(RefusedError) as error:
                    asked(far)
                assert "repin" in str(error.value.fix)
        assert "Accepted" not in a.sshd_log + b.sshd_log
        asked(far_a)
        asked(far_b)
        assert "Accepted publickey" in a.sshd_log


def test_one_session_at_a_time_is_enough(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(1, PodOptions(sshd={"MaxSessions": "1"}, sftp=False))
    with lab.inside():
        far = reach(lab, lab["pod-a"])
        for _ in range(20):
            asked(far)
    assert lab["pod-a"].sshd_log.count("Accepted publickey") == 1


@pytest.mark.long
def test_a_far_and_lossy_pod_answers(lab: Lab, reach: Reach) -> None:
    pod = lab["pod-b"]
    with lab.inside(), pod.far(0.04, loss=0.02):
        far = reach(lab, pod)
        asked(far)
        began = time.monotonic()
        for _ in range(10):
            asked(far)
        assert time.monotonic() - began > 10 * 0.04  # it was as far as that


@pytest.mark.long
@pytest.mark.parametrize("how", ["cut", "silent"])
def test_a_cut_is_noticed_within_15_s(lab: Lab, reach: Reach, how: str) -> None:
    pod: LabPod = lab["pod-a"]
    with lab.inside():
        far = reach(lab, pod)
        asked(far)
        with getattr(pod, how)():
            began = time.monotonic()
            with pytest.raises(UnreachableError):
                far.call("home.tree", {"hash": "0" * 12}, timeout_s=60)
            assert time.monotonic() - began < NOTICED_S
        asked(far)


@pytest.mark.long
def test_a_short_cut_is_only_a_wait(lab: Lab, reach: Reach) -> None:
    pod = lab["pod-a"]
    with lab.inside():
        far = reach(lab, pod)
        asked(far)
        with pod.cut():
            time.sleep(4)
        asked(far)
    assert pod.sshd_log.rstrip().splitlines()[-1].find("Disconnected") < 0


@pytest.mark.long
def test_a_slow_link_carries_what_a_pod_needs(make_lab: MakeLab, reach: Reach) -> None:
    lab = make_lab(1)
    pod = lab["pod-a"]
    with lab.inside(), pod.slow("256kbit"), pod.lossy(0.01):
        began = time.monotonic()
        asked(reach(lab, pod, timeout_s=10))
        assert time.monotonic() - began > len(remote_bundle().data) / 32_000 / 2  # it did go over that link
