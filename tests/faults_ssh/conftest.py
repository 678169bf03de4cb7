"""Pods of the lab, and what reaches one of them from the laptop in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pods.pod import FarPod
from pods.transport.ssh import SshTransport
from tests.lab.fixtures import lab, make_lab  # noqa: F401
from tests.lab.lab import Lab
from tests.lab.pod import LabPod

Reach = Callable[..., FarPod]


@pytest.fixture
def reach() -> Iterator[Reach]:
    """`reach(lab, pod, **spec)`: connect to it within `lab.inside()`; closed after the test."""
    with ExitStack() as stack:

        def make(of: Lab, pod: LabPod, *, timeout_s: float = 5.0, **spec: str) -> FarPod:
            given = pod.spec(of.identity, **spec)
            transport = SshTransport(pod.name, given, timeout_s=timeout_s)
            far = FarPod(pod.name, transport, root=given.root, python=given.python)
            stack.callback(far.close)
            return far

        yield make
