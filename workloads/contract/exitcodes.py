"""Exit codes: what a rank says to its shim, and what the `orch` command says to a shell. Imports nothing of ours."""

from enum import IntEnum


class RankExit(IntEnum):
    """Anything not named here is the program's own."""

    DONE = 0
    CHECKPOINTED = 75  # "resume me"; with `.HALT` present: halted
    STALE_EPOCH = 76  # a newer attempt owns the run
    REFUSED = 77  # the configuration or the checkpoint was refused; a restart cannot help
    NO_GO = 78  # finished, and the answer is no; counts only beside a `verdict.json` of this attempt that says so


class CliExit(IntEnum):
    OK = 0
    RUN_FAILED = 1  # the followed run failed, or a verdict of no-go
    USAGE = 2  # usage or job file
    LOCAL = 3  # this machine
    UNREACHABLE = 4
    REFUSED = 5  # host key, authentication
    CONFLICT = 6  # lease, duplicate, busy
    REMOTE = 7  # something failed on a pod
    INTEGRITY = 8  # hashes, checkpoints, a ledger that differs
    HALTED = 75  # the followed run was halted
    INTERRUPTED = 130
