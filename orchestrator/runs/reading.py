"""Records out of a run directory, for readers who must survive whatever lies in it.

A field that has another type than its record says is treated as absent; without a required field there is no record.
The keeper and the shim read what they wrote themselves and do without this. Called by the views.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from workloads.contract.records import from_wire

MAX_INT = 1 << 53
MAX_ABS = 1e18
T = TypeVar("T")


def record_of(cls: type[T], row: Mapping[str, Any]) -> T | None:
    """`row` as a record of `cls`, of which only well-typed fields are used; None when a required one is missing."""
    hints = _hints(cls)
    good = {k: v for k, v in row.items() if k in hints and fits(v, hints[k])}
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return from_wire(cls, good) if all(name in good for name in required) else None


_looked_up: dict[type, Mapping[str, Any]] = {}


def _hints(cls: type) -> Mapping[str, Any]:
    """Types of a record's fields: they are source text until they are looked up, which costs 0.2 ms."""
    if cls not in _looked_up:
        _looked_up[cls] = get_type_hints(cls)
    return _looked_up[cls]


def fits(value: Any, hint: Any) -> bool:
    """Whether `value`, as JSON gave it, is what the type `hint` says. NaN counts as a float: a loss may be one."""
    if hint is Any:
        return True
    if hint is int:
        return type(value) is int and abs(value) < MAX_INT
    if hint is float:
        return (type(value) is float and not math.isfinite(value)) or (
            type(value) in (int, float) and abs(value) <= MAX_ABS
        )
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(fits(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(v, args[1]) for v in value.values())
    return isinstance(value, hint)
