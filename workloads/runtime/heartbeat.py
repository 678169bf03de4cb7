"""Heartbeat lines of one rank: at most one a second, phases at once, a sign of life at least every 30 s.

Never raises into training: a full or vanished disk is counted (`lost`) and tried again with the next line. Never
fsyncs. `seq` starts at 0 in every attempt, so (attempt, seq) orders the lines of a file. A keepalive line repeats
phase and step and nothing else: who wants to know whether a run moves looks at `step`, not at the age of the line.
Standard library only. Called by `workloads.runtime.run.Run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

from workloads.contract.beats import (
    BEAT_VERSION,
    MAX_ABS,
    MAX_LINE_BYTES,
    OPTIONAL_FLOATS,
    OPTIONAL_INTS,
    OPTIONAL_TEXT,
)
from workloads.contract.files import LineWriter
from workloads.contract.process import ProcId
from workloads.contract.states import Phase
from workloads.runtime.rankenv import RankEnv

MIN_INTERVAL_S = 1.0
KEEPALIVE_S = 30.0
_TICK_S = 5.0

Value = int | float | str | list[float]


def clean_field(name: str, value: object) -> Value | None:
    """`value` as the contract wants field `name`, None when it is unknown, out of range or of the wrong kind."""
    if value is None:
        return None
    try:
        if name in OPTIONAL_FLOATS:
            number = float(value)  # type: ignore[arg-type]  # tensors and numpy scalars too
            return number if not abs(number) > MAX_ABS or number in (float("inf"), float("-inf")) else None
        if name in OPTIONAL_INTS:
            whole = int(value)  # type: ignore[call-overload]
            return whole if 0 <= whole < 1 << 53 else None
        if name in OPTIONAL_TEXT:
            return str(value)[:256]
        if name == "gate_branch_shares":
            shares = [float(x) for x in value]  # type: ignore[attr-defined]
            return shares if len(shares) == 3 else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return None


class Heartbeat:
    """Writes `heartbeat_rank<k>.jsonl`. Safe to call from any thread; silent in forked children."""

    def __init__(self, env: RankEnv) -> None:
        self._env = env
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._writer: LineWriter | None = None
        self._seq = 0
        self._phase = Phase.STARTING
        self._step: int | None = None
        self._last = float("-inf")  # monotonic seconds of the last line
        self._closed = threading.Event()
        self.lost = 0
        me = ProcId.me()
        self._birth = {
            "run": env.run_id,
            "pid": me.pid,
            "start_time": me.start_time,
            "boot_id": me.boot_id,
            "pod": env.pod,
        }
        self._write(Phase.STARTING, {})
        threading.Thread(target=self._keepalive, name="orch-heartbeat", daemon=True).start()

    def beat(self, step: int | None = None, **fields: object) -> None:
        """A step was made. Written when a second has passed since the last line, or the phase was another one."""
        if step is not None:
            self._step = step
        now = time.monotonic()
        if self._phase is Phase.PROGRESS and now - self._last < MIN_INTERVAL_S:
            return
        self._write(Phase.PROGRESS, fields)

    def phase(self, phase: Phase | str, **fields: object) -> None:
        """The rank does something else now. Written at once; an unknown word is ignored."""
        try:
            known = Phase(phase)
        except ValueError:
            self.lost += 1
            return
        self._write(known, fields)

    def close(self) -> None:
        self._closed.set()

    def _line(self, phase: Phase, fields: dict[str, object]) -> bytes:
        env = self._env
        row: dict[str, object] = {
            "v": BEAT_VERSION, "seq": self._seq, "ts": round(time.time(), 3), "msg": phase.value,
            "rank": env.rank, "world_size": env.world_size, "attempt": env.attempt,
        }  # fmt: skip
        if self._seq == 0:
            row.update(self._birth)
        if self._step is not None and fields.get("step") is None:
            fields = {**fields, "step": self._step}
        bare = json.dumps(row, separators=(",", ":"))
        row.update((k, v) for k, raw in fields.items() if (v := clean_field(k, raw)) is not None)
        line = json.dumps(row, separators=(",", ":"))
        return (line if len(line) < MAX_LINE_BYTES else bare).encode() + b"\n"

    def _write(self, phase: Phase, fields: dict[str, object]) -> None:
        if os.getpid() != self._pid:
            return  # a forked data worker is not the rank
        with self._lock:
            self._phase, self._last = phase, time.monotonic()
            try:
                if self._writer is None:
                    self._writer = LineWriter(self._env.run.heartbeat(self._env.rank))
                self._writer.write(self._line(phase, fields))
                self._seq += 1
            except OSError:
                self.lost += 1

    def _keepalive(self) -> None:
        while not self._closed.wait(_TICK_S):
            if time.monotonic() - self._last >= KEEPALIVE_S:
                # json or the clock cannot fail here, but this thread must live whatever does
                with contextlib.suppress(Exception):
                    self._write(self._phase, {})
