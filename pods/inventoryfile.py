"""Writing the inventory without losing what a person wrote in it: comments, order and style stay.

An entry is put in, taken out or changed in the text itself, at the places that YAML's own parser gives. The new text is
read back and must hold exactly what was wanted, else nothing is written. The file is replaced whole, 0600, under a
lock; a file that is invalid, or that somebody saves meanwhile, is never overwritten. Called by `orch pods`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pods import yamledit
from pods.inventory import parse_inventory
from pods.yamlfile import parse_yaml, read_yaml
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.errors import ConflictError, LocalError, OrchError, SpecError
from workloads.contract.files import atomic_write
from workloads.contract.rundir import OrchHome

LOCK_S = 10.0
TRIES = 3
SECTION = "pods"


def add_entry(home: OrchHome, name: str, spec: PodSpec) -> None:
    """Put a pod at the end of the inventory. ConflictError when the name is taken."""

    def text(old: str) -> str:
        return yamledit.insert(old, (SECTION,), name, fields_of(spec))

    def model(old: Inventory) -> Inventory:
        if name in old.pods:
            raise ConflictError("E-INV-021", f"there is a pod {name} already", where=str(home.inventory))
        return Inventory(pods={**old.pods, name: spec})

    _edit(home, text, model)


def remove_entry(home: OrchHome, name: str) -> None:
    """Take a pod out. A comment above its entry stays, one inside goes with it."""

    def model(old: Inventory) -> Inventory:
        return Inventory(pods={k: v for k, v in old.pods.items() if k != name})

    _edit(home, lambda old: yamledit.remove(old, (SECTION,), name), model)


def change_entry(home: OrchHome, name: str, **fields: str | list[str]) -> None:
    """Set some keys of a pod that is there; an empty list takes the key out."""

    def text(old: str) -> str:
        for key, value in fields.items():
            old = yamledit.remove(old, (SECTION, name), key) if value == [] else _set(old, key, value)
        return old

    def _set(old: str, key: str, value: str | list[str]) -> str:
        return yamledit.assign(old, (SECTION, name), key, value)

    def model(old: Inventory) -> Inventory:
        if name not in old.pods:
            raise ConflictError("E-INV-022", f"pod {name} is no longer in the inventory", where=str(home.inventory))
        return Inventory(pods={**old.pods, name: old.pods[name].model_copy(update=fields)})

    _edit(home, text, model)


def fields_of(spec: PodSpec) -> dict[str, Any]:
    """What is worth writing of a pod: all that is not a default."""
    return spec.model_dump(exclude_defaults=True)


def _edit(home: OrchHome, text: Callable[[str], str], model: Callable[[Inventory], Inventory]) -> None:
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(home.inventory):
            for _ in range(TRIES):
                if _try_edit(home.inventory, text, model):
                    return
    except OSError as e:
        raise LocalError(
            "E-INV-023", f"the inventory cannot be written: {e.strerror}", where=str(e.filename or home.inventory),
            fix="free some space, or mend the permissions of orch's home",
        ) from e  # fmt: skip
    raise ConflictError(
        "E-INV-024", "the inventory was changed by something else again and again", where=str(home.inventory),
        fix="close the program that writes it, then try again",
    )  # fmt: skip


def _try_edit(path: Path, text: Callable[[str], str], model: Callable[[Inventory], Inventory]) -> bool:
    """False when the file changed while it was edited. Raises what is wrong with it, having written nothing."""
    before = _bytes(path)
    old = parse_inventory(read_yaml(path)) if before else Inventory()
    wanted = model(old)
    new = _edited(path, before.decode("utf-8-sig"), text)
    try:
        found = parse_inventory(parse_yaml(new, str(path)))
    except OrchError as e:
        raise _by_hand(path) from e
    if found != wanted or list(found.pods) != list(wanted.pods):
        raise _by_hand(path)
    if _bytes(path) != before:
        return False
    atomic_write(path.resolve(), new.encode(), mode=0o600)
    return True


def _edited(path: Path, old: str, text: Callable[[str], str]) -> str:
    try:
        return text(old)
    except yamledit.CannotEdit as e:
        raise _by_hand(path) from e


def _by_hand(path: Path) -> SpecError:
    return SpecError(
        "E-INV-025", "the inventory is written in a way that orch cannot edit without harm; nothing was changed",
        where=str(path), expected="`pods:`, and below it a name and its keys, each on a line of its own",
        fix=f"edit {path} by hand, or write its entries one key a line",
    )  # fmt: skip


def _bytes(path: Path) -> bytes:
    """b"" when there is no file. What is no good file is told by `read_yaml`."""
    try:
        return path.read_bytes() if path.is_file() or not path.exists() else b"\0"
    except FileNotFoundError:
        return b""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; ConflictError after 10 s. The lock file stays: removing it would make two of them."""
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        "E-INV-026", "another command is writing the inventory", where=str(path), fix="try again"
                    ) from e
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)
