"""A data set of the Hugging Face hub, read in place: one listing at a fixed commit, then ranges of its files.

Nothing is downloaded whole and nothing shuffled by a library, so that a position is exact and entered at once. Waiting
and trying again are `workloads.data.reading`'s: the hub library's own patience is 29 silent minutes. A repository may
also be a folder on the pod that is laid out like one. Called by `workloads.data.opening` and, for the commit, by the
trainer.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from workloads.contract.config.job import HubSpec
from workloads.contract.errors import LocalError, OrchError, SpecError
from workloads.data.asked import OncePerPod
from workloads.data.files import DataFile, unreadable
from workloads.data.ranges import RangeFile, library
from workloads.data.reading import Patience
from workloads.data.rowfiles import MODULES, OPTIONS, Kind, kind_of

PARQUET, LINES = ".parquet", (".jsonl", ".ndjson", ".json")
NOT_DATA = frozenset({"dataset_infos.json", "dataset_dict.json", "state.json", "requirements.txt", "LICENSE.txt"})
NEVER_REACHED = "never-reached"
"""Stands for the commit of a run whose hub could not be asked when it began: no hub has such a revision."""
LISTING = ("listing",)
LONGER_S = 30.0
"""another process of the pod may ask so much longer than its patience, before this one asks too"""
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SPLITS = ("train", "test", "validation", "valid")
_WORD = "(?:^|[^a-zA-Z0-9]){}(?:[^a-zA-Z0-9]|$)"


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit. `commit` is "" for a folder on the pod."""

    commit: str
    files: tuple[DataFile, ...]
    configs: tuple[Mapping[str, Any], ...]
    """the `configs` of the repository's card"""


def is_folder(repo: str) -> bool:
    return Path(repo).expanduser().is_dir()


def commit_of(spec: HubSpec, timeout_s: float) -> str:
    """The commit that `spec.revision` is now; "" for a folder. OSError when the hub cannot be asked now.

    MissingDataError for the path of a folder that is not there: no hub has such a name.
    """
    if is_folder(spec.repo):
        return ""
    if spec.repo.startswith(("/", "~", ".")):
        raise unreadable(Path(spec.repo).expanduser(), FileNotFoundError(errno.ENOENT, "No such file or directory"))
    if spec.revision and is_commit(spec.revision):
        return spec.revision
    row = ask_listing(spec, timeout_s)
    commit = str(row["commit"])
    asked_once(spec.model_copy(update={"revision": commit}), 0.0).keep(LISTING, row)
    return commit


def asked_once(spec: HubSpec, wait_s: float) -> OncePerPod:
    """What this pod asks about the commit `spec.revision`."""
    about = [str(library().constants.ENDPOINT), spec.repo, spec.revision or ""]
    return OncePerPod(about, "hub", wait_s)


def is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def list_files(spec: HubSpec, patience: Patience) -> Listing:
    """OrchError or SourceGone when there is none. A commit is asked for once a pod."""
    if is_folder(spec.repo):
        return patience.call(lambda: _list_folder(Path(spec.repo).expanduser()), "hub", spec.repo)

    def ask() -> dict[str, Any]:
        return patience.call(lambda: ask_listing(spec, patience.timeout_s), "hub", spec.repo)

    def read(row: Any) -> Listing:
        return listing_of(row, spec, patience.timeout_s)

    return (
        asked_once(spec, patience.worst_s() + LONGER_S).ask(LISTING, ask, read)
        if is_commit(spec.revision)
        else read(ask())
    )


def ask_listing(spec: HubSpec, timeout_s: float) -> dict[str, Any]:
    """What the hub says, as JSON. OSError when it cannot be asked now, SpecError when it says no."""
    api = library()
    try:
        info = api.HfApi().dataset_info(spec.repo, revision=spec.revision, files_metadata=True, timeout=timeout_s)
    except Exception as e:
        raise _translated(e, spec) from e
    files = [
        [s.rfilename, s.size or 0, (s.lfs.sha256 if s.lfs else s.blob_id) or ""] for s in info.siblings or ()
    ]  # fmt: skip
    card = info.card_data.to_dict() if info.card_data else {}
    return {"commit": str(info.sha), "files": files, "configs": [dict(c) for c in _configs(card)]}


def listing_of(row: Any, spec: HubSpec, timeout_s: float) -> Listing:
    """Of what `ask_listing` gave, here or elsewhere. ValueError when it is something else."""
    try:
        commit, files, configs = row["commit"], row["files"], row["configs"]
        if not _COMMIT.fullmatch(commit) or not all(isinstance(c, dict) for c in configs):
            raise ValueError("no listing")
        found = tuple(_remote(spec.repo, commit, str(n), int(size), str(has), timeout_s) for n, size, has in files)
    except (TypeError, KeyError) as e:
        raise ValueError(f"no listing: {e}") from e
    return Listing(commit, found, tuple(configs))


@dataclass(frozen=True)
class Chosen:
    """The files of config and split, all of one kind. `rows`: how `datasets` parses them; None for Parquet."""

    files: list[DataFile]
    rows: Kind | None

    @property
    def lines(self) -> bool:
        """They may be JSON lines that can be entered anywhere."""
        return self.rows is not None and all(f.name.endswith(LINES) for f in self.files)


def chosen(spec: HubSpec, listing: Listing) -> Chosen:
    """In the order of their names. SpecError when there are none that can be read."""
    names = sorted(f.name for f in listing.files)
    config = _config(spec, listing.configs)
    patterns = _patterns(spec, config)
    if patterns is None:
        found = _by_name(spec.split, _of_commonest_kind([n for n in names if _module(n)]))
    else:
        found = [n for n in names if any(_glob(p).fullmatch(n) for p in patterns)]
    if len({_module(n) for n in found}) != 1 or not _module(found[0]):
        other = [n for n in found or names if not _module(n)] or found
        has = f"; it has {', '.join(other[:3])}" if other else ""
        raise SpecError(
            "E-DATA-011", f"{spec.repo}: split {spec.split!r} has no files, all of one kind, that can be read{has}",
            where="data.dataset", value=spec.config,
            expected=f"Parquet, or {', '.join(MODULES)} (packed or not); scripts are not run",
            fix="data.dataset.revision: refs/convert/parquet   (the hub's own conversion)",
        )  # fmt: skip
    by_name = {f.name: f for f in listing.files}
    kind = kind_of(found[0])
    if kind is not None:
        told = {k: v for k, v in config.items() if k in OPTIONS}
        kind = Kind(kind.module, {**kind.options, **told})
    return Chosen([by_name[n] for n in found], kind)


def _module(name: str) -> str:
    """What reads a file: "" for nothing here."""
    if name.endswith(PARQUET) or name in NOT_DATA:
        return "parquet" if name.endswith(PARQUET) else ""
    kind = kind_of(name)
    return f"{kind.module} {kind.options}" if kind else ""


def _of_commonest_kind(names: list[str]) -> list[str]:
    """As `datasets` guesses: the most of them decide. Of as many, Parquet."""
    counts = Counter(_module(n) for n in names)
    best = max(counts, key=lambda module: (counts[module], module == "parquet"), default="")
    return [n for n in names if _module(n) == best]


def cached_folder(spec: HubSpec, commit: str | None) -> Path:
    """Where the hub's cache on this pod holds the data set, whole or in part. LocalError when it does not."""
    root = Path(library().constants.HF_HUB_CACHE) / f"datasets--{spec.repo.replace('/', '--')}" / "snapshots"
    try:
        found = sorted(root.iterdir(), key=lambda p: (p.name == commit, p.stat().st_mtime))
    except OSError:
        found = []
    if not found:
        raise LocalError("E-DATA-012", f"the hub's cache on this pod holds nothing of {spec.repo}", where=str(root))
    return found[-1]


def preload() -> None:
    """Import what reads the hub now: an import takes seconds on a busy machine, and no deadline is meant for it."""
    hub = library()
    _ = hub.HfApi, hub.hf_hub_url, hub.get_token


def _translated(e: Exception, spec: HubSpec) -> Exception:
    """What the hub said no to is refused; anything else may be better in a second."""
    status = getattr(getattr(e, "response", None), "status_code", None)
    what = {
        401: "wants a token", 403: "does not let this token in", 404: "does not have it (or keeps it private)"
    }.get(status or 0)  # fmt: skip
    if what is None and isinstance(e, ValueError) and not isinstance(e, OSError):
        what = f"cannot name it: {e}"  # not an owner/name
    if what:
        return SpecError(
            "E-DATA-010", f"the hub {what}", where="data.dataset", value=f"{spec.repo} at {spec.revision or 'main'}",
            expected="a data set that this pod may read",
            fix="check the name; for a private or gated one: secrets: [HF_TOKEN]",
        )  # fmt: skip
    if isinstance(e, OSError | OrchError):
        return e
    return OSError(f"{type(e).__name__}: {e}")


def _configs(card: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    configs = card.get("configs")
    return tuple(c for c in configs if isinstance(c, dict)) if isinstance(configs, list) else ()


def _config(spec: HubSpec, configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the card says about the config that is asked for; empty: nothing, names decide."""
    names = [str(c.get("config_name", "default")) for c in configs]
    if not configs and spec.config in (None, "default"):
        return {}
    default = next((str(c.get("config_name")) for c in configs if c.get("default")), None)
    alone = names[0] if len(names) == 1 else None
    wanted = spec.config or default or ("default" if "default" in names else alone)
    if wanted is None or wanted not in names:
        raise SpecError(
            "E-DATA-014", f"{spec.repo} has no config {wanted!r}" if wanted else f"{spec.repo} has several configs",
            where="data.dataset.config", value=spec.config, expected=", ".join(names[:8]) or "none",
            fix=f"config: {names[0]}" if names else "remove `config`",
        )  # fmt: skip
    return configs[names.index(wanted)]


def _patterns(spec: HubSpec, config: Mapping[str, Any]) -> list[str] | None:
    """The split's patterns by the card; None: the card says nothing, names decide."""
    data_files = config.get("data_files")
    if data_files is None:
        return None
    rows = data_files if isinstance(data_files, list) else [data_files]
    found: list[object] = []
    for row in rows:
        split, path = (row.get("split", "train"), row.get("path")) if isinstance(row, dict) else ("train", row)
        if split == spec.split:
            found += path if isinstance(path, list) else [path]
    return [str(p) for p in found if p]


def _by_name(split: str, names: Sequence[str]) -> list[str]:
    """As `datasets` guesses: files that have the split in their path; all of them are `train` where none has one."""
    marks = {s: re.compile(_WORD.format(re.escape(s))) for s in dict.fromkeys((split, *_SPLITS))}
    if any(mark.search(n) for mark in marks.values() for n in names):
        return [n for n in names if marks[split].search(n)]
    return list(names) if split == "train" else []


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a folder, `**` does not; a folder stands for all below it."""
    out, i = "", 0
    while i < len(pattern):
        for sign, meaning in (("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
            if pattern.startswith(sign, i):
                out, i = out + meaning, i + len(sign)
                break
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return re.compile(out)


def _list_folder(root: Path) -> Listing:
    import yaml

    paths = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = tuple(DataFile(str(p.relative_to(root)), p.stat().st_size, _opener(p)) for p in paths)
    card: Any = {}
    readme = root / "README.md"
    if readme.is_file() and (text := readme.read_text(errors="replace")).startswith("---"):
        try:
            card = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---"))
        except yaml.YAMLError as e:
            raise SpecError("E-DATA-014", f"the card of the data set is no YAML: {e}", where=str(readme)) from e
    return Listing("", files, _configs(card if isinstance(card, dict) else {}))


def _opener(path: Path) -> Any:
    return lambda: path.open("rb")


def _remote(repo: str, commit: str | None, name: str, size: int, content: str, timeout_s: float) -> DataFile:
    url = library().hf_hub_url(repo, name, repo_type="dataset", revision=commit)
    return DataFile(name, size, lambda: cast("BinaryIO", RangeFile(url, size, timeout_s)), content)
