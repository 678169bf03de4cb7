"""Does anybody else answer to our four top-level names? They are generic words, and one is a public distribution too.

A package found elsewhere than beside this one would be run in place of ours. Used by `orch doctor` and by a test.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NAMES = ("orchestrator", "pods", "workloads", "kernels")
DISTRIBUTION = "orch-runs"


@dataclass(frozen=True)
class Intruder:
    name: str
    what: str
    fix: str
    shadows: bool  # True: it would be imported in place of ours


def own_root() -> Path:
    """The directory that holds the four packages this process runs from."""
    return Path(__file__).resolve().parents[2]


def foreign_packages() -> list[Intruder]:
    """Everything that answers to one of our names and is not ours."""
    found = [i for i in map(_wrong_place, NAMES) if i is not None]
    owners = metadata.packages_distributions()
    for name in NAMES:
        for dist in sorted(set(owners.get(name, ())) - {DISTRIBUTION}):
            what = f"distribution {dist!r} also brings a package called {name!r}"
            found.append(Intruder(name, what, f"pip uninstall {dist}   (or a virtual environment of its own)", False))
    return found


def _wrong_place(name: str) -> Intruder | None:
    spec = importlib.util.find_spec(name)
    ours = own_root() / name
    places = [Path(p).resolve() for p in (spec.submodule_search_locations or ())] if spec else []
    if spec is not None and not places and spec.origin:
        places = [Path(spec.origin).resolve()]
    if places == [ours]:
        return None
    told = ", ".join(map(str, places)) or "nothing"
    fix = f"run orch from a virtual environment where {ours} comes first"
    return Intruder(name, f"package {name!r} is answered by {told}, not by {ours}", fix, True)
