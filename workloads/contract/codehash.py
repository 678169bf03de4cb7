"""The hash of a package's code, made the same way by the operator and by a rank: which kernels a verdict is about.

Standard library only; called by `workloads.parity` and by the plan of a launch that requires parity.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SUFFIXES = frozenset({".py", ".yaml", ".json"})
"""What travels of a package (`pods.tree`), and so what a rank can run."""


def code_hash(package: Path) -> str:
    """16 hex digits over names and contents of the files of `package`. ValueError when there are none."""
    found: list[Path] = []
    for directory, folders, names in os.walk(package):
        folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
        found += [Path(directory) / n for n in names if Path(n).suffix in SUFFIXES]
    if not found:
        raise ValueError(f"there is no code in {package}")
    digest = hashlib.sha256()
    for path in sorted(found):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:16]
