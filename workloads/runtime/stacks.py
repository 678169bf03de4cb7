"""Stack dumps: faulthandler registered before anything heavy is imported, and a dump when SIGTERM comes.

`sitecustomize` registers SIGUSR1 for every Python that orch starts; `register()` does it when that did not happen
(a Python started with -S, or by hand). Standard library only; never raises.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from typing import IO

from workloads.contract.process import catches, dump_signal
from workloads.contract.rundir import utc_stamp
from workloads.runtime.rankenv import RankEnv

_kept_open: list[IO[bytes]] = []


def _open_dump(env: RankEnv) -> IO[bytes] | None:
    if env.stackdump is None:
        return None
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.fdopen(os.open(env.stackdump, flags, 0o600), "wb", buffering=0)
    except OSError:
        return None


def register(env: RankEnv | None) -> None:
    """Make SIGUSR1 (or ORCH_DUMP_SIGNAL) dump all stacks into ORCH_STACKDUMP, unless a handler is there already."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if not faulthandler.is_enabled():
            faulthandler.enable()
    signum = dump_signal(os.environ)
    if env is None or catches(os.getpid(), signum):
        return
    file = _open_dump(env)
    if file is not None:
        _kept_open.append(file)  # faulthandler keeps the number only
        faulthandler.register(signum, file, all_threads=True, chain=False)


def dump(env: RankEnv, why: str) -> None:
    """Append this process's stacks, after a header line, to ORCH_STACKDUMP."""
    file = _open_dump(env)
    if file is None:
        return
    header = (
        f"=== orch stack dump run={env.run_id} rank={env.rank} attempt={env.attempt} pid={os.getpid()} "
        f"utc={utc_stamp(time.time())} by=rank why={why} ===\n"
    )
    with file, contextlib.suppress(OSError):
        file.write(header.encode())
        faulthandler.dump_traceback(file, all_threads=True)
