"""Ranks that are in the same place, put together; the odd one first.

Pure, over the dumps of all processes of all ranks. Called by `dump`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pods.remote import stacktext
from workloads.contract.errors import escape

MAX_GROUPS_CHARS = 400_000  # of all groups together: an answer has to stay readable
MAX_PLACE_CHARS = 200


@dataclass(frozen=True)
class RankDump:
    """One process of a rank."""

    rank: int
    pid: int
    how: str  # faulthandler, py-spy, none; facts: a descendant that is no Python
    file: str  # name below stackdumps/
    text: str  # header and stacks, bounded
    note: str = ""  # why it was not faulthandler
    state: str = ""  # T, t, D, Z where it is in one
    is_rank: bool = True
    worker: int | None = None  # of a torchrun


@dataclass(frozen=True)
class Group:
    """Ranks that are in the same place."""

    ranks: tuple[int, ...]
    where: str  # all_reduce at train.py:212
    text: str  # of the first of them


def group(dumps: Sequence[RankDump]) -> list[Group]:
    """Ranks whose main threads are in the same calls and who have as many Python descendants; the smallest group, the
    odd one, first."""
    whole: dict[int, list[RankDump]] = {}
    for dump in dumps:
        whole.setdefault(dump.rank, []).append(dump)
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank in sorted(whole):
        groups.setdefault(_key(whole[rank]), []).append(rank)
    ordered = sorted(groups.values(), key=lambda ranks: (len(ranks), ranks))
    share = MAX_GROUPS_CHARS // max(1, len(ordered))
    return [
        Group(tuple(ranks), place_of(whole[ranks[0]]), _cut("".join(d.text for d in whole[ranks[0]]), share))
        for ranks in ordered
    ]


def _key(dumps: Sequence[RankDump]) -> tuple[object, ...]:
    first = _speaker(dumps)
    shape = stacktext.shape(first.text) or stacktext.normalised(first.text)
    if any(d.worker is not None for d in dumps):
        shape = ()
    return place_of(dumps), shape, sum(d.how != "facts" for d in dumps)


def _speaker(dumps: Sequence[RankDump]) -> RankDump:
    """Whose main thread says where the rank is: the rank process, or the first descendant that shows a stack (the rank
    may be a shell script)."""
    if dumps[0].state:
        return dumps[0]
    return next((d for d in dumps if stacktext.where(d.text)), dumps[0])


def place_of(dumps: Sequence[RankDump]) -> str:
    """Where one rank is, in words; `dumps` are its processes."""
    workers = [((d.worker,), _place_of_one(d)) for d in dumps if d.worker is not None]
    if workers:
        return escape(stacktext.TORCHRUN + stacktext.summary(workers, "worker").replace("; ", ", "), MAX_PLACE_CHARS)
    first = _speaker(dumps)
    place = _place_of_one(first)
    odd = [f"pid {d.pid} in state {d.state}" for d in dumps if d.state and d is not first]
    if odd:
        place += f", its {odd[0]}" + (f" and {len(odd) - 1} more" if len(odd) > 1 else "")
    return escape(place, MAX_PLACE_CHARS)


def _place_of_one(dump: RankDump) -> str:
    place = stacktext.where(dump.text) or _without_stack(dump)
    return f"{place} (state {dump.state})" if dump.state and not place.startswith("no ") else place


def _without_stack(dump: RankDump) -> str:
    if dump.state:
        return f"no dump: state {dump.state}"
    return "no stack: " + dump.note.split(";")[0] if dump.note else "no stack"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "\n... cut here; the dump files have the rest\n"
