"""What nobody needs any more on this pod: environments, trees, wheels, uv, builds of Python, unfinished uploads.

Kept whatever its age: what a run that has not ended, or was asked to resume, refers to, what the keeper runs from, what
is being built, what was used in the last hour. The rest goes when nobody has used it for as long as was asked; a run
that ended counts as a use until it ended. A run whose files cannot be read has not ended. Called by `pods.remote.env`
(`env.gc`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods.keeper.runs import pending_requests
from pods.remote.envdir import EnvDir, size_of
from workloads.contract.files import read_bytes_bounded, try_read_json
from workloads.contract.rundir import OrchHome, RunDir, verb_of_request
from workloads.contract.states import ENDED

YOUNG_S = 3600.0
UPLOADS = ("wheels", "bin")


@dataclass(frozen=True)
class Item:
    kind: str
    path: Path
    used: float  # Unix seconds of its last use that the file system knows


@dataclass(frozen=True)
class Uses:
    """What runs say of paths: of those that go on, and the last time of those that ended."""

    live: tuple[str, ...]
    ended: tuple[tuple[str, float], ...]

    def live_in(self, path: Path) -> bool:
        return any(_names(text, path) for text in self.live)

    def last(self, item: Item) -> float:
        return max([item.used, *(when for text, when in self.ended if _names(text, item.path))])


def collect(home: OrchHome, older_s: float, *, dry_run: bool) -> tuple[list[dict[str, Any]], int]:
    """(what was, or would be, removed; how many things stay). Nothing younger than an hour is ever removed."""
    uses, now = uses_of(home), time.time()
    rows, kept = [], 0
    for item in items(home):
        age = now - uses.last(item)
        if age < max(older_s, YOUNG_S) or uses.live_in(item.path):
            kept += 1
            continue
        size = size_of(item.path)
        if not dry_run and not _remove(home, item, lambda: uses_of(home)):
            kept += 1
            continue
        rows.append({"kind": item.kind, "path": str(item.path), "size_bytes": size, "age_s": age})
    return rows, kept


def uses_of(home: OrchHome) -> Uses:
    live, ended = [], []
    keeper = try_read_json(home.keeper_record) or {}
    live += [str(keeper.get(k)) for k in ("tree", "python") if keeper.get(k)]
    names = os.listdir(home.runs) if home.runs.is_dir() else []
    for run in (RunDir(home.runs / name) for name in names):
        status = try_read_json(run.status) or {}
        if status.get("state") in ENDED and not pending_requests(run, "resume"):
            when = run.status.stat().st_mtime if run.status.exists() else time.time()
            ended.append((_text(run), when))
        else:
            live.append(_text(run))
    return Uses(tuple(live), tuple(ended))


def _text(run: RunDir) -> str:
    """All that run.json and the requests to resume say, as it stands: a damaged file refers to whatever it names."""
    return "\n".join(_read(path) for path in (run.run_json, *_resumes(run)))


def _resumes(run: RunDir) -> list[Path]:
    """What a run resumed with `--code current` runs from is named here and nowhere else."""
    return _below(run.requests, lambda n: verb_of_request(n) == "resume")


def _read(path: Path) -> str:
    try:
        return read_bytes_bounded(path).decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _names(text: str, path: Path) -> bool:
    """Whether text names an item or something in it; by the last two components, so that a linked home is no matter."""
    return re.search(rf"/{re.escape(path.parent.name)}/{re.escape(path.name)}(?=[/\"\s]|$)", text) is not None


def items(home: OrchHome) -> Iterator[Item]:
    """What may go, environments first: a build of Python that only they use goes after them."""
    for path in _below(home.envs, lambda n: len(n) == 16):
        yield Item("environment", path, max(_mtime(path), _mtime(path / "orch-env.json")))
    for path in _below(home.envs, lambda n: n.startswith(".trash.")):
        yield Item("leftover", path, _mtime(path))
    for path in _below(home.trees, lambda _: True):
        yield Item("tree", path, _mtime(path))
    for path in _below(home.path / "wheels", lambda n: n.endswith(".whl")):
        yield Item("wheel", path, _mtime(path))
    newest = {p.name for p in sorted(_below(home.path / "bin", lambda n: n.startswith("uv-")), key=_mtime)[-1:]}
    for path in _below(home.path / "bin", lambda n: n.startswith("uv-") and n not in newest):
        yield Item("uv", path, _mtime(path))
    cache = home.cache / "uv-cache"
    if cache.is_dir():
        yield Item("uv's cache", cache, max(map(_mtime, (cache, *cache.iterdir())), default=0.0))
    for name in UPLOADS:
        for path in _below(home.path / name, lambda n: n.endswith(".part")):
            yield Item("upload", path, _mtime(path))
    for path in _below(home.pythons, lambda n: n.startswith((".new.", ".incoming."))):
        yield Item("upload", path, _mtime(path))
    for path in _below(home.pythons, lambda n: not n.startswith(".")):
        if not _python_in_use(home, path):
            yield Item("python", path, _mtime(path))


def _python_in_use(home: OrchHome, build: Path) -> bool:
    """An environment was made of it, or orch's own process on this pod is run by it."""
    files = [*home.envs.glob("*/pyvenv.cfg"), *(home.path / "remote").glob("*/python")]
    return any(_names(line.split()[-1], build) for f in files for line in _lines(f) if line.strip())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _below(folder: Path, want: Callable[[str], bool]) -> list[Path]:
    try:
        return sorted(folder / n for n in os.listdir(folder) if want(n) and not (folder / n).is_symlink())
    except OSError:
        return []


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _remove(home: OrchHome, item: Item, again: Callable[[], Uses]) -> bool:
    """Take one thing away; False when somebody began to use it meanwhile."""
    if item.kind == "environment" and all(c in "0123456789abcdef" for c in item.path.name):
        env = EnvDir(home, item.path.name)
        with env.locked() as lock:
            if lock is None or again().live_in(item.path):
                return False
            env.remove()
        return True
    if again().live_in(item.path):
        return False
    if item.kind == "uv's cache" and any(_building(home)):
        return False
    if item.path.is_dir():
        gone = item.path.with_name(f".trash.{item.path.name}.{os.getpid()}")
        item.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)
    return True


def _building(home: OrchHome) -> Iterator[bool]:
    for path in home.envs.glob("*.lock"):
        with EnvDir(home, path.name.removesuffix(".lock")).locked() as lock:
            yield lock is None
