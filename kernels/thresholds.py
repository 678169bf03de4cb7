"""Thresholds: from which length a backend is faster on one model of GPU, as a file that a kernel's dispatch reads.

A file is looked for in `$ORCH_HOME/thresholds/<family>/<gpu>.json` (~/.orch without ORCH_HOME), then in
`kernels/<family>/thresholds/<gpu>.json`; the first one found counts, as a whole, and is read once a process. No file:
no thresholds. A file that is not what it should be is a ValueError that names it: it is never half believed. Imports
no torch and measures nothing: `kernels.bench.knee` makes the contents. Called by the dispatch of `kernels.kv_decode`.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = Path(__file__).resolve().parent
VERSION: Final = 1
FOLDERS: Final = {"kv-decode": "kv_decode"}
"""Families with more than one backend for the same call, and their packages."""
BACKENDS: Final = ("triton", "sdpa", "sdpa-flash", "sdpa-cudnn", "reference")
DTYPES: Final = {"fp16": 2, "bf16": 2, "fp32": 4}
FAR: Final = 4.0
"""How many times more or fewer (row, KV head) pairs than the measured ones a call may have."""

_log = logging.getLogger("kernels")
_said: set[str] = set()


@dataclass(frozen=True)
class Rule:
    """From `from_length` keys on, `backend`: for `group` query heads a KV head, at `pairs` = rows x KV heads."""

    group: int
    head_dim: int
    dtype: str
    pairs: int
    from_length: int
    backend: str


@dataclass(frozen=True)
class Thresholds:
    """One file. `margin`: how much faster a backend had to be; `commit`, `date`, `rows`: where the rows come from."""

    v: int
    family: str
    gpu: str
    margin: float
    commit: str
    date: str
    rows: str
    rules: tuple[Rule, ...]

    def text(self) -> str:
        """The file: JSON, a rule a line."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rules"}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        rules = ",\n".join(f"    {json.dumps(asdict(rule))}" for rule in self.rules)
        return "{\n" + "".join(lines) + f'  "rules": [\n{rules}\n  ]\n}}\n'

    def rule_for(self, group: int, head_dim: int, dtype: str, pairs: int, length: int) -> Rule | None:
        """The rule of the shape measured nearest to this one, None where nothing near enough was measured.

        Group, head size and bytes an element must be the same, pairs within a factor of FAR, and the length at least
        the shortest one measured; beyond the longest one its rule goes on.
        """
        like = [r for r in self.rules if (r.group, r.head_dim, DTYPES[r.dtype]) == (group, head_dim, DTYPES[dtype])]
        near = min((r.pairs for r in like), key=lambda n: (_times(n, pairs), n), default=0)
        if not near or _times(near, pairs) > FAR:
            return None
        reached = [r for r in like if r.pairs == near and r.from_length <= length]
        return max(reached, key=lambda r: r.from_length, default=None)


def _times(a: int, b: int) -> float:
    return math.inf if min(a, b) < 1 else max(a, b) / min(a, b)


def slug(gpu: str) -> str:
    """The file name of a model, without its suffix: "NVIDIA H200" is nvidia-h200. ValueError when nothing is left."""
    made = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    if not made:
        raise ValueError(f"{gpu!r} is no name of a GPU")
    return made


def parse(text: str, where: str) -> Thresholds:
    """The contents of a file. ValueError naming `where`, the field, its value and what is expected."""
    try:
        raw = json.loads(text)
    except ValueError as e:
        raise _broken(where, f"it is no JSON ({e})") from e
    head = _fields(raw, {f.name: _KINDS[f.name] for f in fields(Thresholds)}, where, "the file")
    if head["v"] != VERSION or head["family"] not in FOLDERS or not 1 <= head["margin"] < 100:
        raise _broken(
            where, f"v {head['v']!r}, family {head['family']!r}, margin {head['margin']!r}: version {VERSION}, one of "
            f"{', '.join(FOLDERS)} and a margin of 1 to 100 are needed",
        )  # fmt: skip
    kinds = {f.name: _KINDS[f.name] for f in fields(Rule)}
    rules = [Rule(**_fields(r, kinds, where, f"rule {i + 1}")) for i, r in enumerate(head["rules"])]
    for i, rule in enumerate(rules):
        positive = min(rule.group, rule.head_dim, rule.pairs) >= 1 and rule.from_length >= 0
        if rule.backend not in BACKENDS or rule.dtype not in DTYPES or not positive:
            raise _broken(
                where, f"rule {i + 1} is {asdict(rule)}: a backend of {', '.join(BACKENDS)}, a dtype of "
                f"{', '.join(DTYPES)} and sizes of 1 or more are needed",
            )  # fmt: skip
    spots = [(r.group, r.head_dim, DTYPES[r.dtype], r.pairs, r.from_length) for r in rules]
    if len(set(spots)) < len(spots):
        raise _broken(where, "two rules are for the same shape and length")
    return Thresholds(**head | {"rules": tuple(rules)})


_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("family", "gpu", "commit", "date", "rows", "dtype", "backend"), str),
    **dict.fromkeys(("v", "group", "head_dim", "pairs", "from_length"), int),
    "margin": (int, float),
    "rules": list,
}


def _fields(raw: object, kinds: Mapping[str, type | tuple[type, ...]], where: str, what: str) -> dict[str, Any]:
    """The object `raw` with exactly the keys of `kinds`, each of its type."""
    if not isinstance(raw, dict):
        raise _broken(where, f"{what} is {type(raw).__name__}: an object with {', '.join(kinds)} is needed")
    missing, unknown = kinds.keys() - raw.keys(), raw.keys() - kinds.keys()
    if missing or unknown:
        said = [f"{word} {', '.join(sorted(keys))}" for word, keys in (("lacks", missing), ("has", unknown)) if keys]
        raise _broken(where, f"{what} {' and '.join(said)}; it holds {', '.join(kinds)} and nothing else")
    for name, kind in kinds.items():
        if not isinstance(raw[name], kind) or isinstance(raw[name], bool):
            raise _broken(where, f"{what} has {name} {raw[name]!r}, of the wrong type")
    return raw


def _broken(where: str, why: str) -> ValueError:
    return ValueError(
        f"thresholds file {where}: {why}. Make it again with `python -m kernels.bench.knee ROWS.jsonl --write`, "
        "or remove it to go without"
    )


def places(family: str, gpu: str) -> dict[str, Path]:
    """Where the file of a family and a model is looked for, first to last; by what to call it on any machine."""
    name = f"{slug(gpu)}.json"
    home = os.environ.get("ORCH_HOME") or str(Path(os.environ.get("HOME") or "~").expanduser() / ".orch")
    ours = f"{FOLDERS[family]}/thresholds/{name}"
    return {
        f"$ORCH_HOME/thresholds/{family}/{name}": Path(home) / "thresholds" / family / name,
        f"kernels/{ours}": PACKAGE / ours,
    }


@functools.cache
def found(family: str, gpu: str) -> tuple[Thresholds, str] | None:
    """The thresholds of this model and what their file is called, None without one. Read once a process.

    ValueError for a file that cannot be read, that `parse` refuses, or that is of another family or model.
    """
    for called, path in places(family, gpu).items():
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as e:
            raise _broken(str(path), f"it cannot be read ({e})") from e
        held = parse(text, str(path))
        if held.family != family or slug(held.gpu) != slug(gpu):
            raise _broken(str(path), f"it is of {held.family} on {held.gpu}, where {family} on {gpu} is looked for")
        return held, called
    return None


def install(held: Thresholds, folder: Path | None = None) -> Path:
    """Write the file: `folder`/<family>/<gpu>.json, or into this package. Returns its path; replaces an older one.

    `folder` is `$ORCH_HOME/thresholds` on a machine, for its processes. ValueError for times that no GPU gave. A
    process that has looked already keeps what it found.
    """
    if slug(held.gpu) == "cpu":
        raise ValueError("these rows were timed on a CPU: they say nothing of a GPU; run the bench with --device cuda")
    parse(held.text(), "to be written")
    name = f"{slug(held.gpu)}.json"
    place = (PACKAGE / FOLDERS[held.family] / "thresholds" if folder is None else folder / held.family) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    part.write_text(held.text(), encoding="utf-8")
    part.replace(place)
    return place


def say_once(text: str) -> None:
    """A warning of logger "kernels" (stderr, unless logging is set up otherwise), once a process for each text."""
    if text not in _said:
        _said.add(text)
        _log.warning("kernels: %s", text)
