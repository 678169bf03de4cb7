"""The error with which a program of ours ended, read from the end of its log: what a reason can say beside a number.

Only the block that `OrchError.render` prints counts, and only what this attempt wrote. Nothing of it is trusted: it is
cut and made harmless. Called by `observe`.
"""

from __future__ import annotations

import re
from pathlib import Path

from workloads.contract.errors import escape
from workloads.contract.files import read_tail

TAIL_BYTES = 16 << 10
MAX_CHARS = 240
_ERROR = re.compile(r"error\[(E-[A-Z]{2,10}-\d{3})\]: (.+)", re.ASCII)
_WHERE = re.compile(r"  where: (.+)")


def size_of(path: Path) -> int:
    """Bytes; 0 for a file that cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_error(log: Path, start: int) -> str:
    """`the data are not there (E-DATA-001, /mnt/edu)`: the last error behind byte `start`; "" when there is none."""
    mine = min(size_of(log) - start, TAIL_BYTES)
    if mine <= 0:
        return ""
    try:
        lines = read_tail(log, mine).decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = next(((i, m) for i in range(len(lines) - 1, -1, -1) if (m := _ERROR.fullmatch(lines[i]))), None)
    if found is None:
        return ""
    at, error = found
    where = next((m[1] for line in lines[at + 1 : at + 2] if (m := _WHERE.fullmatch(line))), None)
    place = f"{error[1]}, {where}" if where else error[1]
    return escape(f"{error[2]} ({place})", MAX_CHARS)
