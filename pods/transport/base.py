"""The one seam to a machine: run a command there, open a file there, put bytes there.

`local` implements it for this machine; `ssh` will for any other. Nothing above this seam knows which it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol


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


class Transport(Protocol):
    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        """Run `argv` (never a shell line) to its end.

        Raises UnreachableError when the machine cannot be asked or does not answer in `timeout_s`; a command that
        does not exist is exit code 127.
        """
        ...

    def open(self, path: PurePosixPath) -> BinaryIO:
        """A regular file for reading, seekable. FileNotFoundError when absent."""
        ...

    def put(self, data: bytes, path: PurePosixPath, *, mode: int = 0o600) -> None:
        """Replace `path` by `data`, atomically, making its parent directories (0700)."""
        ...
