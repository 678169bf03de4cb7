"""Where `orch` and `python -m orchestrator.cli` begin.

Ctrl-C while modules are still being imported, or once the answer was given, ends the process as it would a C program:
there is nothing to tell then, and Python would print a traceback.
"""

import signal
import sys


def main() -> int:
    """Carry out the command line of this process; its exit code."""
    asked = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    if asked:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator.cli.main import main as carry_out

    try:
        if asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return carry_out()
    except KeyboardInterrupt:  # one more, while the first was being told
        return 130
    finally:
        if asked:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
