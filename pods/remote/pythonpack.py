"""A build of Python as two files, `index` and `blob`, that a machine with nothing but a POSIX sh can unpack.

    d path                              a directory
    f|x SIZE SHA256 path                a file, an executable one: the next SIZE bytes of the blob
    l TARGET path                       a symbolic link

The blob is the files' bytes one after the other, gzipped. Paths never leave the build. Written by
`pods.environment.pythons`; unpacked by `unpack_build` where a Python runs and by a shell script where none does; that
script has the new Python check itself (`python pythonpack.py DIR INDEX`). Standard library only, no import of ours.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.contract.rundir import OrchHome

INDEX, BLOB = "index", "blob.gz"
_CHUNK = 1 << 20


def rows(text: str) -> Iterator[tuple[str, int, str, str]]:
    """(kind, size, sha256 or target, path) of each line. ValueError for one that is none, or leaves the build."""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        size, word = 0, ""
        if kind in ("f", "x"):
            number, word, rest = rest.split(" ", 2)
            size = int(number)
        elif kind == "l":
            word, _, rest = rest.partition(" ")
        elif kind != "d":
            raise ValueError(f"{line[:80]!r} is no line of an index")
        if not rest or rest.startswith("/") or ".." in rest.split("/") or word.startswith(("/", "../../")) or size < 0:
            raise ValueError(f"{line[:80]!r} leaves the build")
        yield kind, size, word, rest


def check(build: Path, text: str) -> list[str]:
    """Paths that are not as the index says."""
    bad = []
    for kind, size, word, path in rows(text):
        there = build / path
        if kind == "l":
            ok = there.is_symlink() and str(there.readlink()) == word
        elif kind == "d":
            ok = there.is_dir()
        else:
            ok = there.is_file() and there.stat().st_size == size
            ok = ok and hashlib.sha256(there.read_bytes()).hexdigest() == word
        if not ok:
            bad.append(path)
    return bad


def unpack_build(home: OrchHome, build: str, pack: Path) -> Path:
    """`python/<build>/bin/python3`, made from the pack if it is missing. Two at once do not collide. ValueError."""
    target = home.pythons / build
    python = target / "bin" / "python3"
    if os.access(python, os.X_OK):
        return python
    staged = home.pythons / f".new.{build}.{os.getpid()}"
    text = (pack / INDEX).read_text()
    try:
        _fill(staged, text, pack / BLOB)
        if bad := check(staged, text):
            raise ValueError(f"the build of Python is damaged: {bad[0]}")
        staged.rename(target)
    except OSError:
        if not os.access(python, os.X_OK):  # nobody was faster
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return python


def _fill(staged: Path, text: str, blob: Path) -> None:
    staged.mkdir(parents=True, mode=0o700)
    with gzip.open(blob, "rb") as f:
        for kind, size, word, path in rows(text):
            there = staged / path
            if kind == "d":
                there.mkdir(exist_ok=True, mode=0o700)
            elif kind == "l":
                there.symlink_to(word)
            else:
                with there.open("xb") as out:
                    left = size
                    while left and (chunk := f.read(min(left, _CHUNK))):
                        left -= out.write(chunk)
                there.chmod(0o700 if kind == "x" else 0o600)


if __name__ == "__main__":
    wrong = check(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
    print("\n".join(wrong[:3]), file=sys.stderr)
    sys.exit(1 if wrong else 0)
