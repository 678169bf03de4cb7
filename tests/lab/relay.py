"""A long way between two points of the lab's network: two TAP devices, and what goes in at one comes out at the other
later, or not at all. Started by `tests.lab.net`; ends when it is killed. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST = 65536


def tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def main() -> None:
    delay_s, loss = float(sys.argv[1]), float(sys.argv[2])
    ends = [tap(f"tap{i}{os.getpid()}") for i in (0, 1)]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    print("ready", flush=True)
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait_s = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
        readable, _, _ = select.select(ends, [], [], wait_s)
        for fd in readable:
            frame = os.read(fd, LARGEST)
            if random.random() >= loss:
                count += 1
                heapq.heappush(under_way, (time.monotonic() + delay_s, count, other[fd], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # the device is not up: a packet lost
                os.write(to, frame)


main()
