"""GPU faults (XIDs) in the kernel's log: what is new since the last look, and which GPU a place on the bus is.

`NVRM: Xid (PCI:0000:18:00): 79, pid=1234, GPU has fallen off the bus.` (docs.nvidia.com/deploy/xid-errors). Read from
/dev/kmsg without blocking (kernel: Documentation/ABI/testing/dev-kmsg), else through syslog(2); a container mostly has
neither, and then nothing is told. Called by `podhealth`.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from pods.remote.gpustate import bus_key

KMSG = Path("/dev/kmsg")
PROC_GPUS = Path("/proc/driver/nvidia/gpus")
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]{4,20})[^)\n]{0,80}\): ([0-9]{1,4})\b")
_STAMP = re.compile(r"^(?:<\d+>)?\[ *(\d{1,12}\.\d{6})\]", re.ASCII)
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]{8,64})\s*$", re.MULTILINE)
RECORD_BYTES = 8192
MAX_RECORDS = 20_000
LOOK_S = 0.2
READ_ALL, BUFFER_BYTES = 3, 1 << 20  # SYSLOG_ACTION_READ_ALL


@dataclass(frozen=True)
class XidSeen:
    bus: str  # 0000:18:00
    code: int
    mono_s: float  # of the kernel's clock, which is close to CLOCK_MONOTONIC


class KernelLog:
    """`fd`: a descriptor like that of /dev/kmsg, owned from now on; None: ask by syslog(2)."""

    def __init__(self, fd: int | None) -> None:
        self._fd, self._last = fd, -1.0
        if fd is not None:
            weakref.finalize(self, os.close, fd)

    @classmethod
    def open(cls) -> KernelLog:
        try:
            return cls(os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return cls(None)

    def new(self) -> list[XidSeen]:
        """What was not there at the last look; at the first, everything that the kernel still has."""
        return self._by_syslog() if self._fd is None else self._by_kmsg(self._fd)

    def _by_kmsg(self, fd: int) -> list[XidSeen]:
        found: list[XidSeen] = []
        deadline = time.monotonic() + LOOK_S
        for _ in range(MAX_RECORDS):
            try:
                record = os.read(fd, RECORD_BYTES)  # one record a read
            except BrokenPipeError:
                continue  # overwritten before it was read: the next one follows
            except OSError:
                break  # EAGAIN: that was all
            if not record:
                break
            head, _, text = record.decode(errors="replace").partition(";")
            fields = head.split(",")
            if len(fields) >= 3 and fields[2].isdigit():
                found += _xids_in(text.split("\n", 1)[0], int(fields[2]) / 1e6)
            if time.monotonic() > deadline:
                break  # the next look goes on here
        return found

    def _by_syslog(self) -> list[XidSeen]:
        buffer = ctypes.create_string_buffer(BUFFER_BYTES)
        try:
            size = ctypes.CDLL(None).klogctl(READ_ALL, buffer, BUFFER_BYTES)
        except (OSError, AttributeError):
            return []
        found: list[XidSeen] = []
        last = self._last
        for line in buffer.raw[: max(0, size)].decode(errors="replace").splitlines():
            stamp = _STAMP.match(line)
            if stamp and float(stamp[1]) > self._last:
                found += _xids_in(line, float(stamp[1]))
                last = max(last, float(stamp[1]))
        self._last = last
        return found


def _xids_in(text: str, mono_s: float) -> list[XidSeen]:
    m = XID.search(text)
    bus = bus_key(m[1]) if m else None
    return [XidSeen(bus, int(m[2]), mono_s)] if m and bus else []


def uuids_by_bus(root: Path = PROC_GPUS) -> dict[str, str]:
    """Place on the bus -> UUID, as the driver tells without NVML. {} where it has no /proc."""
    found = {}
    try:
        folders = sorted(os.listdir(root))[:64]
    except OSError:
        return {}
    for name in folders:
        bus = bus_key(name)
        try:
            m = _UUID.search((root / name / "information").read_text(errors="replace")[:4096])
        except OSError:
            continue
        if bus and m:
            found[bus] = m[1]
    return found
