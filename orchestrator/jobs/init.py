"""`orch init`: a commented job file here and a commented inventory at home. Never overwrites a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pods.remote.stage import ensure_home
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.files import fsync_dir, write_all
from workloads.contract.rundir import OrchHome

TEMPLATES = Path(__file__).parent / "templates"
JOB_NAME = "job.yaml"


def write_templates(directory: Path, home: OrchHome) -> list[Path]:
    """The files that were written. ConflictError, with nothing written, when `directory` has a job.yaml already."""
    job = directory / JOB_NAME
    if job.exists() or job.is_symlink():
        raise ConflictError(
            "E-INIT-001", f"{JOB_NAME} is there already", where=str(job), fix="orch init another-directory"
        )
    ensure_home(home)
    written = []
    if not (home.inventory.exists() or home.inventory.is_symlink()):
        written.append(_write(TEMPLATES / "pods.yaml", home.inventory))
    written.append(_write(TEMPLATES / JOB_NAME, job))
    return written


def _write(template: Path, target: Path) -> Path:
    try:
        _make_directory(target.parent)
        with target.open("xb", buffering=0) as f:
            _fill(target, f.fileno(), template.read_bytes())
        fsync_dir(target.parent)
    except FileExistsError as e:
        raise ConflictError(
            "E-INIT-001", f"{target.name} is there already", where=str(target), fix="orch init another-directory"
        ) from e
    except OSError as e:
        raise LocalError(
            "E-INIT-002", f"the file cannot be written: {e.strerror}", where=str(target),
            fix="orch init another-directory",
        ) from e  # fmt: skip
    return target


def _fill(target: Path, fd: int, text: bytes) -> None:
    """A file that could not be written whole is taken away: half a template would be read as a job."""
    try:
        write_all(fd, text)
    except OSError:
        target.unlink()
        raise


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from e
