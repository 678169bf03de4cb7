"""GPT-2's vocabulary on this pod: kept as `$ORCH_HOME/tokenizers/gpt2.tiktoken`, its hash checked before each use.

It gets there by `orch data import`, or by tiktoken's own download, tried once, with a deadline, when nothing is kept
and HF_HUB_OFFLINE is not set. Never uses bytes whose hash is another. Called by `workloads.data.tokenizers`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workloads.contract import gptvocab
from workloads.contract.errors import LocalError
from workloads.contract.files import atomic_write, read_bytes_bounded
from workloads.contract.rundir import OrchHome

FETCH_S = 60.0
_FETCH = """
import base64, os, sys
os.environ["TIKTOKEN_CACHE_DIR"] = ""
from tiktoken_ext.openai_public import r50k_base
ranks = r50k_base()["mergeable_ranks"]
for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
    sys.stdout.buffer.write(base64.b64encode(token) + b" %d\\n" % rank)
"""
"""In a process of its own: tiktoken's download has no deadline."""


def kept_at(home: OrchHome) -> Path:
    return home.tokenizers / gptvocab.FILE


def gpt2_ranks(home: OrchHome) -> dict[bytes, int]:
    """IntegrityError when what is kept is damaged; LocalError when nothing is kept and nothing can be fetched."""
    path = kept_at(home)
    try:
        data = read_bytes_bounded(path, gptvocab.MAX_BYTES)
    except FileNotFoundError:
        data = _fetched()
        keep(home, data)
    except (OSError, ValueError) as e:
        raise LocalError("E-DATA-020", f"the vocabulary cannot be read: {e}", where=str(path)) from e
    return gptvocab.parse(gptvocab.checked(data, str(path)))


def keep(home: OrchHome, data: bytes) -> Path:
    """Put the canonical file where every run of this pod finds it. LocalError when it cannot be written."""
    path = kept_at(home)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, gptvocab.checked(data, str(path)))
    except OSError as e:
        raise LocalError(
            "E-DATA-023", f"the vocabulary cannot be kept: {e.strerror}", where=str(path),
            fix="free some space, or point ORCH_HOME to another disk",
        ) from e  # fmt: skip
    return path


def _fetched() -> bytes:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise _missing("HF_HUB_OFFLINE is set")
    argv = [sys.executable, "-c", _FETCH]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as e:
        raise _missing(f"the download did not end within {FETCH_S:.0f} s") from e
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _missing(f"the download failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return gptvocab.checked(done.stdout, "tiktoken's download")


def _missing(why: str) -> LocalError:
    return LocalError(
        "E-DATA-022", f"GPT-2's vocabulary is not on this pod, and {why}", where=str(kept_at(OrchHome.from_env())),
        expected="gpt2.tiktoken there", fix=f"orch data import vocab.bpe encoder.json --pod {_pod()}",
    )  # fmt: skip


def _pod() -> str:
    return os.environ.get("ORCH_POD") or "local"
