"""The state of the code a run is launched from: commit and uncommitted difference, by git, bounded in time and size.

Never writes to the repository and runs no hook, pager or external diff. Where there is no git, or it does not answer
in time, nothing is known, which is not an error. Called by the launch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

MAX_DIFF_BYTES = 5 << 20
TIMEOUT_S = 5.0
CUT = b"\n# the difference was longer and is cut here\n"
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.pager=cat", "-c", "core.quotePath=true")
_DIFF = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")


@dataclass(frozen=True)
class CodeState:
    commit: str | None = None
    dirty: bool = False
    diff: bytes = b""


def code_state(directory: Path) -> CodeState:
    """Commit and difference of the repository that `directory` lies in; an empty state where there is none."""
    head = _git(directory, "rev-parse", "--verify", "HEAD", limit=200)
    if head is None:
        return CodeState()
    diff = _git(directory, *_DIFF, limit=MAX_DIFF_BYTES) or b""
    changed = _git(directory, "status", "--porcelain", limit=1) or b""
    return CodeState(head.decode("ascii", "replace").strip(), bool(diff or changed), diff)


def own_code_state(root: Path) -> CodeState:
    """Of orch's own code in `root`: an empty state where that was installed, whatever repository lies around it."""
    tracked = _git(root, "ls-files", "--error-unmatch", "pods/tree.py", limit=200)
    return CodeState() if tracked is None else code_state(root)


def _git(directory: Path, *args: str, limit: int) -> bytes | None:
    """At most `limit` bytes of git's answer (`CUT` behind a difference that was longer); None when it has none."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env = kept | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        process = subprocess.Popen(
            [*_GIT, *args], cwd=directory, env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    timer = threading.Timer(TIMEOUT_S, _kill, (process,))
    timer.start()
    try:
        assert process.stdout is not None
        with process.stdout as pipe:
            out = pipe.read(limit + 1)
        if len(out) > limit:
            _kill(process)
            process.wait()
            return out[:limit] + (CUT if limit == MAX_DIFF_BYTES else b"")
        return out if process.wait() == 0 else None
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
