"""The manifest of a checkpoint: written last, and checked before a byte of the checkpoint is loaded.

A checkpoint directory is what its manifest says and nothing else: every listed file with its size and sha256, no
other file, no link, no name that leaves the directory. The manifest is sealed by a hash over itself and has one
spelling only, so that no byte of a checkpoint can change unseen. Any bytes in manifest.json give reasons, never an
exception. Nothing is unpickled here. Standard library only; called by ranks, and on a pod before a resume.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from workloads.contract.errors import escape
from workloads.contract.files import dump_json, read_bytes_bounded
from workloads.contract.rundir import CHECKPOINT_PREFIX, RunDir, step_of_checkpoint

MANIFEST_VERSION = 2
UNSEALED = 1
"""The version before seals: still read, no longer written."""
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 16_384
UNREADABLE = "cannot be read"
"""In a reason: the disk refused, which proves nothing about the bytes."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    run: str
    step: int
    attempt: int
    epoch: int
    world_size: int
    config_hash: str
    code_hash: str
    files: tuple[FileEntry, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    v: int = MANIFEST_VERSION

    def wire(self) -> dict[str, object]:
        row = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("files", "versions")}
        files = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in sorted(self.files, key=lambda f: f.name)]
        return sealed({**row, "versions": dict(self.versions), "files": files})


def sealed(row: Mapping[str, object]) -> dict[str, object]:
    """`row` as it may be written: with the sha256 of everything else in it."""
    bare = {k: v for k, v in row.items() if k != "seal"}
    return {**bare, "seal": hashlib.sha256(dump_json(bare)).hexdigest()}


def good_name(name: str) -> bool:
    """A plain file name: printable, no separator, neither `.` nor `..`, not the manifest itself."""
    return (
        0 < len(name) <= 255
        and name not in (".", "..", "manifest.json")
        and name.isprintable()
        and not set(name) & set("/\\")
    )


def _entries(raw: object, problems: list[str]) -> tuple[FileEntry, ...]:
    if type(raw) is not list or not 0 < len(raw) <= MAX_FILES:
        problems.append("manifest: `files` is not a list of 1 to 16384 entries")
        return ()
    entries: dict[str, FileEntry] = {}
    for item in raw:
        row: dict[str, object] = item if type(item) is dict else {}
        name, size, digest = row.get("name"), row.get("size"), row.get("sha256")
        if not isinstance(name, str) or not good_name(name):
            problems.append(f"manifest: bad file name {str(name)[:80]!r}")
        elif name in entries:
            problems.append(f"manifest: {name} is listed twice")
        elif type(size) is not int or size < 0 or not isinstance(digest, str) or len(digest) != 64:
            problems.append(f"manifest: {name} has no good size and sha256")
        else:
            entries[name] = FileEntry(name, size, digest)
    return tuple(entries.values())


def parse_manifest(row: Mapping[str, object]) -> tuple[Manifest | None, list[str]]:
    """The manifest in a JSON object, or None and what is wrong with it."""
    version = row.get("v")
    if type(version) is not int or version not in (UNSEALED, MANIFEST_VERSION):
        return None, [f"manifest: version {str(version)[:20]!r}, this orch reads {UNSEALED} and {MANIFEST_VERSION}"]
    if (problem := _seal_problem(row, version)) is not None:
        return None, [problem]
    problems: list[str] = []
    ints = {k: row.get(k) for k in ("step", "attempt", "epoch", "world_size")}
    texts = {k: row.get(k) for k in ("run", "config_hash", "code_hash")}
    problems += [f"manifest: {k} is not a whole number" for k, v in ints.items() if type(v) is not int or v < 0]
    problems += [f"manifest: {k} is not text" for k, v in texts.items() if type(v) is not str]
    versions = row.get("versions", {})
    if type(versions) is not dict or any(type(v) is not str for v in versions.values()):
        problems.append("manifest: `versions` is not an object of texts")
    files = _entries(row.get("files"), problems)
    if problems:
        return None, problems
    return Manifest(**ints, **texts, files=files, versions=versions), []  # type: ignore[arg-type]


def _seal_problem(row: Mapping[str, object], version: int) -> str | None:
    if version == UNSEALED:  # a newer one whose version was altered must not pass for an old one
        return "manifest: a seal in a version that has none" if "seal" in row else None
    try:
        return None if row == sealed(row) else "manifest: it does not match its own seal"
    except ValueError as e:  # NaN, a lone surrogate
        return f"manifest: {str(e)[:200]}"


def read_manifest(checkpoint: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest of `checkpoint`, or None and why there is none."""
    try:
        raw = read_bytes_bounded(RunDir.manifest(checkpoint), MAX_MANIFEST_BYTES)
        row = json.loads(raw)
        if not isinstance(row, dict):
            return None, ["manifest: it does not hold a JSON object"]
        if row.get("v") == MANIFEST_VERSION and dump_json(row) != raw:
            return None, ["manifest: its bytes are not as they were written"]
    except FileNotFoundError:
        return None, ["no manifest: it was never finished"]
    except RecursionError:
        return None, ["manifest: nested too deeply"]
    except OSError as e:
        return None, ["manifest: a link" if e.errno == errno.ELOOP else f"manifest: {UNREADABLE}: {e.strerror}"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None, ["manifest: torn, or not JSON"]
    except ValueError as e:
        return None, [f"manifest: {str(e)[:200]}"]
    return parse_manifest(row)


def hash_file(path: Path) -> tuple[int, str]:
    """(size, sha256) of a regular file; symlinks are not followed. OSError, ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0) as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        digest, size = hashlib.sha256(), 0
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def entry_of(path: Path) -> FileEntry:
    return FileEntry(path.name, *hash_file(path))


def _hash_problem(checkpoint: Path, entry: FileEntry) -> str | None:
    try:
        size, digest = hash_file(checkpoint / entry.name)
    except FileNotFoundError:
        return f"{entry.name} is missing"
    except OSError as e:
        return f"{entry.name} {UNREADABLE}: {e.strerror}"
    except ValueError as e:
        return f"{entry.name} is {e}"
    if digest != entry.sha256:
        return f"{entry.name} does not match its sha256"
    return None if size == entry.size else f"{entry.name} has {size} bytes, the manifest says {entry.size}"


def _shape_problems(checkpoint: Path, manifest: Manifest, run_id: str | None) -> list[str]:
    problems = []
    if step_of_checkpoint(checkpoint.name) != manifest.step:
        problems.append(f"the manifest is of step {manifest.step}")
    if run_id is not None and manifest.run != run_id:
        problems.append(f"the manifest is of run {escape(manifest.run, 80)}")
    listed = {f.name: f for f in manifest.files}
    try:
        present = {e.name: e for e in os.scandir(checkpoint) if e.name != RunDir.manifest(checkpoint).name}
        problems += [f"{n[:80]!r} is not in the manifest" for n in sorted(present.keys() - listed.keys())[:10]]
        for name, entry in listed.items():
            if name not in present:
                problems.append(f"{name} is missing")
            elif not present[name].is_file(follow_symlinks=False):
                problems.append(f"{name} is not a regular file")
            elif (size := present[name].stat(follow_symlinks=False).st_size) != entry.size:
                problems.append(f"{name} has {size} bytes, the manifest says {entry.size}")
    except OSError as e:
        problems.append(f"it {UNREADABLE}: {e.strerror}")
    return problems


def look(checkpoint: Path, *, run_id: str | None = None) -> tuple[Manifest | None, list[str]]:
    """What can be said without reading a file's content: manifest, identity, names, sizes. Costs microseconds a file.

    The manifest is None exactly when there are problems.
    """
    if step_of_checkpoint(checkpoint.name) is None:
        return None, ["its name is not step_ and at least 8 digits"]
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return None, ["it is not a directory"]
    manifest, problems = read_manifest(checkpoint)
    if manifest is not None:
        problems = _shape_problems(checkpoint, manifest, run_id)
    return (None, problems) if problems else (manifest, [])


def verify(checkpoint: Path, *, run_id: str | None = None, threads: int = 4) -> list[str]:
    """Why `checkpoint` must not be used; [] when every byte is what its manifest says.

    Order: manifest, identity and names, sizes, hashes (files in parallel). The first stage that fails ends it.
    """
    manifest, problems = look(checkpoint, run_id=run_id)
    if manifest is None:
        return problems
    with ThreadPoolExecutor(max_workers=threads) as pool:
        found = pool.map(lambda entry: _hash_problem(checkpoint, entry), manifest.files)
        return [p for p in found if p]


def committed(run: RunDir) -> list[Path]:
    """Whatever has a checkpoint's name, newest step first. Nothing is verified.

    OSError when the folder is there and cannot be listed: that is not the same as having no checkpoint.
    """
    by_step = {step: name for name in _named(run) if (step := step_of_checkpoint(name)) is not None}
    return [run.checkpoints / by_step[step] for step in sorted(by_step, reverse=True)]


def strange(run: RunDir) -> list[str]:
    """Names that are nearly a checkpoint's: copies and renamed ones, not looked at and left alone."""
    return sorted(name for name in _named(run) if step_of_checkpoint(name) is None)


def _named(run: RunDir) -> list[str]:
    try:
        return [name for name in os.listdir(run.checkpoints) if name.startswith(CHECKPOINT_PREFIX)]
    except FileNotFoundError:
        return []


def newest_verified(run: RunDir, *, run_id: str | None = None) -> tuple[Path | None, list[tuple[str, str]]]:
    """The newest checkpoint that verifies, and (name, why) of every newer one that does not. OSError as `committed`."""
    rejected: list[tuple[str, str]] = []
    for path in committed(run):
        problems = verify(path, run_id=run_id)
        if not problems:
            return path, rejected
        rejected.append((path.name, "; ".join(problems)))
    return None, rejected
