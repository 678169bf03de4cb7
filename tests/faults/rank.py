"""A rank without torch: `python -m tests.faults.rank`. Real beats, real halts, real checkpoints, exact steps.

What it computes is a chain of hashes, so that one lost, repeated or mixed-up step shows in the ledger. Ranks walk in
lockstep over sockets, so that a peer of a dead rank fails as it would in a collective. At each phase it says where it
is and waits there while it is told to (`Orders`); there it also misbehaves on command.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from tests.faults.orders import Orders, pause
from tests.faults.wire import Wire
from workloads.contract.exitcodes import RankExit
from workloads.contract.files import atomic_write
from workloads.contract.states import Phase
from workloads.runtime import Run
from workloads.runtime.checkpoint import Checkpointer, Provenance
from workloads.runtime.fence import StaleEpochError
from workloads.runtime.retention import Retention

STATE_BYTES = 64 << 10
HALT_SAVE_TRIES = 40
HALT_SAVE_WAIT_S = 0.25


def chain(state: bytes, step: int) -> bytes:
    """The state after `step`."""
    return hashlib.sha256(state + step.to_bytes(8, "big")).digest()


def ledger_row(step: int, attempt: int, world: int, state: bytes) -> dict[str, Any]:
    loss = 2.0 + state[0] / 256
    return {"step": step, "attempt": attempt, "world_size": world, "batch_hash": state.hex()[:16], "loss": loss.hex()}


class ChainState:
    """A rank's part of a checkpoint: the newest link of the chain, and zeros. The face of `RankState`."""

    def __init__(self, rank: int, orders: Orders) -> None:
        self.rank, self.orders = rank, orders
        self.link = b""

    def size_bytes(self) -> int:
        return 2 * STATE_BYTES

    def write(self, staged: Path) -> list[Path]:
        path = self._file(staged)
        atomic_write(path, self.link + bytes(STATE_BYTES - len(self.link)))
        self.orders.at("checkpointing")
        return [path]

    def read(self, path: Path) -> None:
        self.link = self._file(path).read_bytes()[:32]

    def _file(self, folder: Path) -> Path:
        return folder / f"state_rank{self.rank}.bin"


class Walk:
    """One attempt of one rank."""

    def __init__(self) -> None:
        self.run = Run.from_env()
        assert self.run.env is not None, "started without orch"
        self.env = self.run.env
        self.run.handle_sigterm()
        self.orders = Orders(Path(os.environ["FAULTS_CONTROL"]), self.env.rank, self.env.attempt)
        self.plan = json.loads(os.environ["FAULTS_PLAN"])
        self.step, self.state = 0, ChainState(self.env.rank, self.orders)

    def saver(self, wire: Wire) -> Checkpointer:
        origin = Provenance("0" * 64, "0" * 64, {})
        return Checkpointer(self.env, wire, self.state, origin, Retention(self.plan["keep"]))  # type: ignore[arg-type]

    def walk(self) -> int:
        self.orders.at("starting")
        self.wire = Wire(self.env)
        self.run.phase(Phase.LOADING)
        self.orders.at("loading")
        self._load()
        self.run.phase(Phase.COMPILING)
        self.orders.at("compiling")
        halt = False
        while self.step < self.plan["steps"] and not halt:
            halt = self._one_step()
            if halt:
                break
            if self.step % self.plan["every"] == 0:
                self._save()
            if self.step % self.plan["evaluate_every"] == 0:
                self.run.phase(Phase.EVALUATING)
                self.orders.at("evaluating")
        return self._halted() if halt else self._finished()

    def _load(self) -> None:
        from workloads.train.books import RowFile, cut_after
        from workloads.train.resume import choose

        self.checkpointer = self.saver(self.wire)
        path = choose(self.checkpointer)
        if path is not None:
            self.step = self.checkpointer.load(path)["step"]
            print(f"resume: step {self.step} from {path.name}", flush=True)
        if self.env.rank == 0:
            cut_after(self.env, self.step)
            self.ledger = RowFile(self.env.run.ledger)

    def _one_step(self) -> bool:
        """True when the ranks agreed to halt."""
        pause(self.plan["step_s"])
        self.orders.gate(self.step, lambda: self.run.asked_to_halt)
        step = self.step + 1
        link = self.state.link = chain(self.state.link, step)
        said = self.wire.gather((step, link, self.run.asked_to_halt))
        assert {s[:2] for s in said} == {(step, link)}, "ranks are at different steps"
        self.step = step
        row = ledger_row(step, self.env.attempt, self.env.world_size, link)
        loss = math.nan if self.orders.nan else float.fromhex(row["loss"])
        if self.env.rank == 0:
            self.ledger.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self.run.beat(
            step=step, steps=self.plan["steps"], loss=loss, grad_norm=1.0, toks_per_s=1000.0,
            step_time_s=self.plan["step_s"], dt_fetch_s=0.0,
        )  # fmt: skip
        return any(s[2] for s in said)

    def _save(self) -> bool:
        self.run.phase(Phase.CHECKPOINTING)
        before = self.checkpointer.last
        path = self.checkpointer.save(self.step, {"v": 1, "step": self.step}, self._before_commit)
        if path is not None and path != before and self.env.rank == 0:
            self.orders.committed(self.step)
        self.run.beat(step=self.step)
        return path is not None

    def _before_commit(self) -> None:
        self.ledger.sync()
        self.orders.at("committing")

    def _save_surely(self) -> bool:
        for attempt in range(HALT_SAVE_TRIES):
            if attempt:
                pause(HALT_SAVE_WAIT_S)
            if self._save():
                return True
        return False

    def _halted(self) -> int:
        self.run.phase(Phase.HALTING)
        self.orders.at("halting")
        saved = self._save_surely()
        return self.run.halted(self.step, checkpoint=self.checkpointer.last if saved else None)

    def _finished(self) -> int:
        if not self._save_surely():
            print("error: the last checkpoint could not be saved", file=sys.stderr, flush=True)
            return 1
        return self.run.done(self.step, steps=self.plan["steps"])


def main() -> int:
    from workloads.contract.errors import IntegrityError

    try:
        return Walk().walk()
    except StaleEpochError as e:
        print(f"orch: {e}", file=sys.stderr, flush=True)
        return int(RankExit.STALE_EPOCH)
    except IntegrityError as e:
        print(f"error[{e.code}]: {e}", file=sys.stderr, flush=True)
        return int(RankExit.REFUSED)


if __name__ == "__main__":
    sys.exit(main())
