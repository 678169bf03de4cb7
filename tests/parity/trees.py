"""Orch's four packages as a tree of their own, with a few lines of them changed, as a person would change them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pods.tree import PACKAGES, source_root

CASES = "kernels/decoupled/parity.py"
FEW = (CASES, "    return made\n", "    return made[:6]\n")
"""The suite of a few real cells, so that a test of the run costs seconds."""
BROKEN = ("kernels/decoupled/triton_reduce.py", "        acc += w * v\n", "        acc += v\n")
"""The null token without its weight."""
SUITE = "decoupled"


def make_tree(root: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of the packages under `root`, where each (file, line, other line) is applied once."""
    for package in PACKAGES:
        shutil.copytree(source_root() / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in changes:
        change(root, name, old, new)
    return root


def change(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert text.count(old) == 1, f"{name} has {text.count(old)} lines {old!r}"
    (root / name).write_text(text.replace(old, new))


def a_cell(**params: Any) -> str:
    """The id of a cell of the short matrix that an interpreter can judge and that has these parameters."""
    from kernels.parity import cells_of

    found = [c.id for c in cells_of(SUITE, False) if not c.gpu_only and params.items() <= dict(c.params).items()]
    assert found, params
    return found[0]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
