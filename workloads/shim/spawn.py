"""Starting the rank: fork, prepare, exec, by hand and in one thread, so that PDEATHSIG and descriptors are exact.

The child is a session of its own: `kill 0` in a user's script reaches its own processes and not the shim. It waits
until its record is written before it becomes the program, so there is never a rank without a record. Called once, by
`__main__`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from workloads.contract.records import ShimOrder

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MAX_ERROR_BYTES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class SpawnError(Exception):
    """The program could not be started; the text is for people. Raised in the child, told through a pipe."""


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. OSError when the kernel refuses."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def start(order: ShimOrder, log: Path, keep: Sequence[int], on_forked: Callable[[int], None]) -> int:
    """The pid of the rank, running `order.argv`. `keep`: descriptors that it inherits.

    `on_forked(pid)` runs before the program does; when it raises, nothing is started. SpawnError tells why exec failed.
    """
    shim = os.getpid()
    go_r, go_w = os.pipe()
    err_r, err_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_w)
        _become(order, log, keep, shim, go_r, err_w)
    os.close(go_r)
    os.close(err_w)
    try:
        on_forked(pid)
        os.write(go_w, b"g")
    except OSError:
        os.close(go_w)  # the child sees the end of its pipe and exits
        os.waitpid(pid, 0)
        os.close(err_r)
        raise
    os.close(go_w)
    error = _read_to_end(err_r)
    if error:
        os.waitpid(pid, 0)
        raise SpawnError(error.decode(errors="replace"))
    return pid


def _read_to_end(fd: int) -> bytes:
    """What the child said before exec closed its end: nothing when exec worked."""
    try:
        with os.fdopen(fd, "rb") as f:
            return f.read(MAX_ERROR_BYTES)
    except OSError as e:
        return f"its start could not be watched: {e}".encode()


def _become(order: ShimOrder, log: Path, keep: Sequence[int], shim: int, go_r: int, err_w: int) -> NoReturn:
    """In the child: turn into the program, or say why not. Never returns."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != shim or os.read(go_r, 1) != b"g":
            os._exit(1)  # the shim died, or could not write the record
        _prepare(order, log, keep, err_w)
        _exec(order)
    except (OSError, ValueError, TypeError, SpawnError) as e:  # ValueError: a NUL byte; TypeError: env is no text
        with contextlib.suppress(OSError):
            os.write(err_w, str(e).encode(errors="replace")[:MAX_ERROR_BYTES] or b"unknown error")
    finally:
        os._exit(127)


def _prepare(order: ShimOrder, log: Path, keep: Sequence[int], err_w: int) -> None:
    with contextlib.suppress(OSError):  # lowering it again is not ours to do in some containers
        Path("/proc/self/oom_score_adj").write_text(str(order.oom_score_adj))
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    for fd in keep:
        os.set_inheritable(fd, True)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in (*keep, err_w):
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
                os.close(int(name))
    os.chdir(order.cwd)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):  # KILL and STOP
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _exec(order: ShimOrder) -> NoReturn:
    """As execvpe(3), with the rank's own PATH and messages a person can use."""
    name = order.argv[0] if order.argv else ""
    if not name:
        raise SpawnError("there is no command")
    if "/" in name:
        candidates = [name]
    else:
        candidates = [str(Path(d or ".") / name) for d in order.env.get("PATH", os.defpath).split(":")]
    refused: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, order.argv, order.env)
        except (FileNotFoundError, NotADirectoryError) as e:
            if Path(candidate).exists():
                raise SpawnError(f"{candidate}: the interpreter of its first line (#!) was not found") from e
        except PermissionError as e:
            refused = refused or e
        except OSError as e:
            if e.errno == errno.ENOEXEC:
                raise SpawnError(f"{candidate}: not a program of this machine, and no #! line") from e
            raise SpawnError(f"{candidate}: {e.strerror}") from e
    if refused is not None:
        raise SpawnError(f"{name}: permission denied (is it executable?)")
    raise SpawnError(f"{name}: no such file" if "/" in name else f"{name}: command not found")
