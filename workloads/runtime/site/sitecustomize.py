"""Makes any Python that a rank starts answer a dump signal with its stacks. Found first on PYTHONPATH by `site`.

When ORCH_STACKDUMP names a file, faulthandler is registered for SIGUSR1 (or ORCH_DUMP_SIGNAL) on it, until the program
takes that signal for itself. Then this folder leaves sys.path and the `sitecustomize` that would have been found
without us runs in our place. Never prints; an error of ours is swallowed, an error of the other one is passed on.
Python 3.8 and later; imports nothing of orch, and of the standard library only what every start has loaded anyway (no
pathlib, no contextlib).
"""

import os
import sys


def _register() -> None:
    path = os.environ.get("ORCH_STACKDUMP")
    if not path:
        return
    import _signal as signal  # type: ignore[import-not-found]  # `signal` itself brings enum: 9 ms at every start
    import faulthandler

    raw = os.environ.get("ORCH_DUMP_SIGNAL", "")
    number = int(raw) if raw.isascii() and raw.isdigit() and len(raw) < 4 else 0
    # the same set as in workloads.contract.process: signals without a meaning of their own
    if number not in (signal.SIGUSR1, signal.SIGUSR2) and not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        number = signal.SIGUSR1
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)  # stays open: that file is how a dumper knows that the handler is ours
    faulthandler.register(number, fd, all_threads=True, chain=False)
    if not faulthandler.is_enabled():
        faulthandler.enable()
    _share(signal, faulthandler, number, fd)  # type: ignore[no-untyped-call]


LATE_S = 3.0


def _share(signal, faulthandler, number, fd):  # type: ignore[no-untyped-def]  # 3.8 has no typing that costs nothing
    """The gentle signal is answered between two instructions, where the frames are whole. And a program that takes one
    of the two for itself ("save and exit" is usual) must never get it from a dumper: the dump file is closed then, and
    who has it not open is not signalled."""
    import time

    original = signal.signal
    there = os.fstat(fd)
    ours = [fd]
    gentle = signal.SIGRTMAX - 3  # workloads.contract.process.GENTLE_SIGNAL

    def is_ours() -> float:
        """When it was written to; 0 when it is a file of the program's by now."""
        if ours:
            now = os.fstat(ours[0])
            if (now.st_dev, now.st_ino) == (there.st_dev, there.st_ino):
                return now.st_mtime
        return 0.0

    def answer(signum: int, frame: object) -> None:
        try:
            if abs(time.time() - is_ours()) < LATE_S:  # who asked and wrote its header long ago has another answer
                faulthandler.dump_traceback(ours[0], all_threads=True)
        except Exception:  # a full disk is no matter of the program's
            pass

    def give_way(signalnum, handler):  # type: ignore[no-untyped-def]
        before = original(signalnum, handler)
        if signalnum in (number, gentle) and ours:
            try:
                if is_ours():
                    os.close(ours[0])
            except OSError:
                pass
            ours.clear()
        return before

    if gentle != number:
        original(gentle, answer)
        signal.siginterrupt(gentle, False)
    give_way.__name__ = give_way.__qualname__ = "signal"
    give_way.__module__, give_way.__doc__ = original.__module__, original.__doc__
    signal.signal = give_way  # `signal.signal` calls this one, and so does asyncio


def _step_aside() -> None:
    """Take this folder off sys.path, and ourselves out of sys.modules."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]  # noqa: PTH100
    del sys.modules["sitecustomize"]


def _hand_on() -> None:
    """Import the next `sitecustomize`, which replaces us in sys.modules; when there is none, we stay."""
    ours = sys.modules["sitecustomize"]
    try:
        _step_aside()
    except Exception:  # the user's program must start, whatever is wrong here
        return
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as e:
        if e.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours


if __name__ == "sitecustomize":
    try:  # noqa: SIM105
        _register()
    except Exception:
        # The user's program must start, whatever is wrong with our file (a full disk, a link in its place, a Python
        # without faulthandler), and print nothing of ours. It is not hidden: a dump looks whether the program has that
        # file open; of one that has not it says "no faulthandler" and looks from outside (`pods.remote.stackdump`).
        pass
    _hand_on()
