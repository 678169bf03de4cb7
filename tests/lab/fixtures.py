"""Fixtures of the lab, for the conftest of any folder: `from tests.lab.fixtures import lab, make_lab  # noqa: F401`.

`lab` has two plain pods for the whole session; a test leaves them running and connected. `make_lab` builds one with
other pods for one test. Both skip with the reason where the lab cannot be had. Mark such tests `lab`. `sshd` and
`make_sshd` are real ones on loopback, for one test, and need no root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import PodOptions
from tests.lab.lab import Lab
from tests.lab.need import LabUnavailable, missing
from tests.lab.sshd import NotHere, Sshd, why_no_sshd


def skip_without_lab() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    skip_without_lab()
    with Lab(pods=2) as made:
        yield made


MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """`make_lab(pods, options, inventory=True)`, as `Lab`; closed after the test."""
    skip_without_lab()
    with ExitStack() as stack:

        def build(
            pods: int = 1, options: PodOptions | Mapping[str, PodOptions] | None = None, *, inventory: bool = True
        ) -> Lab:
            try:
                return stack.enter_context(Lab(pods, options, inventory=inventory))
            except LabUnavailable as e:
                pytest.skip(str(e))

        yield build


MakeSshd = Callable[..., Sshd]


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[MakeSshd]:
    """`make_sshd("name", **options)`: started, and ended with the test."""
    if (reason := why_no_sshd()) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:

        def make(name: str = "pod", **options: Any) -> Sshd:
            try:
                return stack.enter_context(Sshd(tmp_path / name, **options))
            except NotHere as e:
                pytest.skip(str(e))

        yield make


@pytest.fixture
def sshd(make_sshd: MakeSshd) -> Sshd:
    return make_sshd()
