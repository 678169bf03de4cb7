"""Which files of a directory are code that travels: what git knows and would not ignore, or all but the usual rubbish.

In a repository the whole of it travels, submodules and repositories inside it included; a repository that is
somebody's home directory is not taken whole. Elsewhere it is the directory itself. Git runs nothing of the
repository's own and writes nothing. Used by `pods.snapshotscan` alone.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workloads.contract.errors import LocalError

GIT_S = 60.0
MAX_NESTED = 8
RUBBISH = frozenset(
    {
        ".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".mypy_cache", ".pytest_cache",
        ".ruff_cache", ".hypothesis", ".tox", ".nox", ".eggs", ".ipynb_checkpoints", ".DS_Store",
    }
)  # fmt: skip
RUBBISH_SUFFIXES = (".pyc", ".pyo")
IGNORED = "ignored by git"
RUBBISH_WHY = "left out by default"
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.pager=cat")


@dataclass
class Listing:
    """`paths` are relative to `top`, without an order; a file may have vanished since. `known`: those git has."""

    top: Path
    git: bool
    paths: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def list_files(directory: Path) -> Listing:
    """LocalError for a directory that no one means to send, and where git knows more than it can tell."""
    directory = directory.resolve()
    if _too_wide(directory):
        raise LocalError(
            "E-CODE-022", "a home directory is not sent to a pod as code", where=str(directory),
            expected="a project's directory", fix="cd to the project, or move it into a directory of its own",
        )  # fmt: skip
    top = _git_top(directory)
    if top is None:
        return _walk(directory)
    found = Listing(directory if _too_wide(top) else top, True)
    _ask_git(found, "", 0)
    return found


def _too_wide(directory: Path) -> bool:
    return directory == Path(directory.anchor) or directory == Path.home().resolve()


def _git_top(directory: Path) -> Path | None:
    """The repository's top, None where there is no repository. LocalError when git cannot tell."""
    try:
        done = _run(directory, "rev-parse", "--show-toplevel")
        if done.returncode == 0:
            return Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).resolve()
        why = done.stderr.decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        why = ["git is not installed"]
    if not any((d / ".git").exists() for d in (directory, *directory.parents) if not _too_wide(d)):
        return None
    raise _no_answer(directory, why)


def _ask_git(found: Listing, prefix: str, depth: int) -> None:
    """Add what git lists below `prefix` (a repository of its own, or the top)."""
    here = found.top / prefix
    nested: list[str] = []
    for record in _records(here, "--cached", "--stage"):
        meta, _, raw = record.partition(b"\t")
        if meta.startswith(b"160000"):
            nested.append(os.fsdecode(raw))
        else:
            found.known.add(prefix + os.fsdecode(raw))
    found.paths |= found.known
    for record in _records(here, "--others", "--exclude-standard"):
        path = os.fsdecode(record)
        if path.endswith("/"):
            nested.append(path.rstrip("/"))
        else:
            found.paths.add(prefix + path)
    for record in _records(here, "--others", "--ignored", "--exclude-standard", "--directory"):
        found.left_out.append((prefix + os.fsdecode(record).rstrip("/"), IGNORED))
    for path in nested:
        if not (here / path / ".git").exists():
            found.left_out.append((prefix + path, "a submodule that is not there: git submodule update --init"))
        elif depth >= MAX_NESTED or (here / path).is_symlink():
            found.left_out.append((prefix + path, "repositories nested too deeply"))
        else:
            _ask_git(found, f"{prefix}{path}/", depth + 1)


def _records(here: Path, *options: str) -> Iterator[bytes]:
    try:
        done = _run(here, "ls-files", "-z", *options)
    except FileNotFoundError as e:
        raise _no_answer(here, ["git is not installed"]) from e
    if done.returncode != 0:
        raise _no_answer(here, done.stderr.decode(errors="replace").strip().splitlines())
    yield from filter(None, done.stdout.split(b"\0"))


def _run(here: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            [*_GIT, *args], cwd=here, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise _no_answer(here, [f"no answer in {GIT_S:g} s"]) from e


def _no_answer(here: Path, why: list[str]) -> LocalError:
    safe = "dubious ownership" in " ".join(why)
    return LocalError(
        "E-CODE-023", "git cannot say which files of this repository are code", where=str(here),
        value=why[0] if why else None,
        fix=f"git config --global --add safe.directory {here}" if safe else "see what `git status` says there",
    )  # fmt: skip


def _walk(top: Path) -> Listing:
    found = Listing(top, False)
    for folder, folders, names in os.walk(top):
        base = os.path.relpath(folder, top)
        prefix = "" if base == "." else f"{base}/"
        for name in list(folders):
            why = _rubbish(Path(folder) / name)
            if why is not None:
                folders.remove(name)
                found.left_out.append((prefix + name, why))
            elif (Path(folder) / name).is_symlink():
                found.paths.add(prefix + name)
        for name in names:
            if name in RUBBISH or name.endswith(RUBBISH_SUFFIXES):
                found.left_out.append((prefix + name, RUBBISH_WHY))
            else:
                found.paths.add(prefix + name)
    return found


def _rubbish(folder: Path) -> str | None:
    if folder.name in RUBBISH:
        return RUBBISH_WHY
    try:
        stat.S_ISREG((folder / "pyvenv.cfg").lstat().st_mode)
    except OSError:
        return None
    return "a virtual environment"
