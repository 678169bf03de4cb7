"""The lab's network: one switch, a cable to the laptop and to each pod, and what can go wrong with a cable.

Every network namespace lives as long as its holder, a `cat` on a pipe from this process: no name is left behind when
the tests are killed. Nothing is routed out of the lab.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.lab.need import LabUnavailable

HOLDER_WAIT_S = 5.0
SUBNET = "10.231.77"
CLONE_NEWNET = 0x40000000
RELAY = Path(__file__).with_name("relay.py")


def call(argv: Sequence[str], *, timeout_s: float = 20.0, stdin: str = "") -> str:
    """Run a tool of this machine; its output. RuntimeError with what it said when it fails."""
    done = subprocess.run(list(argv), input=stdin, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Holder:
    """A process that does nothing but keep namespaces (`--net`, `--mount`) alive; ends with this process."""

    def __init__(self, *kinds: str, env: dict[str, str]) -> None:
        argv = ["unshare", *kinds, "sh", "-c", "echo ready; exec cat >/dev/null"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
        )  # in a session of its own: Ctrl-C is for the test process, which then tidies up
        self.pid = self._process.pid
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != b"ready\n":
            told = self._process.stderr.read().decode(errors="replace").strip()
            self.close()
            raise LabUnavailable(f"no namespace {kinds}: {told}")

    def namespace(self, kind: str) -> str:
        return f"/proc/{self.pid}/ns/{kind}"

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(HOLDER_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Net(Holder):
    """A network namespace."""

    def __init__(self, *, env: dict[str, str]) -> None:
        super().__init__("--net", env=env)
        self.inode = os.stat(self.namespace("net")).st_ino
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str) -> str:
        return call(self.within(argv))

    def within(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net={self.namespace('net')}", "--", *argv]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and threads that it starts meanwhile, open their sockets in this network."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(fd: int) -> None:
            if libc.setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

        back = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            there = os.open(self.namespace("net"), os.O_RDONLY)
            try:
                enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                enter(back)
        finally:
            os.close(back)


class Switch(Net):
    def __init__(self, *, env: dict[str, str]) -> None:
        super().__init__(env=env)
        self.run("ip", "link", "add", "br0", "type", "bridge")
        self.run("ip", "link", "set", "br0", "up")

    def plug(self, net: Net, port: str, address: str) -> Cable:
        peer = str(net.pid)
        self.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", peer)
        self.run("ip", "link", "set", port, "master", "br0", "up")
        net.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        net.run("ip", "link", "set", "eth0", "up")
        return Cable(self, port, net)


class Cable:
    """What connects one machine to the switch. Every fault ends with its `with` block."""

    def __init__(self, switch: Switch, port: str, net: Net) -> None:
        self.switch, self.port, self.net = switch, port, net

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Pulled out of the switch: both sides see nothing more of each other."""
        self.switch.run("ip", "link", "set", self.port, "down")
        try:
            yield
        finally:
            self.switch.run("ip", "link", "set", self.port, "up")

    @contextmanager
    def slow(self, rate: str = "1mbit") -> Iterator[None]:
        """At most `rate` (as `tc` writes it), either way."""
        ends = ((self.switch, self.port), (self.net, "eth0"))
        shape = ("root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        try:
            for net, device in ends:
                net.run("tc", "qdisc", "add", "dev", device, *shape)
            yield
        finally:
            for net, device in ends:
                with suppress(RuntimeError):
                    net.run("tc", "qdisc", "del", "dev", device, "root")

    @contextmanager
    def filtered(self, rule: str, *, out: str | None = None) -> Iterator[None]:
        """An nft rule for what comes in over the cable, and one for what goes out (default: the same)."""
        table = f"lab{len(self._tables())}"
        text = f"table inet {table} {{\n"
        for hook, device, body in (("input", "iifname", rule), ("output", "oifname", rule if out is None else out)):
            text += f'chain {hook} {{ type filter hook {hook} priority 0; {device} "eth0" {body}\n}}\n'
        call(self.net.within(["nft", "-f", "-"]), stdin=text + "}\n")
        try:
            yield
        finally:
            with suppress(RuntimeError):
                self.net.run("nft", "delete", "table", "inet", table)

    def _tables(self) -> list[str]:
        return self.net.run("nft", "list", "tables").splitlines()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Packets vanish; the address still resolves, as on the internet: connecting waits instead of failing."""
        with self.filtered("drop"):
            yield

    @contextmanager
    def lossy(self, share: float = 0.02) -> Iterator[None]:
        """Each packet is lost with this probability, either way."""
        with self.filtered(f"numgen random mod 10000 < {round(share * 10000)} counter drop"):
            yield

    @contextmanager
    def far(self, delay_s: float = 0.04, loss: float = 0.0) -> Iterator[None]:
        """Each packet takes `delay_s` each way and may be lost; by a process, since kernels often lack netem."""
        relay = subprocess.Popen(
            self.switch.within([os.path.realpath(sys.executable), "-I", "-S", str(RELAY), str(delay_s), str(loss)]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            assert relay.stdin is not None and relay.stdout is not None
            if relay.stdout.readline() != b"ready\n":
                raise LabUnavailable("no TAP devices here")
            taps = [f"tap{i}{relay.pid}" for i in (0, 1)]
            self._by_way_of(*taps, pid=relay.pid)
            yield
        finally:
            with suppress(RuntimeError):
                self.switch.run("ip", "link", "set", self.port, "master", "br0")
            relay.kill()
            relay.communicate()
            with suppress(RuntimeError):
                self.switch.run("ip", "link", "del", f"way{relay.pid}")

    def _by_way_of(self, near: str, far: str, *, pid: int) -> None:
        """switch - near | relay | far - cable"""
        way = f"way{pid}"
        self.switch.run("ip", "link", "add", way, "type", "bridge")
        for device, bridge in ((near, "br0"), (far, way), (self.port, way)):
            self.switch.run("ip", "link", "set", device, "master", bridge, "up")
        self.switch.run("ip", "link", "set", way, "up")

    @contextmanager
    def reset(self, port: int) -> Iterator[None]:
        """Every packet of a connection to `port` is answered with a reset; established ones break."""
        with self.filtered(f"tcp dport {port} tcp flags & rst == 0 reject with tcp reset", out="accept"):
            yield

    @contextmanager
    def cut_after(self, size_bytes: int, port: int, *, silent: bool = False) -> Iterator[None]:
        """Cut for connections to `port` once this much came in: with resets, or `silent`ly."""
        end = "drop" if silent else "tcp flags & rst == 0 reject with tcp reset"
        with self.filtered(f"tcp dport {port} quota over {size_bytes} bytes {end}", out="accept"):
            yield

    @contextmanager
    def metered(self, port: int) -> Iterator[Callable[[], int]]:
        """How many bytes came in for `port` so far."""
        with self.filtered(f"tcp dport {port} counter", out="accept"):
            yield lambda: sum(int(n) for n in re.findall(r"bytes (\d+)", self.net.run("nft", "list", "ruleset")))
