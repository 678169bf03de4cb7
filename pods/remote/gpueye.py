"""Asking for the state of GPUs without ever hanging: NVML in a child process, nvidia-smi where there is no library.

A child, not a thread: a thread that hangs in the driver (state D) keeps its whole process from ending, and a library
that crashes takes the process along; the keeper and the PodAgent may have neither happen to them. The child is asked
over pipes, thrown away when it misses its deadline, and not replaced while it still hangs, so there is never more than
one. It ends by itself when its asker is gone. What could not be told is None, never "missing".

Called by `podhealth` and `gpuheld` here and by the keeper's guard; never loads a library itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pods.remote.gpusmi import by_smi
from pods.remote.gpustate import GpuProcess, Gpus, GpuState
from workloads.contract.process import MARK

ASK_S = 5.0  # the first answer includes nvmlInit, which wakes GPUs without persistence mode
RETRY_S = 30.0  # after a child that had to be thrown away
SMI_EVERY_S = 15.0
MAX_ANSWER_BYTES = 1 << 20
MAX_XIDS = 64
_SERVE = (
    "import sys\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "from pods.remote.nvml import serve\n"
    "sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))\n"
)
_ROOT = str(Path(__file__).parents[2])  # a folder, or the zip that this came in


class GpuEye:
    """One asker. Safe for several threads: they take turns, and one that waits too long gets None for an answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._lost: subprocess.Popen[bytes] | None = None  # killed, and perhaps still hanging in the driver
        self._not_before = 0.0
        self._error = ""
        self._no_library = False
        self._smi: tuple[float, Gpus] | None = None
        self._xids: dict[str, deque[tuple[float, int]]] = {}

    def look(self, uuids: Sequence[str] | None, timeout_s: float = ASK_S, *, smi_age_s: float = SMI_EVERY_S) -> Gpus:
        """The GPUs with these UUIDs, or all, within about `timeout_s`.

        Where only nvidia-smi can tell: within 30 s, and by what it said at most `smi_age_s` ago.
        """
        if uuids is not None and not uuids:
            return Gpus()
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            return _unknown(uuids, "another look at the GPUs has not come back")
        try:
            row = self._ask({"uuids": None if uuids is None else list(uuids)}, deadline)
            if row.get("library") is False:
                self._no_library = True
                self._end()
            if self._no_library:
                return self._by_smi(uuids, smi_age_s)
            if "gpus" not in row:
                return _unknown(uuids, str(row.get("error", "NVML gave no answer")))
            self._keep_xids(row.get("xids") or {})
            return Gpus({s.uuid: s for s in map(self._state, row["gpus"])})
        except (KeyError, TypeError, ValueError) as e:
            return _unknown(uuids, f"NVML's answer cannot be read: {type(e).__name__}")
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the child: while one lives the driver stays awake, and a GPU cannot be reset."""
        with self._lock:
            self._end()

    def __del__(self) -> None:
        """One that nobody uses any more leaves no child behind."""
        try:  # noqa: SIM105  at the interpreter's end contextlib is gone, and the pipes close anyway
            self._end()
        except Exception:
            pass

    def _ask(self, request: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """The child's answer, or `{"error": ..}`."""
        if self._no_library:
            return {}
        child = self._alive()
        if child is None:
            return {"error": self._error}
        try:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = _read_line(child.stdout.fileno(), deadline)
        except OSError as e:
            self._throw_away(f"NVML's process is gone: {e.strerror or e}")
            return {"error": self._error}
        if line is None:
            self._throw_away("the driver did not answer in time")
            return {"error": self._error}
        row = json.loads(line)
        return row if isinstance(row, dict) else {}

    def _keep_xids(self, told: Mapping[str, Sequence[int]]) -> None:
        now = time.monotonic()
        for uuid, codes in told.items():
            self._xids.setdefault(uuid, deque(maxlen=MAX_XIDS)).extend((now, int(code)) for code in codes)

    def _state(self, row: Mapping[str, Any]) -> GpuState:
        return replace(_state(row), xids=tuple(self._xids.get(str(row["uuid"]), ())))

    def _alive(self) -> subprocess.Popen[bytes] | None:
        """The child, started when there is none. None while the last one still hangs, and for a while after."""
        if self._lost is not None and self._lost.poll() is not None:
            self._lost = None
        if self._child is None and self._lost is None and time.monotonic() >= self._not_before:
            env = {k: v for k, v in os.environ.items() if k != MARK and not k.startswith("PYTHON")}
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SERVE, _ROOT],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env=env, cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError as e:
                self._error = f"no process could be started: {e.strerror}"
        return self._child

    def _throw_away(self, why: str) -> None:
        child, self._child = self._child, None
        self._error, self._not_before = why, time.monotonic() + RETRY_S
        if child is not None:
            child.kill()
            _close_pipes(child)
            self._lost = child  # reaped at a later look: in the driver even SIGKILL waits

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            _close_pipes(child)  # it reads the end of its input and goes
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.5)
                return
            child.kill()
            self._lost = child

    def _by_smi(self, uuids: Sequence[str] | None, age_s: float) -> Gpus:
        now = time.monotonic()
        if self._smi is None or now - self._smi[0] >= age_s:
            self._smi = (now, by_smi())
        seen = self._smi[1]
        if uuids is None:
            return seen
        found = {u: seen.states.get(u, _absent(u, seen)) for u in uuids}
        untold = any(s.present is None for s in found.values())
        return Gpus(found, seen.error if untold else None, blind=seen.blind)


@cache
def shared() -> GpuEye:
    """The one of this process, for those who ask a card again and again: one child, whatever comes and goes."""
    return GpuEye()


def _state(row: Mapping[str, Any]) -> GpuState:
    def listed(kind: str) -> tuple[GpuProcess, ...] | None:
        found = row.get(kind)
        return None if found is None else tuple(GpuProcess(int(pid), used) for pid, used in found)

    return GpuState(
        uuid=str(row["uuid"]), present=row["present"], used_mib=row.get("used_mib"), total_mib=row.get("total_mib"),
        ecc_uncorrected=row.get("ecc_uncorrected"), bus=row.get("bus"),
        compute=listed("compute"), graphics=listed("graphics"),
    )  # fmt: skip


def _absent(uuid: str, seen: Gpus) -> GpuState:
    """A card that nvidia-smi did not list: missing, unless it said something else too. It never lists slices."""
    unknown = seen.error is not None or uuid.startswith("MIG-")
    return GpuState(uuid, present=None if unknown else False)


def _unknown(uuids: Sequence[str] | None, why: str) -> Gpus:
    return Gpus({u: GpuState(u) for u in uuids or ()}, why)


def _read_line(fd: int, deadline: float) -> bytes | None:
    """One line from a pipe that nobody else reads; None when it is not there in time. OSError at its end."""
    data = b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > MAX_ANSWER_BYTES or not select.select([fd], [], [], left)[0]:
            return None
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            raise BrokenPipeError("it ended")
        data += chunk
    return data


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
