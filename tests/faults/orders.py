"""How a cell and its ranks talk: small files in a folder beside the run directory, which no fault touches.

hold_<phase>            a rank that comes to this phase waits there until the file is gone
at_r<rank>              where the rank is: attempt, phase; rewritten at each phase
do_r<rank>              what the rank shall do to itself at the next chance; taken away when it is done
commits.jsonl           every checkpoint that a rank committed
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from workloads.contract.files import atomic_write, try_read_json

LOOK_S = 0.01
pause = threading.Event().wait
"""As time.sleep, which fails below a faked clock."""


class Orders:
    """The rank's end."""

    def __init__(self, control: Path, rank: int, attempt: int) -> None:
        self.control, self.rank, self.attempt = control, rank, attempt
        self.nan = False

    def at(self, phase: str) -> None:
        """Say that this rank is at `phase`; wait there, and misbehave there, as told."""
        row = {"attempt": self.attempt, "phase": phase, "pid": os.getpid()}
        atomic_write(self.control / f"at_r{self.rank}", json.dumps(row).encode(), durable=False)
        hold = self.control / f"hold_{phase}"
        self.obey()
        while hold.exists():
            pause(LOOK_S)
            self.obey()

    def gate(self, step: int, leave: Callable[[], bool]) -> None:
        """Wait between two steps while `step` is the last one that is allowed, or until `leave`."""
        path = self.control / "gate"
        self.obey()
        while not leave():
            try:
                if step < int(path.read_text()):
                    return
            except (FileNotFoundError, ValueError):
                return
            pause(LOOK_S)
            self.obey()

    def obey(self) -> None:
        path = self.control / f"do_r{self.rank}"
        if not path.exists():
            return
        row = try_read_json(path)
        if row is None or row.get("attempt") not in (None, self.attempt):
            return
        if not row.get("always"):
            path.unlink()
        getattr(self, f"_{row['what']}")(**row.get("args", {}))

    def committed(self, step: int) -> None:
        row = {"step": step, "attempt": self.attempt, "ts": time.time()}
        with (self.control / "commits.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")

    def _exit(self, code: int) -> NoReturn:
        print(f"about to exit with {code}", flush=True)
        raise SystemExit(code)

    def _raise(self) -> NoReturn:
        raise RuntimeError("a bug of the program's own")

    def _segfault(self) -> None:
        import ctypes

        ctypes.string_at(0)

    def _eat_memory(self) -> None:
        eaten = []
        while True:
            eaten.append(bytearray(os.urandom(1 << 20)))

    def _hang(self) -> None:
        """In C, without the GIL: other threads go on, the keepalive too."""
        import ctypes

        while True:
            ctypes.CDLL(None).sleep(600)

    def _hold_gil(self) -> None:
        import ctypes

        while True:
            ctypes.PyDLL(None).sleep(600)

    def _make_nan(self) -> None:
        self.nan = True

    def _leave_child(self, ignore_term: bool = False) -> None:
        """A grandchild in a session of its own, which nobody waits for."""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                trap = "trap '' TERM; " if ignore_term else ""
                os.execvp("sh", ["sh", "-c", f"{trap}sleep 600 & wait"])
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            os.wait()


class Desk:
    """The cell's end."""

    def __init__(self, control: Path) -> None:
        self.control = control
        control.mkdir(parents=True, exist_ok=True)

    def hold(self, phase: str) -> None:
        (self.control / f"hold_{phase}").touch()

    def gate(self, step: int) -> None:
        """No rank goes beyond `step`."""
        atomic_write(self.control / "gate", str(step).encode(), durable=False)

    def release(self, phase: str = "*") -> None:
        """Nobody waits any more at this phase, or at no phase at all, and at no step."""
        for path in (*self.control.glob(f"hold_{phase}"), self.control / "gate"):
            path.unlink(missing_ok=True)

    def where(self, rank: int) -> tuple[int, str]:
        """(attempt, phase) that this rank came to last."""
        row = try_read_json(self.control / f"at_r{rank}") or {}
        return int(row.get("attempt", 0)), str(row.get("phase", ""))

    def do(self, rank: int, what: str, *, always: bool = False, attempt: int | None = None, **args: Any) -> None:
        row = {"what": what, "args": args, "always": always, "attempt": attempt}
        atomic_write(self.control / f"do_r{rank}", json.dumps(row).encode(), durable=False)

    def undo(self, rank: int) -> None:
        (self.control / f"do_r{rank}").unlink(missing_ok=True)

    def commits(self) -> list[dict[str, Any]]:
        path = self.control / "commits.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
