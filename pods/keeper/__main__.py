"""`python -m pods.keeper <ORCH_HOME>`: the keeper process. One a home: the second one to start ends at once.

SIGTERM ends it and nothing else: Ray, shims and ranks go on, and the next keeper finds them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pods.keeper.guard import Guard
from pods.keeper.keeper import Keeper, say
from pods.keeper.server import Operations, Server, socket_path
from pods.keeper.troubles import KEEPER
from workloads.contract.files import atomic_write_json, try_read_json
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
    Guard(lambda: [(w.run, w.spec) for w in keeper.runs.active()], say, keeper.ended, keeper.troubles).start()
    me = ProcId.me()
    record = {
        "v": 1, "pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id, "host": socket.gethostname(),
        "ts": time.time(), "tree": os.environ.get("PYTHONPATH", ""), "python": sys.executable, "socket": str(path),
    }  # fmt: skip
    atomic_write_json(home.keeper_record, record)
    say(f"keeper {me.pid} keeps {home.path}")
    loop(keeper, wake, home, lock, record)
    if _is_anothers(home.keeper_lock, lock):
        return 0  # the socket and the record by these names are those of the other one
    server.answered(ANSWER_S)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    home.keeper_record.unlink(missing_ok=True)
    return 0


def loop(keeper: Keeper, wake: threading.Event, home: OrchHome, lock: int, record: dict[str, Any]) -> None:
    """Ticks until it is told to end. Nothing that goes wrong may end a keeper that runs depend on. A record that was
    lost or damaged is written again: without it nobody finds the keeper, and no other one can take its place."""
    while not keeper.ended.is_set():
        if _is_anothers(home.keeper_lock, lock):
            say("ending: the home was made anew, and another keeper keeps it")
            return keeper.ended.set()
        keeper.tick(time.monotonic())
        with keeper.troubles.of(KEEPER, "its record"):
            if try_read_json(home.keeper_record) != record:
                atomic_write_json(home.keeper_record, record)
        with keeper.troubles.of(KEEPER, "bounding the log"):
            _bound_log(home)
        wake.wait(BUSY_TICK_S if any(keeper.runs.active()) else TICK_S)
        wake.clear()


def _is_anothers(path: Path, lock: int) -> bool:
    """True when the lock file of this name is not the one that is held: somebody removed that one with its home."""
    try:
        there, held = path.stat(), os.fstat(lock)
    except OSError:  # it is away, or cannot be seen: nobody else can have taken it
        return False
    return (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino)


def _bound_log(home: OrchHome) -> None:
    """Standard output is keeper.log: cut it to nothing when it has grown too large, keeping one old copy."""
    if os.fstat(1).st_size > MAX_LOG_BYTES:
        home.keeper_log.with_suffix(".log.1").write_bytes(home.keeper_log.read_bytes()[-MAX_LOG_BYTES:])
        os.ftruncate(1, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
