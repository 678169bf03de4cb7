"""A machine with GPUs for tests of what asks NVML: a small library, compiled here, that answers from a text file."""

from __future__ import annotations

import atexit
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

SOURCE = Path(__file__).with_name("fakenvml.c")
A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"


@cache
def library_folder() -> Path:
    """Holds libnvidia-ml.so.1. Skips the test where nothing compiles C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build the library that stands for NVML")
    folder = Path(mkdtemp(prefix="orch-fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    out = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(out), str(SOURCE)], check=True, timeout=60
    )  # fmt: skip
    return folder


@dataclass
class FakeGpus:
    """What the library says. Changes are seen at the next call."""

    file: Path
    lines: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """From now on exactly this."""
        self.lines = list(lines)
        new = self.file.with_suffix(".new")
        new.write_text("".join(line + "\n" for line in lines))
        new.replace(self.file)

    def add(self, *lines: str) -> None:
        self.say(*self.lines, *lines)

    def env(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(library_folder()), "FAKE_NVML": str(self.file)}


def gpu(uuid: str, used_mib: int = 4, *, bus: str = "0000:18:00", total_mib: int = 144_384, ecc: int = 0) -> str:
    """A line: an H200 when nothing else is said."""
    return f"gpu {uuid} {bus} {total_mib} {used_mib} {ecc}"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeGpus:
    """From now on a process started by this one finds these GPUs. None at first."""
    gpus = FakeGpus(folder / "gpus.txt")
    gpus.say()
    for name, value in gpus.env().items():
        monkeypatch.setenv(name, value)
    return gpus
