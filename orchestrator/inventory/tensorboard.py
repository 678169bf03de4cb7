"""TensorBoard for a run: on its pod when it is installed there, else here over the copy of the run's `tb/`.

It listens on 127.0.0.1 alone, on a port of its own choice, and ends with the command, however that ends: by a shell
that waits for the end of its input. On a pod the input ends with the connection. Called by `orch tensorboard`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from pods.transport.base import Process, Transport
from workloads.contract.errors import LocalError, RemoteError, UnreachableError

START_S = 60.0
_SILENT = ("E-POD-001", "E-SSH-041")  # it lives and has nothing to say
_ADDRESS = re.compile(rb"https?://[^\s/:]+:(\d{1,5})/")
_HAS = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorboard') is None)"
_WITH_INPUT = """
exec 3<&0
"$@" </dev/null 2>&1 3<&- &
p=$!
( cat >/dev/null; kill $p; for i in 1 2 3; do sleep 1; kill -0 $p || exit; done; kill -9 $p ) <&3 >/dev/null 2>&1 &
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
class Page:
    """A TensorBoard on a pod or on this machine, until `close`: also when this command dies or the connection does."""

    process: Process
    port: int

    @classmethod
    def start(cls, transport: Transport, argv: Sequence[str], logdir: str) -> Self:
        command = ["/bin/sh", "-c", _WITH_INPUT, "sh", *argv, *arguments(logdir)]
        process = transport.start(command, timeout_s=START_S)
        try:
            return cls(process, port_of(lambda left: process.read(timeout_s=left)))
        except BaseException:
            process.close()
            raise

    def look(self) -> None:
        """Take what it said meanwhile: one whose words nobody reads hangs in the end. Raises when it is no more."""
        try:
            said = self.process.read(timeout_s=0)
        except UnreachableError as e:
            if e.code in _SILENT:
                return
            raise
        if not said:
            raise RemoteError("E-PODS-088", "TensorBoard has ended", fix="the same command again")

    def close(self) -> None:
        self.process.close()


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
