"""The name of a run of a command: what a person would call `python -u my_train.py --lr 3e-4` (my-train). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pods.specwords import slug

_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*|bash|sh|zsh|dash|env|torchrun|time|nice")
_WITH_VALUE = frozenset({"-X", "-W"})


def name_of_command(argv: Sequence[str]) -> str:
    """A valid run name, always."""
    first = PurePosixPath(argv[0]).name
    if not _INTERPRETER.fullmatch(first):
        return slug(PurePosixPath(first).stem, "command")
    words = iter(argv[1:])
    for word in words:
        if word == "-m":
            module = next(words, first)
            return slug(module.removesuffix(".__main__").rpartition(".")[2], "command")
        if word == "-c":
            return slug(first, "command")
        if word in _WITH_VALUE:
            next(words, None)
        elif not word.startswith("-") and "=" not in word:
            return slug(PurePosixPath(word).stem or first, "command")
    return slug(first, "command")
