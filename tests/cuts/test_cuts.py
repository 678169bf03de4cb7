"""Logs over a connection that is reset, or falls silent, again and again: the copy and the screen have every byte once.

A thousand resets and twenty silences: `make cuts`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuts.drive import copied, followed
from tests.cuts.silence import silenced
from tests.lab.fixtures import make_sshd, skip_without_lab, sshd  # noqa: F401
from tests.lab.sshd import Sshd


@pytest.mark.long
def test_a_copy_made_over_a_connection_that_breaks_is_the_log(tmp_path: Path, sshd: Sshd) -> None:  # noqa: F811
    done = copied(4, 1, tmp_path, sshd)
    assert (done.cuts, done.problem) == (4, "") and done.size_bytes > 100_000


@pytest.mark.long
def test_forty_resets_while_the_mirror_copies(tmp_path: Path, sshd: Sshd) -> None:  # noqa: F811
    done = copied(40, 20261121, tmp_path, sshd)
    assert (done.cuts, done.problem) == (40, "")


@pytest.mark.long
def test_what_is_followed_over_a_connection_that_breaks_is_the_log(tmp_path: Path, sshd: Sshd) -> None:  # noqa: F811
    done = followed(10, 3, tmp_path, sshd, limit_s=240)
    assert done.problem == "" and done.cuts == 10


@pytest.mark.long
@pytest.mark.lab
def test_two_silences_while_logs_are_followed() -> None:
    skip_without_lab()
    for done in silenced(2, 2, 5):
        assert (done.problem, done.cuts) == ("", 1)
