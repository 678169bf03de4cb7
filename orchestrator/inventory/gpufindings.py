"""What the facts of a pod's GPUs mean. Pure; the part of `findings.judge` that knows NVIDIA.

Meanings of XID codes: NVIDIA, "XID Errors" (GPU Deployment and Management documentation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orchestrator.inventory.finding import Finding, Level, size
from pods.facts.kinds import Gpu, PodFacts

HELD_WARN_MIB = 1024
HOT_C = 90
XIDS = {
    48: "an uncorrectable memory error",
    61: "an internal micro-controller breakpoint",
    62: "an internal micro-controller halt",
    64: "a memory row that could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "an error of the GPU's system processor",
    140: "an unrecovered memory error",
    143: "the GPU could not be initialised",
}
"""after these a GPU is not to be trusted until it was reset or exchanged"""
SERIOUS = {
    63: "a memory row will be remapped at the next reset",
    92: "many correctable memory errors",
    94: "a contained memory error",
    154: "the driver recommends a recovery",
}
OF_PROGRAMS = {13: "a fault of a program", 31: "a page fault of a program", 43: "a program was stopped", 45: "cleanup"}
ANOTHER = "restart the pod, or give it back and rent another"
_WHY = (
    (
        "Driver/library version mismatch",
        "the driver was exchanged under a running system",
        "reboot the machine (of a container: its host)",
    ),
    ("couldn't communicate with the NVIDIA driver", "the kernel module is not loaded", "sudo modprobe nvidia"),
    ("Unknown Error", "a container lost its devices, or a GPU is broken", ANOTHER),
    ("Unable to determine the device handle", "a GPU does not answer", ANOTHER),
)


def gpu_findings(pod: str, facts: PodFacts) -> Iterator[Finding]:
    yield from _listing(pod, facts)
    yield from _missing(pod, facts)
    for gpu in facts.gpus:
        yield from _gpu(pod, gpu, facts)
    models = Counter(g.name for g in facts.gpus)
    if len(models) > 1:
        yield Finding("warn", "gpus", "the GPUs differ: " + ", ".join(f"{n} x {name}" for name, n in models.items()))
    yield from _xids(pod, facts)


def _listing(pod: str, facts: PodFacts) -> Iterator[Finding]:
    if facts.gpu_error:
        why, fix = next(((f" ({w})", f) for words, w, f in _WHY if words in facts.gpu_error), ("", None))
        if "does not answer" in facts.gpu_error:
            why, fix = " (the driver hangs)", ANOTHER
        yield Finding("fail", "gpus", facts.gpu_error + why, fix or f"orch pods exec {pod} -- nvidia-smi")
    elif facts.smi is None and (facts.gpu_devices or facts.gpu_known or facts.driver):
        yield Finding(
            "fail", "gpus", "an NVIDIA driver is there, but nvidia-smi is not",
            "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )  # fmt: skip
    elif not facts.gpus and not facts.gpu_devices and not facts.gpu_known:
        fix = "docker run --gpus all" if facts.smi else None
        yield Finding("warn", "no-gpu", "there is no GPU", fix)


def _missing(pod: str, facts: PodFacts) -> Iterator[Finding]:
    there = facts.gpu_devices or facts.gpu_known
    if facts.smi is None or there <= len(facts.gpus) or (facts.gpu_error and not facts.gpus):
        return
    text = f"{there - len(facts.gpus)} of {there} GPUs missing: nvidia-smi lists {len(facts.gpus)}"
    listed = {g.index for g in facts.gpus}
    if gaps := [str(i) for i in range(max(listed, default=0)) if i not in listed]:
        text += f" (not {', '.join(gaps)})"
    yield Finding("fail", "gpus", text, ANOTHER)


def _gpu(pod: str, gpu: Gpu, facts: PodFacts) -> Iterator[Finding]:
    who = f"GPU {gpu.index}"
    if gpu.ecc_volatile:
        yield Finding(
            "fail",
            "ecc",
            f"{who} has {gpu.ecc_volatile} uncorrectable memory errors since the driver was loaded",
            ANOTHER,
        )
    elif gpu.ecc_aggregate:
        yield Finding("warn", "ecc", f"{who} has had {gpu.ecc_aggregate} uncorrectable memory errors in its life")
    if gpu.ecc is False:
        yield Finding("note", "ecc", f"{who} runs without memory error correction")
    if gpu.mig:
        parts = ", ".join(m.profile for m in gpu.mig_devices)
        level: Level = "warn" if parts else "fail"
        told = f"is divided (MIG) into {parts}: a rank gets one part" if parts else "is in MIG mode and has no parts"
        yield Finding(level, "mig", f"{who} {told}", f"orch pods exec {pod} -- sudo nvidia-smi -i {gpu.index} -mig 0")
    if gpu.temperature_c is not None and gpu.temperature_c >= HOT_C:
        yield Finding("warn", "heat", f"{who} is at {gpu.temperature_c} degrees Celsius")
    yield from _held(pod, gpu, facts)


def _held(pod: str, gpu: Gpu, facts: PodFacts) -> Iterator[Finding]:
    holders = [p for p in facts.gpu_processes or () if p.gpu in (gpu.uuid, *(m.uuid for m in gpu.mig_devices))]
    if not holders:
        if gpu.used_mib >= HELD_WARN_MIB:
            yield Finding(
                "warn", "gpu memory", f"GPU {gpu.index}: {size(gpu.used_mib)} are held by something that cannot be seen"
                " from here (another container?)", ANOTHER,
            )  # fmt: skip
        return
    told = [f"{p.command} (pid {p.pid} of {p.user})" if p.user else f"pid {p.pid} (seen by the host)" for p in holders]
    more = f" and {len(told) - 4} more" if len(told) > 4 else ""
    seen = ",".join(str(p.pid) for p in holders[:4] if p.user)
    yield Finding(
        "warn", "gpu memory",
        f"GPU {gpu.index} is in use by {', '.join(told[:4])}{more}: {size(gpu.used_mib)} are held",
        f"orch pods exec {pod} -- ps -o user,pid,lstart,args -p {seen}" if seen else ANOTHER,
    )  # fmt: skip


def _xids(pod: str, facts: PodFacts) -> Iterator[Finding]:
    if facts.xids is None:
        if facts.gpus or facts.gpu_error:
            yield Finding(
                "note", "xid", "the kernel's log cannot be read here: whether the driver told of faults is unknown"
            )
        return
    counts = Counter((x.code, x.pci) for x in facts.xids)
    for (code, pci), times in sorted(counts.items()):
        what = XIDS.get(code) or SERIOUS.get(code) or OF_PROGRAMS.get(code) or "see NVIDIA's list of XID errors"
        text = (
            f"XID {code} ({what}) at {pci}" + (f", {times} times" if times > 1 else "") + ", since the machine started"
        )
        if code in XIDS:
            yield Finding("fail", "xid", text, ANOTHER)
        else:
            yield Finding("note" if code in OF_PROGRAMS else "warn", "xid", text, f"orch pods exec {pod} -- dmesg")
