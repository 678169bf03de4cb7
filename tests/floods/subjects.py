"""Every part that reads a flooded run, and what it needs at most. Called by the tests and `__main__` here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.floods.flood import Flooded, Size
from tests.floods.measure import CLI, ENGINE, KEEPER, MIRROR, Peak, peak


def peaks(made: Flooded, size: Size, folder: Path) -> Iterator[tuple[str, Peak]]:
    """(part, what it needed), one after the other."""
    run, home = made.run, made.home
    orch = {"ORCH_HOME": str(home.path)}
    ticks = size.beats * 180 // (16 << 20) + 20
    yield "supervisor's engine", peak(ENGINE, str(run.path), str(ticks), folder=folder)
    yield "keeper", peak(KEEPER, str(home.path), folder=folder)
    yield "orch status RUN", peak(CLI, "status", run.run_id, folder=folder, **orch)
    yield "orch status", peak(CLI, "status", folder=folder, **orch)
    yield "orch runs", peak(CLI, "runs", folder=folder, **orch)
    yield "orch logs -n 20", peak(CLI, "logs", run.run_id, "-n", "20", folder=folder, **orch)
    yield "orch logs, all of it", peak(CLI, "logs", run.run_id, folder=folder, **orch)
    yield "orch logs --errors", peak(CLI, "logs", run.run_id, "--errors", folder=folder, **orch)
    yield "orch logs --since 1h", peak(CLI, "logs", run.run_id, "--since", "1h", "--rank", "0", folder=folder, **orch)
    copies = folder / "copies"
    copies.mkdir()
    mirror = peak(MIRROR, str(copies), str(home.path), run.run_id, folder=folder)
    yield "the copy, at home", mirror
    yield "the copy, on the pod", Peak(int(mirror.out.split()[0]), mirror.seconds, mirror.out, "")
    shutil.rmtree(copies)
