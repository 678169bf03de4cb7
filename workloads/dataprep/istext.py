"""Whether what is read is text at all: bytes that are no UTF-8 become U+FFFD, and some of these are too many.

Called by `workloads.dataprep.check` with what its batches hold and by `workloads.dataprep.prepare` with samples of the
files, before it tokenizes hours of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import SpecError
from workloads.data.files import unreadable

MAX_NO_TEXT = 0.01
"""of the characters: text in another encoding has more (German in Latin-1 about 1.5 %), random bytes about half"""
NO_TEXT = "\ufffd"
EDGE_CHARS = 3
"""a sample may begin and end inside a character"""
SAMPLED_FILES = 256
SAMPLE_BYTES = 64 << 10
"""at the beginning, the middle and the end of a file"""


@dataclass
class Looked:
    """Characters that were looked at, and those of them that are no text."""

    chars: int = 0
    no_text: int = 0

    def at(self, text: str) -> None:
        whole = text[EDGE_CHARS : len(text) - EDGE_CHARS]
        self.chars += len(whole)
        self.no_text += whole.count(NO_TEXT)

    @property
    def share(self) -> float | None:
        return self.no_text / self.chars if self.chars else None

    def refuse(self, where: str, path: str | None) -> None:
        """SpecError when too much is no text. `path`: the file or folder that a person can look at, if it is one."""
        if self.share is None or self.share <= MAX_NO_TEXT:
            return
        raise SpecError(
            "E-DATA-054",
            f"{100 * self.share:.2g} % of the characters are no UTF-8: this is no text, or text in another encoding",
            where=path or where, value=f"{self.no_text} of {self.chars} characters",
            expected=f"UTF-8, at most {MAX_NO_TEXT:.0%} damaged",
            fix=f"file -i {shlex.quote(path)}{'/*' if Path(path).is_dir() else ''}   (then iconv -f THAT -t UTF-8, or "
            "take out what is no text)" if path else None,
        )  # fmt: skip


def samples(files: Sequence[Path]) -> Iterator[str]:
    """Three places each of at most SAMPLED_FILES of the files, evenly chosen. MissingDataError."""
    every = -(-len(files) // SAMPLED_FILES) or 1
    for path in files[::every]:
        try:
            yield from _of_file(path)
        except OSError as e:
            raise unreadable(path, e) from e


def look_at(texts: Iterable[str]) -> Looked:
    looked = Looked()
    for text in texts:
        looked.at(text)
    return looked


def _of_file(path: Path) -> Iterator[str]:
    with path.open("rb") as f:
        size = f.seek(0, 2)
        for start in sorted({0, max((size - SAMPLE_BYTES) // 2, 0), max(size - SAMPLE_BYTES, 0)}):
            f.seek(start)
            yield f.read(SAMPLE_BYTES).decode("utf-8", "replace")
