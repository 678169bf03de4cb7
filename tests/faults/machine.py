"""Cells of faults of the machine: the disk, the run directory, clocks, pids, a reboot."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.book import cells
from tests.faults.people import acknowledged
from tests.faults.ranks import STRUCK, fallen, says
from tests.faults.stand import Stand
from tests.faults.words import CannotRun, Fault, When
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.process import marked

CLONE_NEWNS = 0x20000
DISK_MIB = 24
RESERVED_PIDS = 300
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def mount(*args: str) -> None:
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"mount {' '.join(args)}: {done.stderr.strip()}")


def own_mounts() -> None:
    """What is mounted from now on is seen by this process and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise CannotRun(f"no mount namespace here: {os.strerror(ctypes.get_errno())}")
    mount("--make-rprivate", "/")


def small_disk(stand: Stand) -> None:
    """The home of the run on a disk of its own."""
    own_mounts()
    mount("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(stand.home.path))
    stand.home.runs.mkdir(mode=0o700)
    stand.at_end.append(lambda: subprocess.run(["umount", "-l", str(stand.home.path)], check=False))


@contextlib.contextmanager
def full(stand: Stand) -> Iterator[None]:
    """Not a byte is left on the disk."""
    filler = stand.home.path / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while os.write(fd, bytes(size)):
                    pass
        yield
    finally:
        os.close(fd)
        filler.unlink()


@contextlib.contextmanager
def read_only(stand: Stand) -> Iterator[None]:
    path = str(stand.run.path)
    for patience in range(20, -1, -1):
        mount("--bind", path, path)
        try:
            mount("-o", "remount,bind,ro", path)
            break
        except CannotRun:  # busy: somebody opened a file for writing between the two
            subprocess.run(["umount", "-l", path], check=True)
            if not patience:
                raise
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@contextlib.contextmanager
def vanished(stand: Stand) -> Iterator[None]:
    away = stand.run.path.with_name(f"away-{stand.run.run_id}")
    stand.run.path.rename(away)
    try:
        yield
    finally:
        assert not stand.run.path.exists(), f"somebody made it anew: {list(stand.run.path.rglob('*'))}"
        away.rename(stand.run.path)


def ridden_out(stand: Stand, when: When, trouble: Callable[[Stand], contextlib.AbstractContextManager[None]]) -> None:
    """No rank notices, no attempt is spent; what could not be saved meanwhile is saved later."""
    attempt = stand.bring_to(when)
    ranks = [] if when is When.BETWEEN else [stand.rank(r, attempt) for r in range(stand.world)]
    with trouble(stand):
        if when in (When.TRAINING, When.CHECKPOINTING):
            stand.control.hold("evaluating")
            stand.control.release("checkpointing")
            stand.until_at("evaluating")  # beyond a checkpoint that could not be saved
        else:
            stand.control.release()
        time.sleep(3)
        assert all(r.alive() for r in ranks), stand.story()
    stand.control.release()
    if when is When.HALTING:
        stand.until_state("halted")
        acknowledged(stand)
    else:
        stand.until_state("succeeded")
    assert stand.attempt == attempt + (when is When.BETWEEN), stand.attempt
    stand.bring_back()


@cells(Fault.DISK_FULL, When.TRAINING, When.CHECKPOINTING, When.HALTING, When.BETWEEN, root=True)
def disk_full(stand: Stand, when: When) -> None:
    small_disk(stand)
    ridden_out(stand, when, full)


@cells(Fault.RANK_KILLED_DISK_FULL, When.TRAINING, When.HALTING, root=True)
def rank_killed_disk_full(stand: Stand, when: When) -> None:
    """Its record cannot be written: nobody takes it for alive or for lost, and it is told once there is room."""
    small_disk(stand)
    attempt = stand.bring_to(when)
    with full(stand):
        stand.rank(STRUCK, attempt).signal(signal.SIGKILL)
        time.sleep(4)
        assert stand.attempt == attempt
    stand.control.release()
    if when is When.HALTING:
        stand.until_state("halted")
    else:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        says(fallen(stand, attempt), f"rank {STRUCK} was killed by signal 9")
    stand.bring_back()


@cells(Fault.RUN_READ_ONLY, When.TRAINING, When.CHECKPOINTING, When.HALTING, root=True)
def run_read_only(stand: Stand, when: When) -> None:
    own_mounts()
    ridden_out(stand, when, read_only)


@cells(Fault.RUN_VANISHED, When.TRAINING, When.CHECKPOINTING, When.HALTING, When.BETWEEN)
def run_vanished(stand: Stand, when: When) -> None:
    ridden_out(stand, when, vanished)


@cells(Fault.RUN_VANISHED, When.EVALUATING)
def run_vanished_long(stand: Stand, when: When) -> None:
    """For longer than a shim is waited for: nothing is started beside the ranks that cannot be seen."""
    attempt = stand.bring_to(when)
    ranks = [stand.rank(r, attempt) for r in range(stand.world)]
    with vanished(stand):
        time.sleep(15)
    stand.control.release()
    stand.until_state("succeeded")
    assert stand.attempt == attempt and not any(r.alive() for r in ranks)
    stand.bring_back()


@cells(Fault.CLOCK_STEPPED, When.TRAINING, When.HALTING)
def clock_stepped(stand: Stand, when: When) -> None:
    """Three hours on and ten minutes back, of a rank's clock and the supervisor's: nothing is decided by wall time."""
    if not FAKETIME.exists():
        raise CannotRun("libfaketime is not installed (apt-get install faketime)")
    shift = stand.control.control / "clock"
    shift.write_text("+0\n")
    os.utime(shift, (0, 0))
    stand.env = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(shift), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    stand.ways.clock = lambda: time.time() + float(shift.read_text() or 0)
    stand.bring_to(when)
    for step in ("+10800\n", "-600\n"):
        shift.write_text(step)
        time.sleep(2.5)
    stand.control.release()
    stand.until_state("halted" if when is When.HALTING else "succeeded")
    assert stand.attempt == 1
    stand.bring_back()


@cells(Fault.PID_REUSED, When.TRAINING, root=True, pids=True)
def pid_reused(stand: Stand, when: When) -> None:
    """The pid of a rank that died unseen belongs to somebody else by the time that anybody looks: he is left alone."""
    try:
        Path("/proc/sys/kernel/pid_max").write_text("500")
    except OSError as e:
        raise CannotRun(f"pids cannot be made few here: {e}") from e
    child = 0
    while child <= RESERVED_PIDS:  # the lowest ones are never given again
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    attempt = stand.bring_to(when)
    stand.auto = False
    stand.supervisor.kill()
    stand.keeper.kill()
    rank = stand.rank(STRUCK, attempt)
    stand.shim(STRUCK, attempt).signal(signal.SIGKILL)
    stand.until(lambda: buried(rank.pid), "the pid is free")
    innocent = born_as(rank.pid)
    stand.auto = True
    stand.keeper.start()
    stand.control.release()
    stand.until(lambda: stand.attempt > attempt, "the next attempt")
    says(fallen(stand, attempt), f"rank {STRUCK} was lost with its shim")
    stand.bring_back()
    assert os.waitpid(innocent, os.WNOHANG) == (0, 0), "somebody else was killed"
    os.kill(innocent, signal.SIGKILL)
    os.waitpid(innocent, 0)


def buried(pid: int) -> bool:
    """This process is PID 1 here: orphans come to it when they die."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not Path(f"/proc/{pid}").exists()


def born_as(pid: int) -> int:
    """A process of this pid, in a session of its own."""
    for _ in range(5000):
        child = os.fork()
        if child == 0:
            if os.getpid() == pid:
                os.setsid()
                os.execvp("sleep", ["sleep", "600"])
            os._exit(0)
        if child == pid:
            return child
        os.waitpid(child, 0)
    raise CannotRun(f"pid {pid} did not come back in 5000 forks")


@cells(Fault.REBOOTED, When.TRAINING, When.HALTING)
def rebooted(stand: Stand, when: When) -> None:
    """Nothing lives, and what the records tell is of another boot."""
    attempt = stand.bring_to(when)
    stand.auto = False
    for child in (stand.supervisor, stand.keeper):
        child.kill()
    shims = [stand.shim(r, attempt) for r in range(stand.world)]
    for shim in shims:
        shim.signal(signal.SIGKILL)
    stand.until(lambda: not marked(stand.run.run_id) and not any(s.alive() for s in shims), "nothing lives")
    for rank in range(stand.world):
        path = stand.run.rank_record(attempt, rank)
        atomic_write_json(path, read_json(path) | {"boot_id": "00000000-0000-4000-8000-000000000000"})
    stand.auto = True
    stand.keeper.start()
    stand.control.release()
    if when is When.HALTING:
        stand.until_state("halted")
    else:
        stand.until(lambda: stand.attempt > attempt, "the next attempt")
        says(fallen(stand, attempt), "was lost with its shim", "started anew")
    stand.bring_back()
