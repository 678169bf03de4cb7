"""Starting a process that outlives its starter: own session, no parent of ours, clean environment.

A Ray worker that dies signals its children and its process group; what is started here is neither. Used by whoever
starts a keeper (CLI, PodAgent) and by the keeper for shims and Ray.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from workloads.contract.errors import RemoteError
from workloads.contract.process import DETACHED

KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LD_LIBRARY_PATH",
    "ORCH_HOME", "ORCH_LEASES", "ORCH_DUMP_SIGNAL",
)  # fmt: skip
"""All that orch's own processes take over. RAY_*, CUDA_VISIBLE_DEVICES, OMP_* and marks stay behind."""

_DETACH = "import os,sys\nif os.fork(): os._exit(0)\nos.execvp(sys.argv[1],sys.argv[1:])"
DETACH_TIMEOUT_S = 20.0


def interpreter() -> str:
    """A Python for orch's own parts that need the standard library alone: this process's, or, once its environment was
    deleted, the one that the environment was made from."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return sys.executable if Path(sys.executable).exists() or not base.exists() else str(base)


def clean_env(environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """The kept part of `environ`, and `extra`."""
    return {k: environ[k] for k in KEPT if k in environ} | extra


def spawn_detached(python: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
    """Start `argv` as a grandchild in a session of its own, output appended to `log`. Where a rank is the starter, it
    also outlives that rank: no shim sweeps what carries `ORCH_DETACHED`.

    An intermediate single-threaded interpreter does the fork, so this is safe in a process with threads.
    Raises RemoteError when `python` cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        subprocess.run(
            [python, "-I", "-S", "-c", _DETACH, *argv],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env={**env, DETACHED: "1"},
            cwd="/",
            start_new_session=True,
            check=True,
            timeout=DETACH_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise RemoteError("E-KEEP-001", f"`{argv[0]}` could not be started with {python}: {e}", where=str(log)) from e
    finally:
        os.close(fd)
