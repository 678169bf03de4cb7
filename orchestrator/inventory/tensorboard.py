"""TensorBoard for a run: on its pod when it is installed there, else here over the copy of the run's `tb/`.

It listens on 127.0.0.1 alone, on a port of its own choice, and ends with the command: on a pod when the connection
does, by a shell that waits for the end of its input. Called by `orch tensorboard`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pods.transport.base import Process, Transport
from workloads.contract.errors import LocalError, RemoteError, UnreachableError

START_S = 60.0
END_S = 5.0
_ADDRESS = re.compile(rb"https?://[^\s/:]+:(\d{1,5})/")
_HAS = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorboard') is None)"
_WITH_INPUT = """
exec 3<&0
"$@" </dev/null 2>&1 3<&- &
p=$!
( cat >/dev/null; kill $p ) <&3 >/dev/null 2>&1 &
c=$!
trap 'kill $p $c 2>/dev/null' 1 2 15
exec 3<&-
wait $p
kill $c 2>/dev/null
"""
"""the program in "$@" until it ends or standard input does"""


def here() -> list[str] | None:
    """How TensorBoard is started on this machine; None when it is not installed."""
    probe = subprocess.run([sys.executable, "-c", _HAS], capture_output=True, timeout=START_S, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "tensorboard.main"]
    found = shutil.which("tensorboard")
    return [found] if found else None


def on_pod(transport: Transport, pythons: Sequence[str]) -> list[str] | None:
    """How it is started on a pod, by the first of these interpreters that has it."""
    for python in pythons:
        if transport.run([python, "-I", "-c", _HAS], timeout_s=START_S).ok:
            return [python, "-m", "tensorboard.main"]
    return None


def arguments(logdir: str) -> list[str]:
    return ["--logdir", logdir, "--host", "127.0.0.1", "--port", "0", "--reload_interval", "10"]


@dataclass
class OnPod:
    """A TensorBoard that runs on a pod until `close`, or until the connection is lost."""

    process: Process
    port: int

    @classmethod
    def start(cls, transport: Transport, argv: Sequence[str], logdir: str) -> OnPod:
        command = ["/bin/sh", "-c", _WITH_INPUT, "sh", *argv, *arguments(logdir)]
        process = transport.start(command, timeout_s=START_S)
        try:
            return cls(process, port_of(lambda left: process.read(timeout_s=left)))
        except BaseException:
            process.close()
            raise

    def close(self) -> None:
        self.process.close()


@dataclass
class Here:
    """A TensorBoard that runs on this machine until `close`."""

    process: subprocess.Popen[bytes]
    port: int

    @classmethod
    def start(cls, argv: Sequence[str], logdir: Path) -> Here:
        process = subprocess.Popen(
            [*argv, *arguments(str(logdir))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        made = cls(process, 0)
        try:
            made.port = port_of(made._read)
        except BaseException:
            made.close()
            raise
        return made

    def _read(self, left: float) -> bytes:
        import os
        import select

        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        return os.read(fd, 65536) if select.select([fd], [], [], left)[0] else b" "

    def close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def port_of(read: Callable[[float], bytes]) -> int:
    """The port that it says it listens on. RemoteError with its last words when it ends without saying one."""
    said = b""
    deadline = time.monotonic() + START_S
    while (left := deadline - time.monotonic()) > 0:
        chunk = read(left)
        if not chunk:
            words = said.decode(errors="replace").strip().splitlines()
            raise RemoteError("E-PODS-085", "TensorBoard ended at once", value=words[-1] if words else None)
        said = (said + chunk)[-65536:]
        if (m := _ADDRESS.search(said)) and 1 <= int(m[1]) <= 65535:
            return int(m[1])
    raise UnreachableError("E-PODS-086", "TensorBoard does not say where it listens", expected=f"{START_S:.0f} s")


def installed_nowhere(pod: str | None, run: str) -> LocalError:
    there = f"neither on pod {pod} nor on this machine" if pod else "not on this machine"
    return LocalError(
        "E-PODS-087", f"TensorBoard is installed {there}", where=run, fix="python -m pip install tensorboard",
    )  # fmt: skip
