"""Orch's own tree: copied once by content, complete, and the home of what runs from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pods import tree
from workloads.contract.errors import LocalError
from workloads.contract.rundir import OrchHome


def test_copied_once_and_runs_alone(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    first = tree.ensure_tree(home)
    assert first == tree.tree_path(home) == tree.ensure_tree(home)
    assert [p.name for p in home.trees.iterdir()] == [first.name]
    out = subprocess.run(
        [sys.executable, "-c", "import pods.tree as t; print(t.source_root())"],
        env={"PYTHONPATH": str(first), "PATH": os.environ["PATH"]}, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.strip() == str(first)


def test_what_runs_from_a_copy_stays_with_it(tmp_path: Path) -> None:
    copy = tree.ensure_tree(OrchHome(tmp_path))
    code = (
        "from pods.tree import ensure_tree; from workloads.contract.rundir import OrchHome; from pathlib import Path;"
        f"print(ensure_tree(OrchHome(Path({str(tmp_path)!r}))))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(copy)}, cwd="/", capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == str(copy)


def test_two_at_once_make_one(tmp_path: Path) -> None:
    code = (
        "from pods.tree import ensure_tree; from workloads.contract.rundir import OrchHome; from pathlib import Path;"
        f"print(ensure_tree(OrchHome(Path({str(tmp_path)!r}))))"
    )
    env = {**os.environ, "PYTHONPATH": str(tree.source_root())}
    racers = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {r.communicate(timeout=60)[0].strip() for r in racers}
    assert len(paths) == 1 and all(r.returncode == 0 for r in racers)
    assert len(list(OrchHome(tmp_path).trees.iterdir())) == 1


def test_a_change_of_content_changes_the_hash(tmp_path: Path) -> None:
    def make(name: str, text: str) -> Path:
        root = tmp_path / name
        (root / "pods").mkdir(parents=True)
        (root / "pods" / "a.py").write_text(text)
        return root

    hashes = {tree.tree_hash(make("1", "x = 1\n")), tree.tree_hash(make("2", "x = 2\n"))}
    assert len(hashes) == 2
    assert tree.tree_hash(make("3", "x = 1\n")) in hashes


def test_no_room_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LocalError) as e:
        tree.ensure_tree(OrchHome(blocked / "home"))
    assert e.value.code == "E-HOME-002"
