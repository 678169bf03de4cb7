"""Makes any Python that a rank starts answer a dump signal with its stacks. Found first on PYTHONPATH by `site`.

When ORCH_STACKDUMP names a file, faulthandler is registered for SIGUSR1 (or ORCH_DUMP_SIGNAL) on it. Then this folder
leaves sys.path and the `sitecustomize` that would have been found without us runs in our place. Never prints; an error
of ours is swallowed, an error of the other one is passed on. Python 3.8 and later; imports nothing of orch, and of the
standard library only what every start has loaded anyway (no pathlib, no contextlib).
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
