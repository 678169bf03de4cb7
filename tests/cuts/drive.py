"""A log that is copied and followed over SSH while the connection is cut again and again: not a byte lost, none twice.

The far end is a real sshd; the copy is `FarSource.refresh` again and again, the follower is `orch logs -f --raw` in a
process of its own. The log is made of bytes of every value in lines of every length, appended in pieces that end
anywhere. Called by the tests beside it and by `python -m tests.cuts`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.runs.index import remember, row_of
from orchestrator.runs.source import ONWARD, FarSource
from pods.pod import FarPod
from pods.remote.runfiles import name_in
from pods.transport.ssh import SshTransport
from tests.cli.conftest import Made, make_run
from tests.cuts.wire import Wire
from tests.lab.sshd import Sshd
from tests.mirror.conftest import keeper_here
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import UnreachableError
from workloads.contract.rundir import OrchHome

ROOT = Path(__file__).parents[2]
HANDSHAKE_BYTES = 5_000
CHECK_BYTES = 1 << 20
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """`problem` is empty when the copy is the log."""

    cuts: int
    size_bytes: int
    seconds: float
    problem: str


class Log:
    """A rank's log, written as a rank might: the same seed gives the same bytes."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self._rng = path, random.Random(seed)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def grow(self, most: int) -> None:
        data = b""
        while len(data) < self._rng.randrange(1, most):
            line = self._rng.randbytes(self._rng.choice((3, 80, 80, 80, 2000, 90_000))).replace(b"\n", b" ")
            data += line + b"\n"
        data = data[: self._rng.randrange(1, len(data) + 1)]  # a piece may end within a line
        os.write(self._fd, data)

    def end(self) -> None:
        os.write(self._fd, b"\nthe end\n")
        os.close(self._fd)


def site(folder: Path, sshd: Sshd, port: int) -> tuple[OrchHome, Made, PodSpec]:
    """The operator's home, a run on the far end, and the way there through `port`."""
    home, there = OrchHome(folder / "home"), OrchHome(folder / "there")
    for made in (home, there):
        made.path.mkdir(mode=0o700, parents=True)
        keeper_here(made)
    user = sshd.target.split("@", 1)[0]
    spec = PodSpec(
        ssh=f"{user}@127.0.0.1:{port}", host_key=sshd.host_key, identity=str(sshd.identity), root=str(there.path),
        python=sys.executable,
    )  # fmt: skip
    rows = "".join(f"    {k}: {v}\n" for k, v in spec.model_dump(exclude_defaults=True).items())
    home.inventory.write_text(f"pods:\n  box:\n{rows}")
    made = make_run(there, "cut", world=1)
    made.status("running", "all ranks beat", supervisor=made.supervised())
    made.record(0)
    row = row_of(made.run.run_id, "train", time.time(), "box")
    assert row is not None
    remember(home, [row])
    return home, made, spec


def differing(log: Path, copy: Path) -> str:
    """Where two files part, or nothing."""
    with log.open("rb") as a, copy.open("rb") as b:
        at = 0
        while True:
            x, y = a.read(CHECK_BYTES), b.read(CHECK_BYTES)
            if x != y:
                same = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
                sizes = f"{log.stat().st_size} and {copy.stat().st_size} bytes"
                return f"they part at byte {at + same}; {sizes}"
            if not x:
                return ""
            at += len(x)


def copied(cuts: int, seed: int, folder: Path, sshd: Sshd, tell: Tell = lambda _: None) -> Outcome:
    """The mirror through `cuts` resets; now and then another operator's process goes on with the copy."""
    rng, began = random.Random(seed), time.monotonic()

    def after() -> int | None:
        if wire.cuts >= cuts:
            return None
        return rng.randrange(HANDSHAKE_BYTES) if rng.random() < 0.15 else rng.randrange(HANDSHAKE_BYTES, 400_000)

    with Wire((sshd.address, sshd.port), after) as wire:
        home, made, spec = site(folder, sshd, wire.port)
        log, copy = Log(made.run.rank_log(0), seed), home.mirrored(made.run.run_id)
        name = name_in(made.run, made.run.rank_log(0))

        def operator() -> FarSource:
            pod = FarPod("box", SshTransport("box", spec), root=spec.root, python=spec.python)
            return FarSource(home, copy, "box", lambda: pod)

        source, told = operator(), 0
        while wire.cuts < cuts:
            log.grow(300_000)
            if rng.random() < 0.02:
                source.close()
                source = operator()
            with suppress(UnreachableError):
                source.refresh("logs", {name: None if rng.random() < 0.5 else ONWARD})
            if wire.cuts >= told + 100:
                told = wire.cuts
                tell(f"{told} resets while the mirror copies, {made.run.rank_log(0).stat().st_size >> 20} MiB")
        log.end()
        while source.refresh("logs", {name: None}):
            pass
        source.close()
        problem = differing(made.run.rank_log(0), copy.rank_log(0))
        return Outcome(wire.cuts, made.run.rank_log(0).stat().st_size, time.monotonic() - began, problem)


def followed(cuts: int, seed: int, folder: Path, sshd: Sshd, limit_s: float) -> Outcome:
    """`orch logs -f --raw` through `cuts` resets; what it printed is the log."""
    rng, began = random.Random(seed), time.monotonic()
    calm = threading.Event()

    def after() -> int | None:
        if calm.is_set() or wire.cuts >= cuts:
            return None
        return rng.randrange(HANDSHAKE_BYTES) if rng.random() < 0.1 else rng.randrange(HANDSHAKE_BYTES, 300_000)

    with (
        Wire((sshd.address, sshd.port), after) as wire,
        (folder / "out").open("ab", buffering=0) as out,
        (folder / "errors").open("w+b") as errors,
    ):
        folder.joinpath("site").mkdir()
        home, made, _ = site(folder / "site", sshd, wire.port)
        log = Log(made.run.rank_log(0), seed)
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        env |= {"PYTHONPATH": str(ROOT), "ORCH_HOME": str(home.path)}
        argv = [sys.executable, "-m", "orchestrator.cli", "logs", made.run.run_id, "-f", "--raw", "--rank", "0"]
        while True:  # its first words need a connection: a person would type it again
            out.truncate(0)
            process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
            time.sleep(1.5)
            if process.poll() is None or time.monotonic() - began > limit_s:
                break
        try:
            while wire.cuts < cuts and process.poll() is None and time.monotonic() - began < limit_s:
                log.grow(30_000)
                time.sleep(0.05)
            calm.set()
            log.end()
            made.status("succeeded", "done", supervisor=made.supervised())
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-2000:]
        problem = differing(made.run.rank_log(0), folder / "out")
        if process.returncode != 0 or problem:
            problem = f"exit {process.returncode}, {problem or 'nothing differs'}\n{said}"
        return Outcome(wire.cuts, made.run.rank_log(0).stat().st_size, time.monotonic() - began, problem)
