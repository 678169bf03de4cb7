"""What nvidia-smi says of the GPUs now: clocks and why they are low, power, heat, link, memory faults, other processes.

`ask` runs it; everything else is a pure function of its output. A field that this driver does not know is left out and
asked no more; what is not told is None, never guessed. No torch. Called by `workloads.bench.gpuprobe`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SMI_S = 10.0
FIELDS = (
    "uuid", "name", "driver_version", "pci.bus_id",
    "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max",
    "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "clocks_event_reasons.active",
    "power.draw", "power.limit", "power.default_limit", "temperature.gpu", "temperature.memory",
    "ecc.mode.current", "ecc.errors.corrected.volatile.total", "ecc.errors.uncorrected.volatile.total",
    "ecc.errors.uncorrected.aggregate.total", "retired_pages.pending",
    "memory.used", "memory.total", "mig.mode.current",
)  # fmt: skip
RENAMED = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}  # drivers before 535
ROWS_QUERY = "gpu_uuid,remapped_rows.pending,remapped_rows.failure"
APPS_QUERY = "gpu_uuid,pid,used_memory,process_name"
REASONS = {
    0x1: "idle", 0x2: "application clocks set", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake", 0x100: "display clocks set",
}  # fmt: skip
"""Bits of nvmlClocksEventReasons."""
_BAD_FIELD = re.compile(r'Field "([a-z_.0-9]{1,80})" is not a valid field to query')
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]{4,20})[^)\n]{0,80}\): ([0-9]{1,4})\b")

Run = Callable[[Sequence[str]], tuple[int, str]]
"""argv -> (exit code, output); -1 when it could not be run or did not end."""


@dataclass(frozen=True)
class GpuState:
    """MHz, W, degrees Celsius, MiB. None: not told by this GPU, driver or container."""

    uuid: str
    name: str
    driver: str | None = None
    bus: str | None = None
    pcie_gen: int | None = None
    pcie_gen_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    sm_mhz: int | None = None
    sm_max_mhz: int | None = None
    mem_mhz: int | None = None
    mem_max_mhz: int | None = None
    reasons: tuple[str, ...] | None = None  # why the clocks are not higher
    power_w: float | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    temperature_c: int | None = None
    memory_c: int | None = None
    ecc: bool | None = None
    ecc_corrected: int | None = None  # since the driver was loaded
    ecc_uncorrected: int | None = None
    ecc_uncorrected_ever: int | None = None
    repair_pending: bool | None = None  # pages to be retired or rows to be remapped at the next reset
    repair_failed: bool | None = None
    used_mib: int | None = None
    total_mib: int | None = None
    mig: bool | None = None
    others: tuple[str, ...] | None = None  # processes that are not this one
    xids: tuple[int, ...] | None = None  # faults in the kernel's log; None: it cannot be read here

    def as_dict(self) -> dict[str, Any]:
        """What is known, for a row."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Answer:
    gpus: Mapping[str, GpuState] = field(default_factory=dict)  # by uuid
    error: str | None = None


def run_bounded(argv: Sequence[str]) -> tuple[int, str]:
    env = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SMI_S, check=False, env=env
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as e:
        return -1, f"{type(e).__name__}: {e}"[:300]
    return done.returncode, (done.stdout + (done.stderr if done.returncode else b"")).decode(errors="replace")


def ask(run: Run = run_bounded, *, thorough: bool = True) -> Answer:
    """Every GPU of the machine. `thorough`: memory repairs, processes and the kernel's log too."""
    answer = _states(run)
    if not thorough or not answer.gpus:
        return answer
    found = dict(answer.gpus)
    code, text = run(["nvidia-smi", f"--query-remapped-rows={ROWS_QUERY}", "--format=csv,noheader,nounits"])
    for uuid, (pending, failed) in parse_rows(text if code == 0 else "").items():
        if uuid in found:
            pending = _either(pending, found[uuid].repair_pending)
            found[uuid] = replace(found[uuid], repair_pending=pending, repair_failed=failed)
    code, text = run(["nvidia-smi", f"--query-compute-apps={APPS_QUERY}", "--format=csv,noheader,nounits"])
    if code == 0:
        others = parse_others(text, os.getpid(), lambda pid: Path(f"/proc/{pid}").exists())
        found = {u: replace(s, others=tuple(others.get(u, ()))) for u, s in found.items()}
    code, text = run(["dmesg"])
    if code == 0 and "gVisor" not in text:  # whose log is of its own making
        found = {u: replace(s, xids=xids_of(text, s.bus)) for u, s in found.items()}
    return Answer(found, answer.error)


def _states(run: Run) -> Answer:
    """The main query; a field that the driver refuses is asked by its older name, then not at all."""
    fields: dict[str, str] = {name: name for name in FIELDS}
    for _ in range(2 * len(FIELDS)):
        code, text = run(
            ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
        )  # fmt: skip
        if code == 0:
            return Answer({s.uuid: s for s in parse_states(text, tuple(fields))})
        bad = _BAD_FIELD.search(text)
        ours = next((k for k, asked in fields.items() if bad and asked == bad[1]), None)
        if ours is None or ours in ("uuid", "name"):
            break
        if fields[ours] == ours and ours in RENAMED:
            fields[ours] = RENAMED[ours]
        else:
            del fields[ours]
    return Answer(error=" ".join(text.split())[:200] or f"nvidia-smi: exit code {code}")


def parse_states(text: str, fields: Sequence[str]) -> list[GpuState]:
    """One GPU a line, its values in the order of `fields` (of FIELDS). Lines that are none are passed over."""
    found = []
    for line in text.splitlines()[:64]:
        cells = [c.strip() for c in line.split(",")]
        if len(cells) == len(fields):
            told = dict(zip(fields, cells, strict=True))
            if told["uuid"].startswith(("GPU-", "MIG-")):
                found.append(_state(told))
    return found


def _state(told: Mapping[str, str]) -> GpuState:
    def whole(name: str) -> int | None:
        number = real(name)
        return None if number is None else int(number)

    def real(name: str) -> float | None:
        text = told.get(name, "")
        return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) else None

    def switch(name: str) -> bool | None:
        return {"Enabled": True, "Yes": True, "Disabled": False, "No": False}.get(told.get(name, ""))

    def word(name: str) -> str | None:
        text = told.get(name, "")
        return text[:80] if text and text.isprintable() and not text.startswith("[") else None

    return GpuState(
        uuid=told["uuid"][:80], name=word("name") or "?", driver=word("driver_version"), bus=word("pci.bus_id"),
        pcie_gen=whole("pcie.link.gen.current"), pcie_gen_max=whole("pcie.link.gen.max"),
        pcie_width=whole("pcie.link.width.current"), pcie_width_max=whole("pcie.link.width.max"),
        sm_mhz=whole("clocks.sm"), sm_max_mhz=whole("clocks.max.sm"),
        mem_mhz=whole("clocks.mem"), mem_max_mhz=whole("clocks.max.mem"),
        reasons=reasons_of(told.get("clocks_event_reasons.active", "")),
        power_w=real("power.draw"), power_limit_w=real("power.limit"), power_default_w=real("power.default_limit"),
        temperature_c=whole("temperature.gpu"), memory_c=whole("temperature.memory"),
        ecc=switch("ecc.mode.current"), ecc_corrected=whole("ecc.errors.corrected.volatile.total"),
        ecc_uncorrected=whole("ecc.errors.uncorrected.volatile.total"),
        ecc_uncorrected_ever=whole("ecc.errors.uncorrected.aggregate.total"),
        repair_pending=switch("retired_pages.pending"),
        used_mib=whole("memory.used"), total_mib=whole("memory.total"), mig=switch("mig.mode.current"),
    )  # fmt: skip


def reasons_of(text: str) -> tuple[str, ...] | None:
    """The words for a bit mask such as 0x0000000000000004."""
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", text):
        return None
    mask = int(text, 16)
    unknown = mask & ~sum(REASONS)
    return (*(word for bit, word in REASONS.items() if mask & bit), *([f"reason {unknown:#x}"] if unknown else []))


def parse_rows(text: str) -> dict[str, tuple[bool | None, bool | None]]:
    """(remapping pending, remapping failed) by uuid."""
    found = {}
    for line in text.splitlines()[:64]:
        cells = [c.strip() for c in line.split(",")]
        if len(cells) == 3 and cells[0].startswith("GPU-"):
            found[cells[0]] = (_yes(cells[1]), _yes(cells[2]))
    return found


def _yes(text: str) -> bool | None:
    """`Yes`, `No`, or a count."""
    return {"Yes": True, "No": False}.get(text, int(text) > 0 if text.isascii() and text.isdigit() else None)


def _either(a: bool | None, b: bool | None) -> bool | None:
    return b if a is None else a or bool(b)


def parse_others(text: str, me: int, is_here: Callable[[int], bool]) -> dict[str, list[str]]:
    """By uuid, the processes with memory on a GPU that are not this one, as `name (pid, MiB)`.

    In a container nvidia-smi names processes by the host's pids: where `me` is not among them, one that nobody here
    knows is taken to be this process.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for line in text.splitlines()[:256]:
        cells = [c.strip() for c in line.split(",", 3)]
        if len(cells) == 4 and cells[1].isascii() and cells[1].isdigit():
            name = cells[3][:60] if cells[3].isprintable() else "?"
            found.setdefault(cells[0], []).append((int(cells[1]), f"{name} (pid {cells[1]}, {cells[2]} MiB)"))
    told = {}
    for uuid, rows in found.items():
        unknown = [pid for pid, _ in rows if not is_here(pid)]
        mine = {me} if any(pid == me for pid, _ in rows) else set(unknown[:1])
        told[uuid] = [words for pid, words in rows if pid not in mine]
    return told


def xids_of(text: str, bus: str | None) -> tuple[int, ...]:
    """Codes of the faults that the kernel's log has of the GPU at `bus` (of any GPU where it is not known)."""
    where = _slot(bus) if bus else None
    found = [int(m[2]) for m in _XID.finditer(text) if where is None or _slot(m[1]) == where]
    return tuple(dict.fromkeys(found))


def _slot(bus: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00` are one slot."""
    domain, _, rest = bus.lower().partition(".")[0].partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def of_uuid(answer: Answer, uuid: str) -> GpuState | None:
    """The GPU that has this uuid; the only one there is, where torch does not tell its uuid."""
    if not uuid and len(answer.gpus) == 1:
        return next(iter(answer.gpus.values()))
    return answer.gpus.get(uuid)
