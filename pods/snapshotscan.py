"""A snapshot of a directory's code: the files that travel with a run, known by one id, and what stays at home and why.

`scan` reads and changes nothing but its cache of hashes; `notes` is pure. Called by the launch.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pods import orchignore
from pods.remote.manifest import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TOTAL_BYTES,
    Entry,
    fits,
    link_fits,
    ordered,
    snapshot_id,
)
from pods.snapshotcache import HashCache
from pods.snapshotfiles import IGNORED, RUBBISH_WHY, Listing, list_files
from workloads.contract.errors import LocalError
from workloads.contract.rundir import OrchHome

PRIVATE = ("id_rsa", "id_ecdsa", "id_ed25519", "id_dsa", ".netrc", ".pypirc", ".env", ".env.*")
PRIVATE_WHY = "it looks like a key or password, and git does not track it"
OWN_HOME_WHY = "orch's own home"
LISTED_WHY = "named in .orchignore"
_QUIET = (IGNORED, RUBBISH_WHY, LISTED_WHY, OWN_HOME_WHY)
MAX_NOTES = 10


@dataclass(frozen=True)
class Snapshot:
    """`entries` in order of their paths, relative to `root`; `cwd` is where in it the launch was typed, "" its top."""

    id: str
    root: Path
    cwd: str
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    hashed: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(e.size for e in self.entries)

    @property
    def files(self) -> int:
        return sum(e.kind != "l" for e in self.entries)


def scan(directory: Path, home: OrchHome) -> Snapshot:
    """What would travel now from `directory`, and the repository around it. LocalError when it should not."""
    directory = directory.resolve()
    listing = list_files(directory)
    cache = HashCache(home, listing.top)
    entries, left_out = _entries(listing, _stays(listing, home), cache)
    _refuse_much(listing.top, entries)
    cache.save()
    cwd = "" if directory == listing.top else directory.relative_to(listing.top).as_posix()
    if cwd and not any(e.path.startswith(f"{cwd}/") for e in entries):
        raise LocalError(
            "E-CODE-024", "no file of this directory travels with its repository", where=str(directory),
            value="ignored by git, or empty", expected="the launch's directory on the pod",
            fix=f"launch from {listing.top}, or `git add` a file here",
        )  # fmt: skip
    return Snapshot(snapshot_id(entries), listing.top, cwd, entries, tuple(sorted(left_out)), cache.hashed)


def _stays(listing: Listing, home: OrchHome) -> Callable[[str], str | None]:
    """Why a path stays at home, judged by its name alone."""
    named = orchignore.load(listing.top)
    own = home.path.resolve()
    inside = f"{own.relative_to(listing.top).as_posix()}/" if own.is_relative_to(listing.top) else None

    def why(path: str) -> str | None:
        if inside is not None and path.startswith(inside):
            return OWN_HOME_WHY
        if path not in listing.known and any(fnmatch.fnmatchcase(path.rpartition("/")[2], p) for p in PRIVATE):
            return PRIVATE_WHY
        if (problem := fits(path)) is not None:
            return problem
        return LISTED_WHY if named(path) else None

    return why


def _entries(
    listing: Listing, why: Callable[[str], str | None], cache: HashCache
) -> tuple[tuple[Entry, ...], list[tuple[str, str]]]:
    found: list[Entry] = []
    left_out = list(listing.left_out)
    top = os.fspath(listing.top)
    through: dict[str, bool] = {"": False}
    if len(listing.paths) > MAX_FILES:
        raise _too_much(listing.top, f"{len(listing.paths)} files", f"at most {MAX_FILES}", listing.paths)
    for path in listing.paths:
        problem = why(path)
        if problem is None and _below_link(top, path.rpartition("/")[0], through):
            continue  # git still knows it as it was; the link itself travels or is told of
        entry = _entry(top, path, cache) if problem is None else problem
        if isinstance(entry, str):
            left_out.append((path, entry))
        elif entry is not None:
            found.append(entry)
    return ordered(found), left_out


def _below_link(top: str, folder: str, through: dict[str, bool]) -> bool:
    """Whether a link stands for one of these directories."""
    if folder not in through:
        through[folder] = _below_link(top, folder.rpartition("/")[0], through) or Path(top, folder).is_symlink()
    return through[folder]


def _entry(top: str, path: str, cache: HashCache) -> Entry | str | None:
    """What travels of a path, or why nothing does; None for one that is not there any more."""
    file = f"{top}/{path}"
    try:
        st = os.lstat(file)
        if stat.S_ISLNK(st.st_mode):
            target = os.readlink(file)  # noqa: PTH115  as it is written, not tidied
            return link_fits(path, target) or Entry(path, "l", target, 0)
        if not stat.S_ISREG(st.st_mode):
            return None if stat.S_ISDIR(st.st_mode) else "it is neither a file nor a link"
        if st.st_size > MAX_FILE_BYTES:
            return f"it is larger than {MAX_FILE_BYTES >> 20} MiB ({st.st_size >> 20} MiB)"
        kind = "x" if st.st_mode & 0o100 else "f"
        return Entry(path, kind, cache.sha256(path, file, st), st.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        return f"it cannot be read: {e.strerror}"


def _refuse_much(top: Path, entries: Sequence[Entry]) -> None:
    total = sum(e.size for e in entries)
    if total > MAX_TOTAL_BYTES:
        largest = sorted(entries, key=lambda e: -e.size)
        raise _too_much(top, f"{total >> 20} MiB", f"at most {MAX_TOTAL_BYTES >> 20} MiB", [e.path for e in largest])


def _too_much(top: Path, value: str, expected: str, paths: Sequence[str] | set[str]) -> LocalError:
    folders: dict[str, int] = {}
    for path in paths:
        folder = path.split("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    largest = next(iter(paths)).split("/")[0] if isinstance(paths, list) else max(folders, key=lambda f: folders[f])
    return LocalError(
        "E-CODE-025", "this directory is more than code: it is not sent to a pod as it is", where=str(top),
        value=f"{value}; the most in {largest}", expected=expected,
        fix=f"echo {largest} >> .orchignore     (data goes with: orch pods push)",
    )  # fmt: skip


def notes(snapshot: Snapshot, argv: Sequence[str] = ()) -> list[str]:
    """What a person should hear of what stays at home: words of the command that name it, and surprises. Pure."""
    found = [text for word in argv for text in _word(snapshot, word)]
    surprises = [(path, why) for path, why in snapshot.left_out if why not in _QUIET]
    found += [f"{path} does not travel: {why}" for path, why in surprises[:MAX_NOTES]]
    if len(surprises) > MAX_NOTES:
        found.append(f"... and {len(surprises) - MAX_NOTES} more do not travel")
    return list(dict.fromkeys(found))


def _word(snapshot: Snapshot, word: str) -> list[str]:
    """A word of a command: a path, or `--option=path`."""
    text = word.partition("=")[2] if word.startswith("-") else word
    if not text or "\0" in text or (text.startswith("/") and not Path(text).is_relative_to(snapshot.root)):
        return []
    if text.startswith("/"):
        return [f"{text} is a path on this machine: on the pod the code lies elsewhere; name it relative to here"]
    path = os.path.normpath(PurePosixPath(snapshot.cwd) / text)
    if path == ".." or path.startswith("../"):
        return [f"{text} lies outside {snapshot.root} and does not travel"]
    whys = [why for name, why in snapshot.left_out if path == name or path.startswith(f"{name}/")]
    inside = any(e.path == path or e.path.startswith(f"{path}/") for e in snapshot.entries)
    return [f"{text} does not travel: {whys[0]}"] if whys and not inside else []
