"""What a rank prints to a full disk is lost and ends nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchrows import ROOT
from workloads.runtime.output import LossyFile

PRINTS = """
import os, sys
from workloads.runtime.output import survive_full_disk
survive_full_disk(); survive_full_disk()
print("before", flush=True)
print("to stderr", file=sys.stderr)
null = os.open("/dev/full", os.O_WRONLY)
kept = os.dup(1); os.dup2(null, 1); os.dup2(null, 2)
print("x" * 100_000, flush=True); sys.stderr.write("lost"); sys.stdout.flush()
os.dup2(kept, 1); os.dup2(kept, 2)
print("after", flush=True)
assert "lost" in dir(getattr(sys.stdout.buffer, "raw", sys.stdout.buffer))
"""


def test_prints_to_a_full_disk(tmp_path: Path) -> None:
    for flags in ([], ["-u"]):
        log = tmp_path / f"log{len(flags)}"
        with log.open("wb") as f:
            done = subprocess.run([sys.executable, *flags, "-c", PRINTS], stdout=f, stderr=f, cwd=ROOT, check=False)
        assert done.returncode == 0, log.read_text()
        assert log.read_text() == "before\nto stderr\nafter\n"


def test_a_full_device_is_counted() -> None:
    with LossyFile("/dev/full", "w") as file:
        assert file.write(b"12345") == 5 and file.lost == 5
