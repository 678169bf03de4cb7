"""Text to prepare, and preparing it: in this process, or in one of its own that can be killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads.contract.config.job import DataSpec
from workloads.data.prepared import sha256_of
from workloads.dataprep import origins
from workloads.dataprep.prepare import Asked, Outcome, Progress, prepare

WORDS = ["the", "theatre", "naïve", "Zürich", "数据", "\n", "\n\n", "  ", "it's", "1234", "0x1f", "😀", "end."]
SCRIPT = """
import json, sys
from pathlib import Path
from workloads.contract.config.job import DataSpec
from workloads.dataprep import origins
from workloads.dataprep.prepare import Asked, prepare

if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    prepare(
        Asked(DataSpec(**told["data"]), Path(told["out"]), told["workers"], told["max_tokens"]),
        lambda p: print(p.tokens, flush=True), lambda: False,
    )
"""


def text_folder(folder: Path, *, files: int = 6, words: int = 4000, seed: int = 1) -> Path:
    """Files of several languages, one of them empty and one that is no UTF-8."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for k in range(files):
        (folder / f"doc{k:02d}.txt").write_text(" ".join(rng.choices(WORDS, k=words)))
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes("façade".encode("latin-1"))
    return folder


def spec(path: Path, tokenizer: str = "byte", **more: Any) -> DataSpec:
    return DataSpec(source="text", path=str(path), tokenizer=tokenizer, **more)


def make(
    data: DataSpec, out: Path, *, workers: int = 1, max_tokens: int | None = None,
    tell: Callable[[Progress], None] = lambda p: None, stop: Callable[[], bool] = lambda: False,
) -> Outcome:  # fmt: skip
    return prepare(Asked(data, out, workers, max_tokens), tell, stop)


def start(data: DataSpec, out: Path, script: Path, *, workers: int = 2, before: str = "") -> subprocess.Popen[str]:
    """A line of its standard output is the tokens so far. before: Python that runs first."""
    script.write_text(before + SCRIPT)
    told = {"data": data.model_dump(), "out": str(out), "workers": workers, "max_tokens": None}
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(told)], cwd=Path(origins.__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "HOME": str(out.parent), "PYTHONPATH": str(Path(origins.__file__).parents[2])},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in sorted(folder.iterdir())}
