"""A run's weights as a folder that other programs read, written where the run lies and brought home from there.

The ranks' own Python does it (`workloads.export`); what it answers is checked, files by size and hash. Called by
`orch export`.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.source import Source
from pods.copy import pull_file
from pods.pod import Pod
from workloads.contract.errors import (
    ConflictError,
    IntegrityError,
    LocalError,
    OrchError,
    RemoteError,
    SpecError,
    escape,
)
from workloads.contract.rundir import RunDir

EXPORT_S = 3600.0
REMOVE_S = 60.0
MAX_FILES = 4096
_NAME = re.compile(r"(config|orch|model|model\.safetensors\.index)(-\d{5}-of-\d{5})?\.(json|safetensors)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KINDS: tuple[type[OrchError], ...] = (SpecError, LocalError, ConflictError, IntegrityError, RemoteError)
OnBytes = Callable[[int, int], None]
"""(bytes so far, bytes in all)"""


@dataclass(frozen=True)
class Exported:
    run: str
    step: int
    parameters: int
    folder: Path
    files: tuple[tuple[str, int, str], ...]
    """(name, bytes, sha256)"""

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size, _ in self.files)

    def as_json(self) -> dict[str, Any]:
        files = [{"name": name, "size": size, "sha256": digest} for name, size, digest in self.files]
        return {
            "v": 1, "run": self.run, "step": self.step, "parameters": self.parameters, "dir": str(self.folder),
            "files": files,
        }  # fmt: skip


def export(
    source: Source, pod: Pod, tree: str, *, checkpoint: str, out: Path, dtype: str, on_bytes: OnBytes
) -> Exported:
    """`checkpoint`: a name or `newest`. `tree`: orch's own files where the run lies. `out` must not be there."""
    run_dir = RunDir(pod.home.path / "runs" / source.run.run_id) if source.far else source.run
    there = pod.home.path / "exports" / f"{source.run.run_id}-{secrets.token_hex(4)}" if source.far else out
    argv = [_python(source), "-s", "-m", "workloads.export", str(run_dir.path), checkpoint, str(there), dtype]
    done = pod.transport.run(argv, timeout_s=EXPORT_S, env={"PYTHONPATH": tree, "CUDA_VISIBLE_DEVICES": ""})
    try:
        found = _read(done.stdout, done.stderr, source, out)
        if source.far:
            _bring(pod, there, found, on_bytes)
        return found
    finally:
        if source.far:
            pod.transport.run(["rm", "-rf", "--", str(there)], timeout_s=REMOVE_S)


def _python(source: Source) -> str:
    """The ranks' interpreter, as run.json names it."""
    pods = source.view().info.get("pods")
    first = pods[0] if isinstance(pods, list) and pods and isinstance(pods[0], dict) else {}
    python = first.get("python")
    if not isinstance(python, str):
        raise IntegrityError("E-RUN-020", "run.json is not whole: it names no Python", where=str(source.run.run_json))
    return python


def _read(stdout: str, stderr: str, source: Source, out: Path) -> Exported:
    try:
        told = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), dict):
        raise _error(told["error"], told.get("exit"))
    files = told.get("files") if isinstance(told, dict) else None
    step, parameters = (told.get(k) if isinstance(told, dict) else None for k in ("step", "parameters"))
    if not isinstance(files, list) or not 0 < len(files) <= MAX_FILES or type(step) is not int:
        raise RemoteError(
            "E-EXPORT-008", f"the export on pod {source.pod} ended without an answer", where=str(source.run.path),
            value=escape(stderr.strip().splitlines()[-1] if stderr.strip() else "", 300), fix="orch doctor",
        )  # fmt: skip
    entries = tuple(_entry(row, source) for row in files)
    return Exported(source.run.run_id, step, parameters if type(parameters) is int else 0, out, entries)


def _entry(row: object, source: Source) -> tuple[str, int, str]:
    told: Mapping[str, Any] = row if isinstance(row, dict) else {}
    name, size, digest = told.get("name"), told.get("size"), told.get("sha256")
    named = isinstance(name, str) and _NAME.fullmatch(name)
    if named and type(size) is int and 0 <= size < 1 << 50 and isinstance(digest, str) and _SHA256.fullmatch(digest):
        return str(name), size, digest
    raise RemoteError("E-EXPORT-009", f"pod {source.pod} names a file that is no export's", value=escape(name, 80))


def _error(row: Mapping[str, Any], code: object) -> OrchError:
    """What the process on the pod raised, with its own code and words."""
    kind = next((k for k in _KINDS if int(k.exit_code) == code), RemoteError)
    texts = {k: str(row[k]) for k in ("where", "expected", "did_you_mean", "fix", "value") if row.get(k) is not None}
    return kind(escape(row.get("code", "E-EXPORT-008"), 20), escape(row.get("what", "it failed"), 400), **texts)


def _bring(pod: Pod, there: Path, found: Exported, on_bytes: OnBytes) -> None:
    """Every file, then the folder under its own name: these files, and none that a cut export to it left."""
    staged = found.folder.with_name(f".{found.folder.name}.part")
    so_far = 0

    def count(more: int) -> None:
        nonlocal so_far
        so_far += more
        on_bytes(so_far, found.size_bytes)

    for name, size, digest in found.files:
        pull_file(pod, str(there / name), staged / name, size=size, sha256=digest, on_bytes=count)
    try:
        _keep_only(staged, {name for name, _, _ in found.files})
        staged.rename(found.folder)
    except OSError as e:
        raise LocalError("E-EXPORT-005", f"the folder cannot be written: {e}", where=str(found.folder)) from e


def _keep_only(folder: Path, names: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
