"""A tool run for at most so long: killed after it, and left behind when even that does not end it.

`subprocess.run(timeout=)` waits for a killed child without a bound, and a child that hangs in a driver (nvidia-smi on a
sick GPU, py-spy on a process with its memory locked) does not die. Called by `stackdump`, `beside`, `gpusmi`.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_OUTPUT_BYTES = 256 << 10
AFTER_KILL_S = 0.2


@dataclass(frozen=True)
class Ran:
    """`code` None: it did not end in time, or could not be started (`error` says which)."""

    code: int | None
    out: str
    error: str


def run_bounded(argv: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None) -> Ran:
    """Returns after `limit_s` at the latest, give or take `AFTER_KILL_S`. Output beyond 256 KiB is left out."""
    try:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
            try:
                code = process.wait(max(0.0, limit_s))
            except subprocess.TimeoutExpired:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(AFTER_KILL_S)
                return Ran(None, "", f"no answer within {limit_s:.1f} s")
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read(MAX_OUTPUT_BYTES).decode(errors="replace"))
            return Ran(code, texts[0], texts[1])
    except OSError as e:
        return Ran(None, "", f"it could not be started: {e.strerror}")
