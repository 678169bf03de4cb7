"""Heartbeat lines of one rank: at most one a second, phases at once, a sign of life at least every 30 s.

Never raises into training: while the run directory is full, read-only or gone the lines wait in /dev/shm
(`contract.aside`), which is said once on stderr; what fits nowhere is counted (`lost`). Never fsyncs. `seq` starts at 0
in every attempt, so (attempt, seq) orders the lines of a file. A keepalive line repeats phase and step and nothing
else: who wants to know whether a run moves looks at `step`, not at the age of the line.
Standard library only. Called by `workloads.runtime.run.Run`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time

from workloads.contract.aside import aside_of, move_back, put_aside
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
            detach = getattr(value, "detach", None)  # torch warns of a loss that still has its graph
            number = float(value if detach is None else detach())  # type: ignore[arg-type]  # numpy scalars too
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


def _of_the_host(fields: dict[str, object]) -> dict[str, object]:
    """Without tensors of a device, for which the end of a process would wait, and without the graphs of others."""
    here = {k: x for k, x in fields.items() if getattr(getattr(x, "device", None), "type", "cpu") == "cpu"}
    return {k: x.detach() if hasattr(x, "detach") else x for k, x in here.items()}


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
        self._withheld: dict[str, object] | None = None  # fields of a beat that came too soon behind a line
        self._closed = threading.Event()
        self._aside = False
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
        atexit.register(self.flush)  # the last steps of a script that does not say `done`

    def beat(self, step: int | None = None, **fields: object) -> None:
        """A step was made. Written when a second has passed since the last line, or the phase was another one."""
        if step is not None:
            self._step = step
        now = time.monotonic()
        if self._phase is Phase.PROGRESS and now - self._last < MIN_INTERVAL_S:
            self._withheld = _of_the_host(fields)
            return
        self._write(Phase.PROGRESS, fields)

    def flush(self) -> None:
        """The rank comes to its end: the last beat is written, however soon it came behind another."""
        fields = self._withheld
        if fields is not None and not self._closed.is_set():
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
        atexit.unregister(self.flush)

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
            self._phase, self._last, self._withheld = phase, time.monotonic(), None
            line = self._line(phase, fields)
            try:
                self._put(line)
            except OSError as e:
                self._put_aside(line, e)

    def _put(self, line: bytes) -> None:
        """To the heartbeat file, behind what has waited for it."""
        if self._writer is not None and self._writer.is_gone():
            self._drop_writer()
        if self._writer is None:
            self._writer = LineWriter(self._env.run.heartbeat(self._env.rank))
            moved = move_back(self._env.run, self._env.rank, self._writer)
            if self._aside:
                self._say(f"heartbeats are written to {self._writer.path} again; {moved} were moved there")
                self._aside = False
        self._writer.write(line)
        self._seq += 1

    def _put_aside(self, line: bytes, why: OSError) -> None:
        self._drop_writer()
        path = aside_of(self._env.run, self._env.rank)
        if not self._aside:
            self._say(f"heartbeats cannot be written ({why.strerror or why}); until they can, they go to {path}")
        self._aside = True
        try:
            put_aside(self._env.run, self._env.rank, line)
            self._seq += 1
        except (OSError, ValueError):
            self.lost += 1

    def _drop_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer = None

    @staticmethod
    def _say(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # where the log is on the same disk, nobody can be told
            print(f"orch: {text}", file=sys.stderr, flush=True)

    def _keepalive(self) -> None:
        while not self._closed.wait(_TICK_S):
            if time.monotonic() - self._last >= KEEPALIVE_S:
                # json or the clock cannot fail here, but this thread must live whatever does
                with contextlib.suppress(Exception):
                    self._write(self._phase, {})
