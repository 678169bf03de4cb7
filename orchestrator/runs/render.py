"""Text for a terminal: one sanitizer, aligned columns, and times and figures in words.

Whatever a rank, a pod or a file said passes `harmless` before it reaches a terminal. No third-party import, no
knowledge of runs; used by every view and by the CLI.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

# C0 and C1 controls (ESC among them), bidirectional controls, line separators, stray surrogates
_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


_redact: list[Callable[[str], str]] = []


def hide(redact: Callable[[str], str]) -> None:
    """From now on, `redact` what this process shows (`orchestrator.runs.redact.redactor`): the one hook for secrets."""
    _redact.append(redact)


def redacted(value: Any) -> Any:
    """Texts in a JSON document, or one text, without what was hidden."""
    if not _redact or value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {k: redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v) for v in value]
    text = str(value)
    for redact in _redact:
        text = redact(text)
    return text


def harmless(text: str) -> str:
    """`text` with newline and tab kept and every other control character written as an escape; secrets hidden.

    A carriage return (progress bars) becomes a newline: nothing that was printed can be overwritten on the screen.
    """
    if _redact:
        text = redacted(text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HARMFUL.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode(), text)


def decode(data: bytes) -> str:
    """Bytes of a log as text: what is not UTF-8 is shown as `\\xNN`."""
    return data.decode("utf-8", "backslashreplace")


def one_line(text: str, limit: int = 400) -> str:
    """`text` harmless and on one line, cut at `limit` characters."""
    flat = " ".join(harmless(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), width: int = 0) -> str:
    """Columns aligned by padding; columns in `right` are right-aligned; lines are cut at `width` when it is given."""
    cells = [list(header), *[[one_line(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(clip("  ".join(padded).rstrip(), width))
    return "\n".join(lines)


def clip(line: str, width: int) -> str:
    return line if not width or len(line) <= width else line[: max(width - 1, 0)] + "…"


def screen_width(out: TextIO | None = None) -> int:
    """Columns of the terminal that `out` (default: stdout) is, or 0 when it is none (nothing is cut then)."""
    return shutil.get_terminal_size((120, 40)).columns if (out or sys.stdout).isatty() else 0


def duration(seconds: float | None) -> str:
    """`850 ms`, `12 s`, `3 min 05 s`, `2 h 05 min`, `4 d 03 h`; `-` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    seconds = max(seconds, 0.0)
    if seconds < 0.0005:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def brief(seconds: float | None) -> str:
    """As `duration`, for a column: `12s`, `3m05s`, `2h05m`, `4d03h`."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return (
        f"{whole // 3600}h{whole % 3600 // 60:02d}m"
        if whole < 86400
        else f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    )


def ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(seconds)} ago"


def figure(value: float | None, digits: int = 4) -> str:
    """A float for people: `digits` significant ones; whole thousands with a separator; `-` when unknown."""
    if value is None:
        return "-"
    if 1_000 <= abs(value) < 1e12:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{digits}g}"


def progress(step: int | None, steps: int | None) -> str:
    if step is None:
        return "-"
    return f"{step}/{steps}" if steps else str(step)


def clock(ts: float) -> str:
    """Local wall time, hour to second."""
    return _local("%H:%M:%S", ts)


def moment(ts: float | None) -> str:
    """Local date and time; `-` when unknown."""
    return "-" if ts is None else _local("%Y-%m-%d %H:%M:%S", ts)


def _local(form: str, ts: float) -> str:
    try:
        return time.strftime(form, time.localtime(ts))
    except (ValueError, OverflowError, OSError):  # a time that no calendar has, from a file that is not orch's
        return "-"


def program() -> str:
    """What to type for `orch` here: the path this command was started by, when the shell would not find it by name."""
    started = Path(sys.argv[0])
    if started.name != "orch":
        return "orch"
    found = shutil.which("orch")
    return "orch" if found and Path(found).resolve() == started.resolve() else str(started)
