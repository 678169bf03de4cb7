"""What the operator's side never does, by its source: it opens no archive and no pickle, nor imports what does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPENERS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "torch", "numpy", "tarfile"}
"""modules that carry out, or write by name, what somebody else has packed"""
CALLS = {"eval", "exec", "unpack_archive", "extractall", "unsafe_load", "full_load", "allow_pickle"}
ZIPS = {"pods/bundle.py", "pods/environment/home.py"}
"""they open what was made or fetched here, never what came from a pod"""


def sources() -> Iterator[Path]:
    for folder in ("orchestrator", "pods", "workloads/contract"):
        yield from (ROOT / folder).rglob("*.py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", ""))
            yield from (word.arg for word in node.keywords if word.arg)


def test_nothing_at_home_unpickles_or_unpacks() -> None:
    found = []
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        foreign = set(imported(tree)) & (OPENERS if name in ZIPS else OPENERS | {"zipfile"})
        builtin = {c for c in called(tree) if c in CALLS}
        found += [(name, word) for word in sorted(foreign | builtin)]
    assert found == []


def test_yaml_is_read_by_the_strict_loader_alone() -> None:
    loads = [
        (path.relative_to(ROOT).as_posix(), node.lineno)
        for path in sources() for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "load_all", "safe_load")
        and isinstance(node.value, ast.Name) and node.value.id == "yaml"
    ]  # fmt: skip
    assert loads == []


MODULES = "orchestrator.runs.pull orchestrator.runs.mirror orchestrator.inventory.transfer pods.copy pods.transport.ssh"


def test_pulling_loads_no_torch() -> None:
    code = (
        f"import sys, {', '.join(MODULES.split())}; print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "word", ["AutoAddPolicy", "WarningPolicy", "StrictHostKeyChecking=no", "accept-new", "shell=True"]
)
def test_words_that_must_not_be_there(word: str) -> None:
    assert [p.name for p in sources() if word in p.read_text()] == []
