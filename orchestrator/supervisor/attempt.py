"""The files of an attempt: epoch, orders, stop order, and the fresh beat and archived `.HALT` of a resume.

Written by the supervisor alone, before anybody is asked to act on them. Everything here may be done twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence

from orchestrator.supervisor.orders import make_orders
from orchestrator.supervisor.spec import RunSpec
from workloads.contract.beats import BEAT_VERSION, parse_beat
from workloads.contract.files import append_line, atomic_write, atomic_write_json, read_tail, try_read_json
from workloads.contract.jobchanges import changed
from workloads.contract.records import RunVerdict, V, as_wire, from_wire
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase


def write_attempt(
    spec: RunSpec, run: RunDir, *, attempt: int, port: int, devices: Mapping[str, Sequence[str]], now: float
) -> None:
    """Epoch, the job where resumes changed it, then every order. Raises OSError; nothing was started then."""
    run.run_json.stat()  # a run directory that went away is waited for, not made again
    run.attempt_dir(attempt).mkdir(exist_ok=True, mode=0o700)  # no parents: a run directory that is away stays away
    atomic_write(run.epoch, f"{attempt}\n".encode())
    if spec.changes:
        own = {"v": V, "attempt": attempt, "changes": dict(spec.changes), "job": changed(spec.job, spec.changes)}
        atomic_write_json(run.attempt_job(attempt), own)
    for order in make_orders(spec, run, attempt=attempt, port=port, devices=devices, start=now):
        atomic_write_json(run.rank_order(attempt, order.rank), as_wire(order))


def orders_complete(spec: RunSpec, run: RunDir, attempt: int) -> bool:
    """All orders lie there: only then may a shim have been asked for, so an incomplete set is simply written anew."""
    paths = (run.rank_order(attempt, rank) for rank in range(spec.world_size))
    return all(path.is_file() for path in paths)


def orders_by_pod(spec: RunSpec, run: RunDir, attempt: int, ranks: Sequence[int]) -> dict[str, list[str]]:
    """pod -> order files of `ranks`."""
    return {pod.name: [str(run.rank_order(attempt, r)) for r in pod.ranks if r in ranks] for pod in spec.pods}


def write_stop(run: RunDir, attempt: int, *, why: str, term_s: float, kill_s: float) -> None:
    row = {"v": 1, "ts": time.time(), "who": "supervisor", "why": why, "term_s": term_s, "kill_s": kill_s}
    atomic_write_json(run.stop_order(attempt), row)


def write_halt(run: RunDir, *, who: str, why: str, now: bool) -> None:
    """`.HALT` for a request whose writer did not get that far. One that is there already is left alone."""
    row = {"who": who, "why": why, "now": now, "ts": time.time()}
    with contextlib.suppress(FileExistsError):
        fd = os.open(run.halt, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(json.dumps(row).encode() + b"\n")


def fresh_beat(spec: RunSpec, run: RunDir, attempt: int) -> None:
    """A `starting` line of rank 0, so that nobody who reads beats halts the run again for its silence.

    It carries the old attempt: a shim takes a beat of the new one as a sign that the program knows `.HALT`. A run
    without heartbeats gets none.
    """
    path = run.heartbeat(0)
    if not path.is_file() or path.is_symlink():
        return
    beats = [b for b in map(parse_beat, read_tail(path).split(b"\n")) if b is not None]
    row = {
        "v": BEAT_VERSION, "seq": beats[-1].seq + 1 if beats else 0, "ts": time.time(), "msg": Phase.STARTING.value,
        "rank": 0, "world_size": spec.world_size, "attempt": attempt, "run": spec.run_id,
    }  # fmt: skip
    append_line(path, row)


def archive_halt(run: RunDir, attempt: int) -> None:
    """Move `.HALT` aside, if there is one that counts as a file; a link or directory of that name was never obeyed."""
    if run.halt.is_file() and not run.halt.is_symlink():
        run.halt.replace(run.archived_halt(attempt))
    with contextlib.suppress(OSError):
        if run.anomaly_type.is_file():
            run.anomaly_type.replace(run.anomaly_type.with_name(f"{run.anomaly_type.name}.a{attempt}"))


def verdict_of(run: RunDir, attempt: int) -> RunVerdict | None:
    """What the ranks of this attempt answered, if they did: a verdict of an older one is old news."""
    row = try_read_json(run.verdict)
    if row is None or row.get("attempt") != attempt or row.get("v") != V:
        return None
    texts = [row.get(k) for k in ("run", "verdict", "why")]
    if not all(isinstance(t, str) for t in texts) or not isinstance(row.get("ts"), int | float):
        return None
    return from_wire(RunVerdict, row)


def halt_acks(run: RunDir, ranks: Sequence[int], attempt: int) -> list[dict[str, object]]:
    """Where each rank of this attempt stopped, as far as it said so."""
    rows: list[dict[str, object]] = []
    for rank in ranks:
        row = try_read_json(run.halt_ack(rank))
        if row is not None and row.get("attempt") == attempt:
            rows.append({k: row[k] for k in ("rank", "step", "checkpoint", "hash") if k in row})
    return rows
