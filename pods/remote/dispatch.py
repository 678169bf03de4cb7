"""From the name of an operation to what carries it out. On this machine and on any other: the same functions.

An operation checks its own arguments (`want`): what arrives may come from another version. It raises `OrchError`s.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from workloads.contract.errors import RemoteError
from workloads.contract.rundir import OrchHome

MODULES = {
    "code": "pods.remote.code",
    "env": "pods.remote.env",
    "files": "pods.remote.files",
    "home": "pods.remote.home",
    "mirror": "pods.remote.mirror",
    "parity": "pods.remote.parity",
    "runs": "pods.remote.runs",
    "secrets": "pods.remote.secrets",
    "tokenizers": "pods.remote.tokenizers",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""


Operation = Callable[[OrchHome, Mapping[str, Any], bytes], Answer]


def dispatch(home: OrchHome, op: str, args: Mapping[str, Any], data: bytes) -> Answer:
    """Carry out `<module>.<name>`. Whatever it raises becomes an OrchError."""
    area, _, name = op.partition(".")
    table: Mapping[str, Operation] = importlib.import_module(MODULES[area]).OPERATIONS if area in MODULES else {}
    operation = table.get(name)
    if operation is None:
        raise RemoteError("E-POD-011", f"there is no operation {op!r}", expected="the same version of orch")
    try:
        return operation(home, args, data)
    except OSError as e:
        where = None if e.filename is None else str(e.filename)
        raise RemoteError("E-POD-012", f"{e.strerror or e} ({op})", where=where) from e
    except (KeyError, TypeError, ValueError) as e:
        raise RemoteError("E-POD-013", f"{op} failed: {type(e).__name__}: {e}") from e


def want(args: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """`args[key]`, which must be a `kind`."""
    value = args.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RemoteError("E-POD-014", f"an operation needs {key} as {kind.__name__}", value=repr(value)[:80])
    return value
