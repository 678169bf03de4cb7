"""The rules about pods, one function each: what is remembered of a pod in, findings with their figures out. Pure.

Facts that could not be had, or are older than `podtrack.STALE_S`, cross nothing. Called by `monitor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.health.facts import UNWRITABLE, Finding, GpuFacts
from orchestrator.health.limits import Setting
from orchestrator.health.podtrack import MAX_GPUS, MAX_XIDS, PodTrack
from workloads.contract.config.health import GuardSpec
from workloads.contract.health import Rule

GIB = 1 << 30
DISK_FRACTION = 0.05
FATAL_XIDS: Mapping[int, str] = {
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "row remapping failed",
    79: "the GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""XIDs after which a GPU computes nothing right until it is reset or replaced, whatever the program does.

Chosen after NVIDIA's catalog (docs.nvidia.com/deploy/xid-errors): faults of the card. Not here on purpose:
13, 31, 43, 45 (a program's own faults), 63 (a row remapped), 74 (NVLink: a link that is really lost ends in a step
that is not made), 94 (contained: the program that used the page is ended by the driver).
"""

Found = list[Finding]


def pod_silent(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    silent_s = min(pod.silent_s, pod.facts.age_s)
    if silent_s < s.limit:
        return []
    why = f"pod {pod.pod} has not answered for {silent_s:.0f} s (limit {s.limit:g} s); its ranks may be well"
    return [_finding(s, pod, why, silent_s, -1, since_s=silent_s - s.limit)]


def gpu_missing(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    if pod.stale:
        return []
    count = len(pod.facts.gpus)
    return [
        _finding(
            s, pod, f"pod {pod.pod}: GPU {uuid}, one of {count} leased by this run, has not been there for "
            f"{missing_s:.0f} s (limit {s.limit:g} s)", missing_s, 1, since_s=missing_s - s.limit, tag=uuid,
        )
        for uuid, missing_s in pod.missing_s.items()
        if missing_s >= s.limit
    ]  # fmt: skip


def xid(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    if pod.stale:
        return []
    found = []
    for gpu in pod.facts.gpus[:MAX_GPUS]:
        for code in list(dict.fromkeys(gpu.xids))[:MAX_XIDS]:
            fatal = FATAL_XIDS.get(code)
            words = f" ({fatal}; the GPU needs a reset)" if fatal else " (not one that ends a GPU)"
            why = f"pod {pod.pod}: the driver told XID {code} of GPU {gpu.uuid}{words}"
            found.append(_finding(s, pod, why, float(code), 1 if fatal else -1, tag=f"{gpu.uuid}:{code}", limit=None))
    return found


def ecc(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    if pod.stale:
        return []
    found = []
    for gpu in pod.facts.gpus[:MAX_GPUS]:
        base = pod.ecc_base.get(gpu.uuid)
        if base is None or gpu.ecc_uncorrected is None or gpu.ecc_uncorrected - base <= s.limit:
            continue
        grown = gpu.ecc_uncorrected - base
        why = (
            f"pod {pod.pod}: uncorrected ECC errors of GPU {gpu.uuid} grew by {grown} in this attempt, "
            f"to {gpu.ecc_uncorrected} (limit {s.limit:g})"
        )
        found.append(_finding(s, pod, why, float(grown), 1, tag=gpu.uuid))
    return found


def disk_low(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    facts = pod.facts
    if pod.stale:
        return []
    found = []
    if facts.writable is False:
        why = f"pod {pod.pod}: the run directory takes no line (full, read-only or gone); ranks cannot beat or save"
        found.append(_finding(s, pod, why, None, 0, limit=None, tag=UNWRITABLE))
    free, total = facts.disk_free_bytes, facts.disk_total_bytes
    if free is None:
        return found
    limit = min(s.limit, DISK_FRACTION * total / GIB) if total else s.limit
    if free / GIB < limit:
        of = f" of {total / GIB:.0f} GiB" if total else ""
        why = f"pod {pod.pod}: {free / GIB:.2f} GiB{of} are free on the run's disk (limit {limit:.2g} GiB)"
        found.append(_finding(s, pod, why, free / GIB, 1, limit=limit))
    return found


def shm_low(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    free, total = pod.facts.shm_free_bytes, pod.facts.shm_total_bytes
    if pod.stale or free is None or not total or free / total >= s.limit:
        return []
    why = (
        f"pod {pod.pod}: {free / total:.0%} of /dev/shm ({total / (1 << 20):.0f} MiB) is free "
        f"(limit {s.limit:.0%}); data workers and NCCL fail when it is full"
    )
    return [_finding(s, pod, why, free / total, 0)]


def clock_step(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    if pod.stale or pod.jump is None or abs(pod.jump[0]) < s.limit:
        return []
    why = f"pod {pod.pod}: the wall clock jumped by {pod.jump[0]:+.1f} s, or the machine slept (limit {s.limit:g} s)"
    return [_finding(s, pod, why, pod.jump[0], -1)]


def gpu_memory(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    if pod.stale:
        return []
    found = []
    for gpu in pod.facts.gpus[:MAX_GPUS]:
        used, limit = gpu.mem_used_mib, gpu_limit_mib(gpu, guard)
        if used is not None and limit is not None and used > limit:
            total = f" of {gpu.mem_total_mib:.0f} MiB" if gpu.mem_total_mib else ""
            why = f"pod {pod.pod}: {used:.0f}{total or ' MiB'} are used on GPU {gpu.uuid} (limit {limit:.0f} MiB)"
            found.append(_finding(s, pod, why, used, 0, limit=limit, tag=gpu.uuid))
    return found


def gpu_limit_mib(gpu: GpuFacts, guard: GuardSpec) -> float | None:
    if guard.gpu_limit_gb is not None:
        return guard.gpu_limit_gb * 1024
    return guard.gpu_limit_fraction * gpu.mem_total_mib if gpu.mem_total_mib else None


def host_memory(s: Setting, pod: PodTrack, guard: GuardSpec) -> Found:
    used, limit = pod.facts.mem_used_bytes, pod.facts.mem_limit_bytes
    if pod.stale or used is None or not limit or used / limit <= guard.host_limit_fraction:
        return []
    why = (
        f"pod {pod.pod}: {used / GIB:.1f} of {limit / GIB:.1f} GiB of memory are used, {used / limit:.0%} "
        f"(limit {guard.host_limit_fraction:.0%})"
    )
    return [_finding(s, pod, why, used / limit, 0, limit=guard.host_limit_fraction)]


RULES: Mapping[Rule, Callable[[Setting, PodTrack, GuardSpec], Found]] = {
    Rule.POD_SILENT: pod_silent,
    Rule.GPU_MISSING: gpu_missing,
    Rule.XID: xid,
    Rule.ECC: ecc,
    Rule.DISK_LOW: disk_low,
    Rule.SHM_LOW: shm_low,
    Rule.CLOCK_STEP: clock_step,
    Rule.GPU_MEMORY: gpu_memory,
    Rule.HOST_MEMORY: host_memory,
}

_OWN: float = -1.0


def _finding(
    s: Setting,
    pod: PodTrack,
    why: str,
    value: float | None,
    level: int,
    *,
    limit: float | None = _OWN,
    since_s: float = 0.0,
    tag: str = "",
) -> Finding:
    shown = s.limit if limit == _OWN else limit
    return Finding(s.rule, why, None, pod.pod, value, shown, s.unit, max(0.0, since_s), level, tag=tag)
