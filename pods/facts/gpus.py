"""GPUs: `gpus_of` asks one question for the plan and the keeper; the parsers read what `nvidia-smi` and the kernel say.

Pure but for `gpus_of`. A line that is no well-formed GPU gives none, and is told.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from pods.facts.kinds import Gpu, GpuProcess, MigDevice, Xid
from pods.transport.base import Result, Transport
from workloads.contract.errors import OrchError

NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version",
    "--format=csv,noheader,nounits",
)
NVIDIA_SMI_TIMEOUT_S = 10.0
MAX_GPUS = 64
MAX_PROCESSES = 256
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z./-]{4,80}")
_WORD = re.compile(r"[\x20-\x7e]{1,80}")
_VERSION = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6}){0,3}")
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]{4,20})[^)\n]{0,80}\): ([0-9]{1,4})\b,?([^\n]{0,300})")
_MIG = re.compile(r"\s+MIG ([0-9]g\.[0-9a-z.+]{2,20})\s+Device\s+[0-9]+: \(UUID: (MIG-[0-9A-Za-z./-]{4,80})\)\s*")
_LISTED = re.compile(r"GPU [0-9]{1,3}: .{0,80} \(UUID: (GPU-[0-9A-Za-z./-]{4,80})\)\s*")


def gpus_of(transport: Transport) -> tuple[tuple[Gpu, ...], str | None]:
    """The pod's GPUs now. A hung nvidia-smi is an error in words, not an exception."""
    try:
        return parse_nvidia_smi(transport.run(NVIDIA_SMI, timeout_s=NVIDIA_SMI_TIMEOUT_S))
    except OrchError as e:
        return (), f"{e.what} ({e.expected})"


def parse_nvidia_smi(result: Result) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs of one `nvidia-smi` query, and what was wrong with it. A machine without GPUs is not wrong: ((), None)."""
    if result.exit_code == 127:
        return (), None
    text = (result.stdout + result.stderr).strip()
    if "No devices were found" in text:
        return (), None
    if not result.ok:
        return (), f"nvidia-smi exit code {result.exit_code}: {text.splitlines()[0][:200] if text else 'no output'}"
    return parse_gpu_lines(result.stdout)


def parse_gpu_lines(text: str) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs of the short or the long query (`script.GPU_QUERY`), and the first thing that was wrong with its lines."""
    gpus: list[Gpu] = []
    bad: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        gpu = _parse_gpu_line(line) if len(gpus) < MAX_GPUS else None
        if gpu is None:
            bad.append(line.strip()[:120])
        else:
            gpus.append(gpu)
    if len({g.uuid for g in gpus}) != len(gpus) or len({g.index for g in gpus}) != len(gpus):
        return (), "nvidia-smi names one GPU twice"
    return tuple(gpus), f"nvidia-smi printed a line that is no GPU: {bad[0]!r}" if bad else None


def _parse_gpu_line(line: str) -> Gpu | None:
    cells = [c.strip() for c in line.split(",")]
    if len(cells) not in (5, 6, 13) or not _UUID.fullmatch(cells[1]):
        return None
    index, total, used = (_whole(cells[i]) for i in (0, 3, 4))
    if index is None or total is None or used is None or not _WORD.fullmatch(cells[2]):
        return None
    gpu = Gpu(index, cells[1], cells[2], total, used)
    if len(cells) == 5:
        return gpu
    gpu = dataclasses.replace(gpu, driver=version_or_none(cells[5]))
    if len(cells) == 6:
        return gpu
    return dataclasses.replace(
        gpu,
        ecc=_switch(cells[6]),
        ecc_volatile=_whole(cells[7]),
        ecc_aggregate=_whole(cells[8]),
        mig=_switch(cells[9]),
        temperature_c=_whole(cells[10]),
        pcie_gen=_whole(cells[11]),
        pcie_width=_whole(cells[12]),
    )


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _switch(text: str) -> bool | None:
    return {"Enabled": True, "Disabled": False}.get(text)


def version_or_none(text: str) -> str | None:
    return text.strip() if _VERSION.fullmatch(text.strip()) else None


def parse_mig_list(text: str) -> dict[str, tuple[MigDevice, ...]]:
    """MIG devices by the UUID of their GPU, from `nvidia-smi -L`."""
    found: dict[str, tuple[MigDevice, ...]] = {}
    current: str | None = None
    for line in text.splitlines():
        if m := _LISTED.fullmatch(line):
            current = m[1]
        elif (m := _MIG.fullmatch(line)) and current is not None and len(found.get(current, ())) < 16:
            found[current] = (*found.get(current, ()), MigDevice(m[2], m[1]))
    return found


def parse_smi_header(text: str) -> tuple[str | None, str | None]:
    """(driver, CUDA) versions from the head of `nvidia-smi -q`."""
    found = dict(re.findall(r"^(Driver Version|CUDA Version) +: ([0-9.]{1,20})[ \t]*$", text, re.M))
    return version_or_none(found.get("Driver Version", "")), version_or_none(found.get("CUDA Version", ""))


def parse_module_version(text: str) -> str | None:
    """The kernel module's version from the first line of /proc/driver/nvidia/version."""
    m = re.search(r"NVRM version: NVIDIA UNIX [^\n]{0,60}Kernel Module[^\n]{0,30}?  +([0-9]+(?:\.[0-9]+){1,3})\b", text)
    return m[1] if m else None


def parse_owners(text: str) -> dict[int, str]:
    """Users by pid, of processes that the pod sees under that pid itself."""
    return {int(m[1]): m[2] for m in re.finditer(r"^([0-9]{1,9}) ([A-Za-z0-9_.$-]{1,64})$", text, re.M)}


def parse_compute_apps(text: str, owners: Mapping[int, str]) -> tuple[GpuProcess, ...]:
    """Processes with memory on a GPU, from `nvidia-smi --query-compute-apps`; lines that are none are left out."""
    found = []
    for line in text.splitlines()[:MAX_PROCESSES]:
        cells = [c.strip() for c in line.split(",", 3)]
        pid = _whole(cells[1]) if len(cells) == 4 else None
        if pid is None or not _UUID.fullmatch(cells[0]):
            continue
        command = cells[3][:80] if _WORD.fullmatch(cells[3][:80]) else "?"
        found.append(GpuProcess(pid, cells[0], command, _whole(cells[2]), owners.get(pid)))
    return tuple(found)


def parse_xids(text: str, nonce: str) -> tuple[Xid, ...] | None:
    """Faults in the kernel's log, or None when it could not be read. `<nonce>-read` says that it was."""
    found = [Xid(int(m[2]), m[1], m[3].strip(" ,")) for m in _XID.finditer(text)]
    if found:
        return tuple(dict.fromkeys(found))
    if "gVisor" in text or f"{nonce}-read" not in text:  # gVisor shows a log of its own making
        return None
    return ()
