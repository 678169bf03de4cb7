"""Everything of a run brought home: its copy completed, and checkpoints fetched and verified against their manifests.

Names, sizes and hashes are those of a manifest, checked before a byte is asked for; nothing is ever unpickled. What an
earlier, cut pull left is gone on with. Called by `orch pull`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.source import FarSource, fetch
from workloads.contract.errors import IntegrityError, LocalError, UsageError, escape
from workloads.contract.files import read_json
from workloads.contract.rundir import RunDir, step_of_checkpoint

MAX_FILES = 16_384
RESERVE_BYTES = 256 << 20
_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._][A-Za-z0-9._-]{0,127}", re.ASCII)  # DCP writes `.metadata`
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
Progress = Callable[[str, int, int | None], None]
"""(what is fetched, bytes so far, bytes in all when known)"""


@dataclass(frozen=True)
class Entry:
    """One file of a checkpoint, as its manifest says."""

    step: int
    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Pulled:
    run: RunDir
    steps: tuple[int, ...]
    size_bytes: int  # fetched now; what was there already is not counted


def pull(source: FarSource, *, checkpoints: str, logs: bool, progress: Progress) -> Pulled:
    """Bring the run of `source` into its copy. `checkpoints`: latest, all, none or a step.

    UsageError for a step that is not there; LocalError when the disk is too small; IntegrityError (exit 8) naming the
    file that is not what its manifest says.
    """
    fetch(source, "all" if logs else "no-logs", on_bytes=lambda n: progress("records and logs", n, None))
    steps = chosen_steps(source.run, checkpoints)
    entries = [e for step in steps for e in manifest_entries(source.run, step)]
    missing = [e for e in entries if not _is_here(source.run, e)]
    total = sum(e.size_bytes for e in missing)
    _refuse_full_disk(source.run, total)
    size = source.size_bytes + _fetch(source, missing, total, progress)
    return Pulled(source.run, tuple(steps), size)


def chosen_steps(run: RunDir, wanted: str) -> list[int]:
    """Steps of the checkpoints with a manifest in the copy that `wanted` names, oldest first."""
    try:
        names = [p.name for p in run.checkpoints.iterdir()]
    except OSError:
        names = []
    found = [s for s in map(step_of_checkpoint, names) if s is not None and run.manifest(run.checkpoint(s)).is_file()]
    steps = sorted(found)
    if wanted in ("latest", "all", "none"):
        return {"latest": steps[-1:], "all": steps, "none": []}[wanted]
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and int(wanted) in steps):
        raise UsageError(
            "E-PULL-002", f"run {run.run_id} has no checkpoint '{escape(wanted, 40)}'", where="--checkpoints",
            expected="latest, all, none" + "".join(f", {s}" for s in steps[-10:]), fix="--checkpoints latest",
        )  # fmt: skip
    return [int(wanted)]


def manifest_entries(run: RunDir, step: int) -> list[Entry]:
    """The files of one checkpoint. IntegrityError for a manifest with anything odd in it."""
    path = run.manifest(run.checkpoint(step))

    def bad(why: str, value: object = None) -> IntegrityError:
        return IntegrityError(
            "E-PULL-003", f"the manifest of checkpoint step {step} cannot be used: {why}", where=str(path),
            value=None if value is None else escape(value, 80), fix="pull another one: --checkpoints STEP",
        )  # fmt: skip

    try:
        rows = read_json(path).get("files")
    except (OSError, ValueError) as e:
        raise bad(escape(e, 200)) from e
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_FILES:
        raise bad("it lists no files")
    entries: dict[str, Entry] = {}
    for row in rows:
        told: dict[str, Any] = row if isinstance(row, dict) else {}
        name, size, sha256 = told.get("name"), told.get("size"), told.get("sha256")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == path.name or name in entries:
            raise bad("a file name", name)
        if type(size) is not int or not 0 <= size < 1 << 50 or not isinstance(sha256, str):
            raise bad("the size of a file", size)
        if not _SHA256.fullmatch(sha256):
            raise bad("the hash of a file", sha256)
        entries[name] = Entry(step, name, size, sha256)
    return list(entries.values())


def _is_here(run: RunDir, entry: Entry) -> bool:
    path = run.checkpoint(entry.step) / entry.name
    try:
        if path.is_symlink() or path.stat().st_size != entry.size_bytes:
            return False
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False


def _refuse_full_disk(run: RunDir, coming: int) -> None:
    disk = os.statvfs(run.path)
    free = disk.f_bavail * disk.f_frsize
    if coming and free < coming + min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 20):
        raise LocalError(
            "E-PULL-004", "too little free disk here for these checkpoints", where=str(run.path),
            value=f"{free >> 20} MiB free", expected=f"{coming >> 20} MiB",
            fix=f"orch pull {run.run_id} --to DIR   (on a larger disk)",
        )  # fmt: skip


def _fetch(source: FarSource, entries: Sequence[Entry], total: int, progress: Progress) -> int:
    from pods.copy import pull_file

    pod, done = source.far_pod(), 0
    there = pod.home.path / "runs" / source.run.run_id
    for entry in entries:
        label = f"checkpoint step {entry.step}"

        def on_bytes(count: int, label: str = label) -> None:
            nonlocal done
            done += count
            progress(label, done, total)

        target = source.run.checkpoint(entry.step) / entry.name
        if target.is_symlink():
            target.unlink()
        path = str(RunDir(there).checkpoint(entry.step) / entry.name)
        pull_file(pod, path, target, size=entry.size_bytes, sha256=entry.sha256, on_bytes=on_bytes)
    return done


def place(directory: Path, run_id: str) -> RunDir:
    """Where `--to DIR` puts a run. LocalError when something else lies there."""
    run = RunDir(directory.expanduser().absolute() / run_id)
    from orchestrator.runs.mirror import INDEX_NAME

    if run.path.is_symlink() or (run.path.exists() and not (run.path / INDEX_NAME).is_file()):
        raise LocalError(
            "E-PULL-005", "something that is no copy of this run lies there", where=str(run.path),
            fix="--to another directory",
        )  # fmt: skip
    return run
