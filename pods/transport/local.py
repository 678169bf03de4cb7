"""This machine as a pod: the transport seam without a network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pods.transport.base import Result
from workloads.contract.errors import UnreachableError
from workloads.contract.files import atomic_write

MAX_OUTPUT_CHARS = 4 << 20


class LocalTransport:
    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                env=None if env is None else dict(env),
                check=False,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Result(tuple(argv), 127, "", f"{argv[0]}: command not found")
        except PermissionError:
            return Result(tuple(argv), 126, "", f"{argv[0]}: permission denied")
        except subprocess.TimeoutExpired as e:
            raise UnreachableError(
                "E-POD-001", f"`{argv[0]}` did not answer on pod local", value=" ".join(argv), expected=f"{timeout_s} s"
            ) from e
        out, err = (s.decode(errors="replace")[:MAX_OUTPUT_CHARS] for s in (done.stdout, done.stderr))
        return Result(tuple(argv), done.returncode, out, err)

    def open(self, path: PurePosixPath) -> BinaryIO:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")

    def put(self, data: bytes, path: PurePosixPath, *, mode: int = 0o600) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(target, data, mode=mode)
