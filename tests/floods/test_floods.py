"""Whatever is written into a run directory, and however much of it: each part that reads it stays below 256 MiB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.floods.flood import SMALL, Flooded, flooded
from tests.floods.measure import LIMIT_MIB
from tests.floods.subjects import peaks


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flooded]:
    monkeypatch.setenv("ORCH_LEASES", str(tmp_path / "leases"))
    found = flooded(tmp_path, SMALL)
    yield found
    found.close()


@pytest.mark.long
def test_no_part_needs_more_than_it_may(made: Flooded, tmp_path: Path) -> None:
    found = dict(peaks(made, SMALL, tmp_path))
    table = "\n".join(f"{part}: {p.mib} MiB, {p.seconds:.1f} s" for part, p in found.items())
    assert max(p.mib for p in found.values()) <= LIMIT_MIB, table
    assert found["supervisor's engine"].out.split()[:2] == ["running", str(SMALL.beats - 1)]
    assert "RuntimeError: the last line" in found["orch logs --errors"].out
    assert "after the hole" in found["orch logs -n 20"].out
