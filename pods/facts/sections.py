"""The output of `script.SCRIPT` as sections. Pure.

A section begins at a line `<nonce> <name>`; one that a single command filled ends at `<nonce> = <status>`. What a
machine prints besides (login files, a broken tool) cannot begin one: the nonce is new for each answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_SECTION_CHARS = 256 << 10


@dataclass(frozen=True)
class Section:
    text: str
    status: str | None = None
    """exit status of the one command that filled it, `late` when it was given up; None for several commands"""

    @property
    def late(self) -> bool:
        return self.status == "late"


Sections = dict[str, Section]


def split_sections(output: str, nonce: str) -> Sections:
    """Sections by name. What stands before the first one is noise; of two with one name, the first counts."""
    found: Sections = {}
    name: str | None = None
    marker = re.compile(rf"^{re.escape(nonce)} (= )?([0-9a-z_]{{1,20}})$", re.M)
    begin = 0
    for m in [*marker.finditer(output), None]:
        if name is not None:
            text = output[begin : m.start() if m else len(output)][:MAX_SECTION_CHARS].strip("\n")
            found.setdefault(name, Section(text, m[2] if m and m[1] else None))
        if m is None:
            break
        name = None if m[1] else m[2]
        begin = m.end()
    return found
