"""A rank that halts well, badly, or not at all: `python -I -S rank.py SHAPE RUN_DIR`. Standard library only.

Every process of it writes `pid start_time` into `roster` of the run directory before anything else: what a halt must
have ended is known without its mark, its parent or its session. Called by `tests.halts.drive`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

MOST_FORKS = 100


def enrol(folder: str) -> None:
    with open("/proc/self/stat", "rb") as f:
        start_time = f.read().rsplit(b")", 1)[1].split()[19].decode()
    fd = os.open(f"{folder}/roster", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{os.getpid()} {start_time}\n".encode())
    os.close(fd)


def sit(folder: str) -> None:
    enrol(folder)
    time.sleep(600)
    os._exit(0)


def plain(folder: str) -> None:
    time.sleep(600)


def polite(folder: str) -> None:
    """Knows `.HALT`: beats, writes a checkpoint and its acknowledgement, exits 75."""
    attempt, seq = int(os.environ["ORCH_ATTEMPT"]), 0
    beats = os.open(f"{folder}/heartbeat_rank0.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while not os.path.lexists(f"{folder}/.HALT"):
        row = {"v": 1, "seq": seq, "ts": time.time(), "msg": "progress", "rank": 0, "world_size": 1,
               "attempt": attempt, "step": seq}  # fmt: skip
        os.write(beats, json.dumps(row).encode() + b"\n")
        seq += 1
        time.sleep(0.05)
    os.mkdir(f"{folder}/checkpoints/step_{seq:08d}")
    sys.exit(75)


def deaf(folder: str) -> None:
    """Neither it nor its children hear SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            sit(folder)
    time.sleep(600)


def daemon(folder: str, *, bare: bool = False) -> None:
    """A double-forked child in a session of its own; `bare`: one that has emptied its environment as well."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if bare:
                os.execve(sys.executable, [sys.executable, "-I", "-S", __file__, "sit", folder], {})
            sit(folder)
        os._exit(0)
    os.wait()
    time.sleep(600)


def bare(folder: str) -> None:
    daemon(folder, bare=True)


def emptied(folder: str) -> None:
    """A child that stays in the rank's session, with an empty environment and its output elsewhere."""
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execve(sys.executable, [sys.executable, "-I", "-S", __file__, "sit", folder], {})
    time.sleep(600)


def forker(folder: str) -> None:
    """Forks on while it is being stopped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(MOST_FORKS):
        if os.fork() == 0:
            sit(folder)
        time.sleep(0.02)
    time.sleep(600)


def stopped(folder: str) -> None:
    """Stopped by a signal, with a stopped child."""
    if os.fork() == 0:
        enrol(folder)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def brief(folder: str) -> None:
    """Ends by itself at about the moment of the halt, and leaves a child behind."""
    if os.fork() == 0:
        sit(folder)
    time.sleep(0.2)


SHAPES = {f.__name__: f for f in (plain, polite, deaf, daemon, bare, emptied, forker, stopped, brief)}

if __name__ == "__main__":
    if sys.argv[1] == "sit":
        sit(sys.argv[2])
    enrol(sys.argv[2])
    SHAPES[sys.argv[1]](sys.argv[2])
