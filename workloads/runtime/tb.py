"""TensorBoard scalars of the steps, written by a thread of rank 0 into `<run>/tb/`: a step pays for an append.

The thread imports TensorBoard's own encoder, makes the file and writes; nothing of that happens in the caller, and
nothing ever waits: a full queue drops steps and counts them. A record is written whole or not at all (`RowFile`), so
that a full disk leaves a file that can be read, and what waited follows. An attempt begins a file of its own that
purges the steps it makes again, so that a page shows each step once. Where the package is not installed nothing is
written. Called by the trainer's books and by `Run` for scripts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workloads.runtime.rows import RowFile, host_number

MAX_WAITING = 20_000
"""steps; at 100 of them a second, three minutes of a disk that does not answer"""
IDLE_S = 1.0
AGAIN_S = 30.0
CLOSE_S = 5.0
TAGS: Mapping[str, str] = {
    "loss": "train/loss", "lr": "train/lr", "grad_norm": "train/grad_norm", "toks_per_s": "speed/tokens_per_s",
    "step_time_s": "speed/step_time_s", "dt_fetch_s": "speed/fetch_s", "mfu": "speed/mfu",
    "gpu_mem_alloc": "memory/allocated_mib", "gpu_mem_reserved": "memory/reserved_mib",
}  # fmt: skip
"""What is shown of a step, by its name in a heartbeat, and where on the page."""
EVAL_TAGS: Mapping[str, str] = {"eval_loss": "eval/loss"}
"""What is shown of an evaluation."""
Point = tuple[int, float, dict[str, float]]


class Board:
    """Takes the figures of steps and never waits. `dropped`: steps that found the queue full."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.dropped = 0
        self._folder, self._attempt = folder, attempt
        self._queue: queue.Queue[Point | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._off = importlib.util.find_spec("tensorboard") is None

    def note(self, step: int, figures: Mapping[str, object], tags: Mapping[str, str] = TAGS) -> None:
        """The figures of a finished step. What is no host number (a tensor, None) is left out, and never waited for."""
        if self._off:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="orch-tensorboard", daemon=True)
            self._thread.start()
        points = {tags[k]: v for k, x in figures.items() if k in tags and (v := host_number(x)) is not None}
        try:
            self._queue.put_nowait((step, time.time(), points))
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let the thread write what waits, for so long."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
                self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            encoder = Encoder()
        except Exception as e:  # a thread beside training: whatever an installation lacks, training goes on
            print(f"note: no event files for TensorBoard: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
            self._off = True
            return
        file: RowFile | None = None
        waiting: list[Point] = []
        while True:
            over = self._take(waiting)
            if waiting and file is None:
                file = self._open(encoder, waiting[0][0])
            if waiting and file is not None:
                file.write(b"".join(encoder.scalars(*point) for point in waiting))
                waiting.clear()
            if over:
                return
            if file is None and waiting:
                time.sleep(AGAIN_S)

    def _take(self, waiting: list[Point]) -> bool:
        """All that is in the queue, and at least one or a second; True at the end."""
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=IDLE_S)
            while item is not None:
                if len(waiting) < MAX_WAITING:
                    waiting.append(item)
                else:
                    self.dropped += 1
                item = self._queue.get_nowait()
            return True
        return False

    def _open(self, encoder: Encoder, step: int) -> RowFile | None:
        """A new file that takes the place of what older ones say of `step` and later; None: not now."""
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.a{self._attempt}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return RowFile(self._folder / name, encoder.beginning(step))
        except OSError as e:
            print(f"note: no event file for TensorBoard yet: {e.strerror}", file=sys.stderr, flush=True)
            return None


class Encoder:
    """Records of an event file, by TensorBoard's own code. ImportError without the package; a second to make."""

    def __init__(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._writer: Any = RecordWriter

    def beginning(self, step: int) -> bytes:
        """The first records of a file that purges `step` and later ones from the files before it."""
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        now = time.time()
        return self._record(wall_time=now, file_version="brain.Event:2") + self._record(
            wall_time=now, step=step, session_log=log
        )

    def scalars(self, step: int, now: float, points: Mapping[str, float]) -> bytes:
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        return self._record(wall_time=now, step=step, summary=self._summaries.Summary(value=values))

    def _record(self, **fields: Any) -> bytes:
        out = io.BytesIO()
        self._writer(out).write(self._events.Event(**fields).SerializeToString())
        return out.getvalue()
