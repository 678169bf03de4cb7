"""This machine as a pod: the transport seam without a network."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from pods.transport.base import Process, Result
from workloads.contract.errors import RemoteError, UnreachableError
from workloads.contract.files import atomic_write

MAX_OUTPUT_CHARS = 4 << 20
STDERR_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20


class LocalTransport:
    name = "local"

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                env=None if env is None else {**os.environ, **env},
                check=False,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Result(tuple(argv), 127, "", f"{argv[0]}: command not found")
        except PermissionError:
            return Result(tuple(argv), 126, "", f"{argv[0]}: permission denied")
        except OSError as e:  # it is there and cannot be run: no known format, words that are too long
            return Result(tuple(argv), 126, "", f"{argv[0]}: {e.strerror}")
        except subprocess.TimeoutExpired as e:
            raise UnreachableError(
                "E-POD-001", f"`{argv[0]}` did not answer on pod local", value=" ".join(argv), expected=f"{timeout_s} s"
            ) from e
        out, err = (s.decode(errors="replace")[:MAX_OUTPUT_CHARS] for s in (done.stdout, done.stderr))
        return Result(tuple(argv), done.returncode, out, err)

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        except OSError as e:
            errors.close()
            raise RemoteError("E-POD-002", f"`{argv[0]}` cannot be started on pod local: {e.strerror}") from e
        return LocalProcess(process, errors)

    def put(self, data: bytes, path: PurePosixPath, *, timeout_s: float, mode: int = 0o600) -> None:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write(target, data, mode=mode)
        except OSError as e:
            raise RemoteError(
                "E-POD-003", f"a file cannot be written on pod local: {e.strerror}", where=str(path)
            ) from e

    def close(self) -> None:
        return


class LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._in, False)

    def write(self, data: bytes, *, timeout_s: float) -> None:
        view = memoryview(data)
        while view:
            deadline = time.monotonic() + timeout_s
            if not select.select([], [self._in], [], max(deadline - time.monotonic(), 0))[1]:
                raise UnreachableError("E-POD-001", "a process on pod local takes no input", expected=f"{timeout_s} s")
            try:
                view = view[os.write(self._in, view) :]
            except BrokenPipeError as e:
                raise UnreachableError("E-POD-004", "a process on pod local has ended") from e

    def read(self, *, timeout_s: float) -> bytes:
        if not select.select([self._out], [], [], timeout_s)[0]:
            raise UnreachableError("E-POD-001", "a process on pod local does not answer", expected=f"{timeout_s} s")
        return os.read(self._out, CHUNK_BYTES)

    def stderr(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), STDERR_BYTES, max(0, size - STDERR_BYTES)).decode(errors="replace")

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
