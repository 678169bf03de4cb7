"""`python -m workloads.shim <order.json>`: start one rank, care for it, tell how it ended. See the package docstring.

Exit codes: 0 done, or nothing to do; 1 the record could not be written; 2 no usable order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from workloads.contract.aside import move_back
from workloads.contract.files import read_json
from workloads.contract.records import HaltClocks, ShimOrder, from_wire
from workloads.contract.rundir import RunDir
from workloads.shim.care import WAKING
from workloads.shim.rank import carry_out
from workloads.shim.record import LAST_RECORD_S, ShimLog, how, is_recorded, write_patiently
from workloads.shim.spawn import PR_SET_CHILD_SUBREAPER, prctl

LOCK_PATIENCE_S = 1.0


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m workloads.shim ORDER.json", file=sys.stderr)
        return 2
    try:
        order = from_wire(ShimOrder, read_json(Path(argv[1])))
        limits = from_wire(HaltClocks, order.halt)
    except (OSError, ValueError, TypeError) as e:
        print(f"no usable order: {e}", file=sys.stderr)
        return 2
    run = RunDir(Path(order.run_dir))
    settle()
    record_path = run.rank_record(order.attempt, order.rank)
    log = ShimLog(run.shim_log(order.rank))
    try:
        if not _own(run.rank_lock(order.attempt, order.rank)) or is_recorded(record_path):
            return 0  # another shim has it, had it, or lost it (then the keeper finishes its record)
        record = carry_out(order, run, limits, log)
        with contextlib.suppress(OSError, ValueError):  # no news of a rank that has ended is worth a record
            move_back(run, order.rank)
        write_patiently(record_path, record, log, LAST_RECORD_S)
    except OSError as e:
        log.say(f"the lock or the record could not be written: {e}")
        return 1
    log.say(f"rank {order.rank} ended: {how(record)}")
    return 0


def settle() -> None:
    """Session of our own, subreaper, private files; SIGCHLD and SIGTERM wait until they are fetched."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # so that no lease ends up as somebody's stdout
        pass
    os.close(fd)
    with contextlib.suppress(PermissionError):  # a leader already
        os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would eat exit codes
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def _own(lock: Path) -> bool:
    """True when this process now holds `lock`, until it ends. The keeper probes it now and then, so a busy one is
    tried for a second."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
