"""The one seam to a machine: run a command there, start one and talk with it, put bytes there.

`local` implements it for this machine, `ssh` for any other. Nothing above this seam knows which it has. It is what can
be done on a machine that has no Python and no SFTP; everything else is an operation of `pods.remote`, carried out there
by a process that was started through `start` (see `pods.pod`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol


@dataclass(frozen=True)
class Result:
    """A command that ended. `exit_code` is negative for a signal; output is bounded by the transport."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Process(Protocol):
    """A command that runs, and its streams. Closing it, or losing it, gives its standard input an end."""

    def write(self, data: bytes, *, timeout_s: float) -> None:
        """Send `data` whole. UnreachableError when the machine takes no byte for `timeout_s`, or the command ended."""
        ...

    def read(self, *, timeout_s: float) -> bytes:
        """Some bytes of its standard output, b"" at its end. UnreachableError when none comes in `timeout_s`."""
        ...

    def stderr(self) -> str:
        """The end of what it wrote to standard error so far (at most 64 KiB)."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    name: str
    """the pod's name, for messages"""

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        """Run `argv` (never a shell line) to its end. `env` is added to what the machine gives.

        Raises UnreachableError when the machine cannot be asked or does not answer in `timeout_s`, RefusedError when
        it says no (host key, authentication); a command that does not exist is exit code 127.
        """
        ...

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        """Start `argv` with pipes to all three streams; raises as `run` does."""
        ...

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        """Replace `path` by `data`, atomically, making its parent directories (0700). RemoteError on a full disk."""
        ...

    def close(self) -> None: ...
