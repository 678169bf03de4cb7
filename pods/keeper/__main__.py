"""`python -m pods.keeper <ORCH_HOME>`: the keeper process. One a home: the second one to start ends at once.

SIGTERM ends it and nothing else: Ray, shims and ranks go on, and the next keeper finds them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pods.keeper.keeper import Keeper, say
from pods.keeper.server import Operations, Server, socket_path
from workloads.contract.files import atomic_write_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome

TICK_S = 1.0
BUSY_TICK_S = 0.25
MAX_LOG_BYTES = 4 << 20
ANSWER_S = 2.0


def main(argv: list[str]) -> int:
    os.umask(0o077)
    home = OrchHome(Path(argv[1]))
    home.keeper.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(home.keeper_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    wake = threading.Event()
    keeper = Keeper(home)

    def end(*_: object) -> None:
        keeper.ended.set()
        wake.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = socket_path(home)
    server = Server(path, Operations(keeper, wake))
    threading.Thread(target=server.serve_forever, daemon=True, name="server").start()
    me = ProcId.me()
    atomic_write_json(
        home.keeper_record,
        {
            "v": 1, "pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id, "ts": time.time(),
            "tree": os.environ.get("PYTHONPATH", ""), "python": sys.executable, "socket": str(path),
        },
    )  # fmt: skip
    say(f"keeper {me.pid} keeps {home.path}")
    loop(keeper, wake, home)
    server.answered(ANSWER_S)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    home.keeper_record.unlink(missing_ok=True)
    return 0


def loop(keeper: Keeper, wake: threading.Event, home: OrchHome) -> None:
    """Ticks until it is told to end. Nothing a tick raises may end a keeper that runs depend on."""
    while not keeper.ended.is_set():
        try:
            keeper.tick(time.monotonic())
            _bound_log(home)
        except Exception as e:  # the next tick starts from the files again
            say(f"a tick failed: {type(e).__name__}: {e}")
        wake.wait(BUSY_TICK_S if any(keeper.runs.active()) else TICK_S)
        wake.clear()


def _bound_log(home: OrchHome) -> None:
    """Standard output is keeper.log: cut it to nothing when it has grown too large, keeping one old copy."""
    if os.fstat(1).st_size > MAX_LOG_BYTES:
        home.keeper_log.with_suffix(".log.1").write_bytes(home.keeper_log.read_bytes()[-MAX_LOG_BYTES:])
        os.ftruncate(1, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
