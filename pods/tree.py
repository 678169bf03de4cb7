"""Orch's own packages as a content-addressed copy under `$ORCH_HOME/orch/<hash>`.

Keeper, supervisor, agent, shim and ranks run from such a copy, so that a run is not disturbed when the checkout or
the installed package changes under it, and a resume can use the very code the run was started with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

from workloads.contract.codehash import SUFFIXES
from workloads.contract.errors import LocalError
from workloads.contract.files import fsync_dir
from workloads.contract.rundir import STAGED_PREFIX, OrchHome

PACKAGES = ("orchestrator", "pods", "workloads", "kernels")


def source_root() -> Path:
    """The directory that holds the four packages this process runs from."""
    return Path(__file__).resolve().parent.parent


@cache
def tree_files(root: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for package in PACKAGES:
        for directory, folders, names in os.walk(root / package):
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            found += [Path(directory) / n for n in names if Path(n).suffix in SUFFIXES]
    return tuple(sorted(found))


@cache
def tree_hash(root: Path) -> str:
    """16 hex digits over names and contents of every file that travels."""
    digest = hashlib.sha256()
    for path in tree_files(root):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def tree_path(home: OrchHome) -> Path:
    """Where the copy of this process's own tree lies, or would lie. A process that runs from a copy stays with it."""
    root = source_root()
    return root if root.parent == home.trees else home.tree(tree_hash(root))


def ensure_tree(home: OrchHome) -> Path:
    """`tree_path(home)`, copied there if it is missing. Two at once do not collide. LocalError on a full disk."""
    target = tree_path(home)
    if target.is_dir():
        return target
    staged = home.trees / f"{STAGED_PREFIX}{target.name}.{os.getpid()}"
    root = source_root()
    try:
        for path in tree_files(root):
            copy = staged / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(path, copy)
        staged.rename(target)
        fsync_dir(home.trees)
    except OSError as e:
        shutil.rmtree(staged, ignore_errors=True)
        if target.is_dir():  # another process was faster
            return target
        raise LocalError(
            "E-HOME-002", f"orch's own files could not be copied: {e.strerror}", where=str(target),
            fix="free some space, or point ORCH_HOME to another disk",
        ) from e  # fmt: skip
    return target
