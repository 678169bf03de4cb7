"""`python <tree or zip> serve HOME`: greet, then answer one request after the other until standard input ends.

Nothing but frames goes to the real standard output: fd 1 is moved away first, so that a stray print cannot harm them.
A peer that says nothing for five minutes is gone, whatever its connection says: a cut link leaves no process behind.
"""

from __future__ import annotations

import os
import platform
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pods.remote.dispatch import dispatch
from pods.remote.wire import GREETING, VERSION, FrameError, error_row, pack, unpack
from workloads.contract.errors import OrchError, RemoteError
from workloads.contract.files import write_all
from workloads.contract.process import boot_id
from workloads.contract.rundir import OrchHome

IDLE_S = 300.0


class _Gone(Exception):
    """The other side has closed, or fallen silent."""


def read_exactly(count: int) -> bytes:
    chunks, left = [], count
    while left:
        if not select.select([0], [], [], IDLE_S)[0]:
            raise _Gone
        chunk = os.read(0, min(left, 1 << 20))
        if not chunk:
            raise _Gone
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def greeting(home: OrchHome) -> dict[str, Any]:
    return {
        "v": VERSION, "home": str(home.path), "python": sys.executable, "version": platform.python_version(),
        "uid": os.getuid(), "pid": os.getpid(), "hostname": socket.gethostname(), "boot_id": boot_id(),
        "now": time.time(),
    }  # fmt: skip


def answer(home: OrchHome, message: dict[str, Any], data: bytes) -> bytes:
    try:
        args = message.get("args")
        found = dispatch(home, str(message.get("op")), args if isinstance(args, dict) else {}, data)
        return pack({"ok": True, "fields": found.fields}, found.data)
    except OrchError as e:
        return pack({"ok": False, "error": error_row(e)})
    except Exception as e:  # the process must answer: the other side cannot tell a crash from a cut
        return pack({"ok": False, "error": error_row(RemoteError("E-POD-015", f"{type(e).__name__}: {e}"))})


def main(argv: list[str]) -> int:
    os.umask(0o077)
    home = OrchHome(Path(argv[2]))
    out = os.dup(1)
    os.dup2(2, 1)
    write_all(out, f"{GREETING} {VERSION}\n".encode() + pack(greeting(home)))
    try:
        while True:
            message, data = unpack(read_exactly)
            write_all(out, answer(home, message, data))
    except (_Gone, BrokenPipeError, FrameError):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
