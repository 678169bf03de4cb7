"""An $ORCH_HOME of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.contract.rundir import OrchHome


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    made = OrchHome(tmp_path / "home")
    made.path.mkdir(mode=0o700)
    return made
