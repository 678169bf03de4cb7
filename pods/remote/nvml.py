"""NVML through ctypes: is a GPU there, its memory, uncorrected ECC errors, processes, XIDs. Standard library only.

A call into the driver may hang for ever and a broken library may crash its process, so nothing of orch loads it but
the child process of `pods.remote.gpueye`, which runs `serve` of this module and is thrown away when it does not answer.

Source of names, numbers and structures: nvml.h of driver 580 ("NVML API Reference Guide": nvmlReturn_t,
nvmlMemory_v2_t, nvmlProcessInfo_t, nvmlPciInfo_t, nvmlEventData_t); of XIDs: docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Callable
from ctypes import Structure, byref, c_char, c_char_p, c_uint, c_ulonglong, c_void_p
from typing import Any, BinaryIO

LIBRARIES = (
    "libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/usr/lib64-nvidia/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
)
SUCCESS, NOT_FOUND, INSUFFICIENT_SIZE, GPU_IS_LOST, GPU_NOT_FOUND = 0, 6, 7, 15, 28
ABSENT = frozenset({NOT_FOUND, GPU_IS_LOST, GPU_NOT_FOUND})
UNCORRECTED, VOLATILE = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
NOT_AVAILABLE = 0xFFFFFFFFFFFFFFFF  # of usedGpuMemory: Windows drivers, WSL, some containers
MEMORY_V2 = 0x02000028  # NVML_STRUCT_VERSION(Memory, 2)
MAX_GPUS = 64
MAX_PROCESSES = 512
MAX_EVENTS = 64
MIB = 1 << 20


class _Memory(Structure):
    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class _MemoryV2(Structure):
    _fields_ = [
        ("version", c_uint),
        ("total", c_ulonglong),
        ("reserved", c_ulonglong),
        ("free", c_ulonglong),
        ("used", c_ulonglong),
    ]


class _Process(Structure):
    _fields_ = [("pid", c_uint), ("used", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint)]


class _Pci(Structure):
    _fields_ = [
        ("bus_id_legacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pci_device_id", c_uint),
        ("pci_subsystem_id", c_uint),
        ("bus_id", c_char * 32),
    ]


class _Event(Structure):
    _fields_ = [
        ("device", c_void_p),
        ("kind", c_ulonglong),
        ("data", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    ]


class NvmlError(Exception):
    """A call that did not return SUCCESS. `code` is an nvmlReturn_t; -1: this library has no such function."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: {code}")
        self.code = code


class NoLibrary(Exception):
    """There is none on this machine, or it cannot be loaded."""


class Nvml:
    """The library, loaded and initialised. For one thread of a process that may be lost."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        self._call("nvmlInit_v2")
        self._events: c_void_p | None = None
        self._registered: set[str] = set()

    @classmethod
    def load(cls) -> Nvml:
        """NoLibrary when there is none; NvmlError when the driver refuses (not loaded, another version)."""
        errors = []
        for name in LIBRARIES:
            try:
                return cls(ctypes.CDLL(name))
            except OSError as e:
                errors.append(str(e))
        raise NoLibrary(errors[0])

    def gpus(self) -> tuple[dict[str, c_void_p], int]:
        """(handles by UUID, how many GPUs could not be looked at)."""
        count = c_uint()
        self._call("nvmlDeviceGetCount_v2", byref(count))
        found: dict[str, c_void_p] = {}
        dark = 0
        for index in range(min(count.value, MAX_GPUS)):
            handle = c_void_p()
            try:
                self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
                found[self._uuid(handle)] = handle
            except NvmlError as e:
                dark += e.code not in ABSENT  # one that is lost is no place where another might be
        return found, dark

    def state(self, uuid: str, found: dict[str, c_void_p], dark: int) -> dict[str, Any]:
        """One GPU as a row. `present` null: it cannot be told; a figure that is not told is left out."""
        row: dict[str, Any] = {"uuid": uuid, "present": None}
        try:
            handle = found.get(uuid) or self._mig(uuid)
            if handle is None:
                return row if dark else row | {"present": False}
            row |= self._memory(handle)
        except NvmlError as e:
            return row | {"present": False if e.code in ABSENT else None, "error": str(e)}
        row["present"] = True
        looks: tuple[Callable[[c_void_p], dict[str, Any]], ...] = (self._ecc, self._bus, self._processes)
        for look in looks:
            try:
                row |= look(handle)
            except NvmlError as e:
                if e.code in ABSENT:  # it fell off the bus between two calls
                    return {"uuid": uuid, "present": False, "error": str(e)}
        return row

    def _mig(self, uuid: str) -> c_void_p | None:
        """A slice of a GPU has no index of its own."""
        if not uuid.startswith("MIG-"):
            return None
        handle = c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", c_char_p(uuid.encode()), byref(handle))
        return handle

    def _memory(self, handle: c_void_p) -> dict[str, Any]:
        """MiB. Version 2 keeps what the driver reserves for itself out of `used`, as nvidia-smi does."""
        v2 = _MemoryV2(version=MEMORY_V2)
        try:
            self._call("nvmlDeviceGetMemoryInfo_v2", handle, byref(v2))
        except NvmlError as e:
            if e.code in ABSENT:
                raise
            v1 = _Memory()
            self._call("nvmlDeviceGetMemoryInfo", handle, byref(v1))
            return {"used_mib": v1.used / MIB, "total_mib": v1.total / MIB}
        return {"used_mib": v2.used / MIB, "total_mib": v2.total / MIB}

    def _ecc(self, handle: c_void_p) -> dict[str, Any]:
        count = c_ulonglong()
        self._call("nvmlDeviceGetTotalEccErrors", handle, c_uint(UNCORRECTED), c_uint(VOLATILE), byref(count))
        return {"ecc_uncorrected": count.value}

    def _bus(self, handle: c_void_p) -> dict[str, Any]:
        pci = _Pci()
        self._call("nvmlDeviceGetPciInfo_v3", handle, byref(pci))
        return {"bus": f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}"}

    def _processes(self, handle: c_void_p) -> dict[str, Any]:
        """Pids as the driver knows them: those of the machine, also inside a container that has pids of its own."""
        kinds = {"compute": "nvmlDeviceGetComputeRunningProcesses_v3"}
        kinds["graphics"] = "nvmlDeviceGetGraphicsRunningProcesses_v3"
        return {kind: self._process_list(name, handle) for kind, name in kinds.items()}

    def _process_list(self, name: str, handle: c_void_p) -> list[list[Any]]:
        for size in (32, MAX_PROCESSES):
            count, rows = c_uint(size), (_Process * size)()
            try:
                self._call(name, handle, byref(count), rows)
            except NvmlError as e:
                if e.code != INSUFFICIENT_SIZE:
                    raise
                continue
            found = rows[: min(count.value, size)]
            return [[int(p.pid), None if p.used == NOT_AVAILABLE else p.used / MIB] for p in found]
        raise NvmlError(name, INSUFFICIENT_SIZE)

    def xids(self, found: dict[str, c_void_p]) -> dict[str, list[int]]:
        """UUID -> codes since the last call; what happened before the first one is not told."""
        told: dict[str, list[int]] = {}
        try:
            self._register(found)
            event = _Event()
            for _ in range(MAX_EVENTS):
                self._call("nvmlEventSetWait_v2", self._events, byref(event), c_uint(0))
                if event.kind == XID_EVENT:
                    told.setdefault(self._uuid(c_void_p(event.device)), []).append(int(event.data))
        except NvmlError:  # a timeout: nothing more; or it cannot be told, or a GPU is lost, which `state` tells
            pass
        return told

    def _register(self, found: dict[str, c_void_p]) -> None:
        if self._events is None:
            events = c_void_p()
            self._call("nvmlEventSetCreate", byref(events))
            self._events = events
        for uuid in found.keys() - self._registered:
            self._registered.add(uuid)  # once: a GPU that has no events will not have them later
            with contextlib.suppress(NvmlError):
                self._call("nvmlDeviceRegisterEvents", found[uuid], c_ulonglong(XID_EVENT), self._events)

    def _uuid(self, handle: c_void_p) -> str:
        text = ctypes.create_string_buffer(96)
        self._call("nvmlDeviceGetUUID", handle, text, c_uint(len(text)))
        return text.value.decode(errors="replace")

    def _call(self, name: str, *args: Any) -> None:
        try:
            function = getattr(self._lib, name)
        except AttributeError:
            raise NvmlError(name, -1) from None
        code = function(*args)
        if code != SUCCESS:
            raise NvmlError(name, code)


def serve(requests: BinaryIO, answers: BinaryIO) -> int:
    """One JSON line in (`{"uuids": [..] or null}`: null for every GPU), one out, until the asker is gone."""
    nvml: Nvml | None = None
    for line in requests:
        try:
            nvml = nvml or Nvml.load()
            answer = _answer(nvml, json.loads(line).get("uuids"))
        except NoLibrary as e:
            answer = {"error": str(e), "library": False}
        except NvmlError as e:
            answer = {"error": str(e)}
            nvml = None
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
    return 0


def _answer(nvml: Nvml, uuids: list[str] | None) -> dict[str, Any]:
    found, dark = nvml.gpus()
    rows = [nvml.state(uuid, found, dark) for uuid in (found if uuids is None else uuids)]
    return {"gpus": rows, "xids": nvml.xids(found)}


if __name__ == "__main__":
    sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))
