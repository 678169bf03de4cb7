"""What a resume changed of a run's job (`orch resume --set`): the changes, and the job that an attempt runs with.

run.json stays as the launch wrote it. A resume that changes something leaves its changes in its request and in its
event; the supervisor puts those of all resumes so far into the job and writes it beside the orders of each attempt
(`RunDir.attempt_job`) whose job is not run.json's. Standard library only; used by the operator's side, the supervisor,
the keeper and ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from workloads.contract.files import try_read_json
from workloads.contract.rundir import RunDir

WAS, IS = "was", "is"
MAX_CHANGES = 200
Changes = Mapping[str, Mapping[str, Any]]
"""`{"train.lr": {"was": 3e-4, "is": 1e-4}}`; a side that has no such key lacks `was` or `is`"""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every key, dotted, in which two jobs differ; a list is one value, an empty mapping is like none."""
    was, now = dict(_flat(old)), dict(_flat(new))
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys([*was, *now]):
        if key not in was or key not in now or was[key] != now[key]:
            sides = ((WAS, was), (IS, now))
            found[key] = {name: side[key] for name, side in sides if key in side}
    return found


def _flat(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def changed(job: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of `job` with the new side of every change in it. Not checked against the job's model."""
    result = copy.deepcopy(dict(job))
    for key, sides in changes.items():
        *above, last = key.split(".")
        inner = result
        for part in above:
            below = inner.get(part)
            if not isinstance(below, dict):
                below = inner[part] = {}
            inner = below
        if IS in sides:
            inner[last] = copy.deepcopy(sides[IS])
        else:
            inner.pop(last, None)
    return result


def together(older: Changes, newer: Changes) -> dict[str, Mapping[str, Any]]:
    """One change a key: as it was before `older`, as it is after `newer`; what is as it was is left out."""
    found = dict(older)
    for key, sides in newer.items():
        first = older.get(key, sides)
        found[key] = {**({WAS: first[WAS]} if WAS in first else {}), **({IS: sides[IS]} if IS in sides else {})}
    return {k: s for k, s in found.items() if (WAS in s, s.get(WAS)) != (IS in s, s.get(IS))}


def are_changes(value: object) -> TypeGuard[Changes]:
    """Whether what came from a file has the shape of `Changes`."""
    return isinstance(value, dict) and len(value) <= MAX_CHANGES and all(map(_is_change, value.items()))


def _is_change(item: tuple[object, object]) -> bool:
    key, sides = item
    parts = key.split(".") if isinstance(key, str) else []
    named = 0 < len(parts) <= 16 and all(p.isascii() and 0 < len(p) <= 64 for p in parts)
    return named and isinstance(sides, dict) and bool(sides) and set(sides) <= {WAS, IS}


def words(changes: Changes) -> list[str]:
    """`train.lr 0.0003 -> 0.0001`, one a change; a side without the key is `-`. Values are not made harmless here."""
    return [f"{key} {_shown(sides, WAS)} -> {_shown(sides, IS)}" for key, sides in changes.items()]


def _shown(sides: Mapping[str, Any], side: str) -> str:
    return repr(sides[side]) if side in sides else "-"


def read_changes(run: RunDir, attempt: int) -> Changes:
    """In what the job of this attempt differs from that of run.json; {} where it does not."""
    told = (try_read_json(run.attempt_job(attempt)) or {}).get("changes")
    return told if are_changes(told) else {}


def job_file(run: RunDir, attempt: int) -> Path:
    """The file whose `job` this attempt runs with: its own where a resume changed it, else run.json."""
    own = run.attempt_job(attempt)
    return own if attempt and own.exists() else run.run_json


def job_of(run: RunDir, attempt: int, info: Mapping[str, Any] | None = None) -> Any:
    """The job that this attempt runs with, as JSON, for those who look on: a file that is torn counts as none.

    `info`: run.json, where it was read already.
    """
    own = (try_read_json(run.attempt_job(attempt)) or {}).get("job") if attempt else None
    if isinstance(own, dict):
        return own
    return (try_read_json(run.run_json) or {} if info is None else info).get("job")
