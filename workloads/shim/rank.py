"""One rank from its leases to its finished record. Called once, by `__main__`."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

from workloads.contract.errors import OrchError
from workloads.contract.process import ProcId
from workloads.contract.records import HaltClocks, RankRecord, ShimOrder
from workloads.contract.rundir import RunDir, leases_dir
from workloads.contract.secretfile import read_secrets
from workloads.shim.care import Care, Ended
from workloads.shim.lease import LEASED, lease, release
from workloads.shim.oom import oom_kills
from workloads.shim.record import FIRST_RECORD_S, ShimLog, write_patiently
from workloads.shim.recorder import with_recorder
from workloads.shim.spawn import SpawnError, start


def carry_out(order: ShimOrder, run: RunDir, limits: HaltClocks, log: ShimLog) -> RankRecord:
    """Start the rank and stay until nothing of it is left. The finished record, not yet written.

    OSError when its first record cannot be written: then nothing was started.
    """
    me = ProcId.me()
    born = RankRecord(
        run=order.run, attempt=order.attempt, rank=order.rank, pod=order.pod, shim_pid=me.pid,
        shim_start_time=me.start_time, boot_id=me.boot_id, command=order.argv, ts=time.time(),
    )  # fmt: skip
    holder = {"run": order.run, "rank": order.rank, "pid": me.pid, "uid": os.getuid(), "ts": born.ts}
    try:
        leases = lease(leases_dir(), order.devices, holder)
    except OrchError as e:
        cause = "lease-busy" if e.code == LEASED else "spawn-failed"  # only what is in use is worth waiting for
        return replace(born, ended=time.time(), cause=cause, error=f"{e.what}; {e.fix}" if e.fix else e.what)
    try:
        return _run(order, run, limits, log, born, leases)
    finally:
        release(leases)  # before the last record is written: who reads it may start the next attempt at once


def _run(
    order: ShimOrder, run: RunDir, limits: HaltClocks, log: ShimLog, born: RankRecord, leases: list[int]
) -> RankRecord:
    path = run.rank_record(order.attempt, order.rank)
    running = born

    def tell(pid: int) -> None:
        nonlocal running
        ident = ProcId.of(pid)
        running = replace(born, pid=pid, start_time=ident.start_time if ident else None)
        write_patiently(path, running, log, FIRST_RECORD_S)

    kills_before = oom_kills()
    try:
        pid = start(with_recorder(_with_secrets(order, run), run), run.rank_log(order.rank), leases, tell)
    except SpawnError as e:
        return replace(born, ended=time.time(), cause="spawn-failed", error=str(e))
    log.say(f"rank {order.rank} attempt {order.attempt} started: pid {pid}")
    care = Care(order, run, ProcId(pid, running.start_time or 0, born.boot_id), limits, log)
    ended = care.until_ended()
    ts = time.time()
    swept, stayed = care.sweep()
    return replace(
        running, ended=ts, exit_code=ended.exit_code, signal=ended.signal, cause=ended.cause,
        max_rss_mib=ended.max_rss_mib, oom=_was_oom(ended, kills_before), swept=swept, stayed=stayed,
    )  # fmt: skip


def _with_secrets(order: ShimOrder, run: RunDir) -> ShimOrder:
    """The order to start the rank by, in this memory alone; what orch sets itself is never replaced."""
    try:
        secrets = read_secrets(run)
    except (OSError, ValueError) as e:
        raise SpawnError(f"the run's secrets cannot be read: {e}") from e
    return replace(order, env={**secrets, **order.env}) if secrets else order


def _was_oom(ended: Ended, kills_before: int | None) -> bool:
    """Killed by SIGKILL that we did not send, while the kernel's count of memory kills grew."""
    if ended.signal != signal.SIGKILL or ended.killed_by_us or kills_before is None:
        return False
    kills = oom_kills()
    return kills is not None and kills > kills_before
