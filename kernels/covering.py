"""A small set of cases in which every two values of every two factors meet: a covering array, greedy, deterministic.

Most faults need one or two values together (Kuhn, Wallace and Gallo, 2004), so the array stands for the full product.
Knows nothing of kernels; never random: the same factors give the same cases. Called by each family's `parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Case = dict[str, Any]
Pair = tuple[tuple[str, int], tuple[str, int]]


def allowed_everything(case: Mapping[str, Any]) -> bool:
    return True


def pairwise(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Mapping[str, Any]], bool] = allowed_everything
) -> list[Case]:
    """Cases over `factors` (name: its values), each a dict in the order of `factors`.

    `allowed` sees cases in the making, with some factors missing: False means that no case may hold these values
    together. A pair that no allowed case can hold is left out; `uncovered` tells which. ValueError for a factor without
    values.
    """
    for name, values in factors.items():
        if not len(values):
            raise ValueError(f"factor {name!r} has no values")
    left = dict.fromkeys(_pairs(factors))  # a dict keeps the order
    cases: list[Case] = []
    while left:
        first = next(iter(left))
        chosen = _complete(dict(first), factors, left, allowed)
        if chosen is None:
            del left[first]
            continue
        for pair in _pairs_of(chosen):
            left.pop(pair, None)
        cases.append({name: factors[name][chosen[name]] for name in factors})
    return cases


def uncovered(factors: Mapping[str, Sequence[Any]], cases: Sequence[Mapping[str, Any]]) -> list[Case]:
    """The pairs of values that no case holds, each as a dict of two."""
    left = dict.fromkeys(_pairs(factors))
    for case in cases:
        chosen = {name: list(factors[name]).index(case[name]) for name in factors}
        for pair in _pairs_of(chosen):
            left.pop(pair, None)
    return [{name: factors[name][i] for name, i in pair} for pair in left]


def _pairs(factors: Mapping[str, Sequence[Any]]) -> Iterator[Pair]:
    for (a, a_values), (b, b_values) in combinations(factors.items(), 2):
        for i in range(len(a_values)):
            for j in range(len(b_values)):
                yield (a, i), (b, j)


def _pairs_of(chosen: Mapping[str, int]) -> Iterator[Pair]:
    return combinations(chosen.items(), 2)


def _complete(
    start: dict[str, int],
    factors: Mapping[str, Sequence[Any]],
    left: Mapping[Pair, None],
    allowed: Callable[[Mapping[str, Any]], bool],
) -> dict[str, int] | None:
    """Fill the other factors one by one with the value that covers most of what is left; back when there is none."""

    def values(chosen: Mapping[str, int]) -> Case:
        return {name: factors[name][i] for name, i in chosen.items()}

    def gain(chosen: Mapping[str, int], name: str, i: int) -> int:
        order = list(factors)
        at = order.index(name)
        return sum(
            (((other, j), (name, i)) if order.index(other) < at else ((name, i), (other, j))) in left
            for other, j in chosen.items()
        )

    def fill(chosen: dict[str, int], rest: Sequence[str]) -> dict[str, int] | None:
        if not allowed(values(chosen)):
            return None
        if not rest:
            return {name: chosen[name] for name in factors}
        name = rest[0]
        turn = sum(chosen.values())  # so that ties do not always fall to the first value
        order = sorted(
            range(len(factors[name])),
            key=lambda i: (-gain(chosen, name, i), (i - turn) % len(factors[name])),
        )
        for i in order:
            done = fill({**chosen, name: i}, rest[1:])
            if done is not None:
                return done
        return None

    return fill(start, [name for name in factors if name not in start])
