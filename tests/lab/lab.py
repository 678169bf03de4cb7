"""N pods and a laptop on one Linux machine, each with a network, processes and a disk of its own, and real sshd.

    with Lab(pods=3) as lab:
        lab.orch("pods", "list")               # the command, run on the laptop
        with lab["pod-b"].cut(): ...           # pulled out of the switch
        lab["pod-c"].power_cut(); lab["pod-c"].boot()

Pods are pod-a, pod-b, ... at 10.231.77.11, .12, ...; the laptop is .10. The laptop is a network namespace of this
machine and otherwise this machine: its processes are seen, waited for and killed as any other. Two labs at once do not
meet: namespaces have no names, and the addresses are those of each lab's own network. `close` leaves nothing; so does
a killed test process, since everything ends with the pipes it held.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.disk import ROOT, PodOptions
from tests.lab.limits import V1, V2
from tests.lab.need import LabUnavailable, missing
from tests.lab.net import SUBNET, Holder, Net, Switch, call
from tests.lab.pod import LabPod
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome

PREFIX = "orch-lab-"
MARK = "ORCH_LAB"
ORCH_S = 60.0


@dataclass(frozen=True)
class Ran:
    """A command that ended on the laptop."""

    code: int
    out: str
    err: str


class Lab:
    def __init__(
        self, pods: int = 3, options: PodOptions | Mapping[str, PodOptions] | None = None, *, inventory: bool = True
    ) -> None:
        """`options` for all pods, or by name; `inventory`: the laptop's pods.yaml has them, keys pinned."""
        names = [f"pod-{chr(ord('a') + i)}" for i in range(pods)]
        by_name = options if isinstance(options, Mapping) else dict.fromkeys(names, options or PodOptions())
        self.options = {name: by_name.get(name, PodOptions()) for name in names}
        self._inventory = inventory
        self._stack = ExitStack()
        self.pods: dict[str, LabPod] = {}

    def __enter__(self) -> Lab:
        reason = missing()
        if reason is not None:
            raise LabUnavailable(reason)
        sweep()
        with ExitStack() as stack:
            self._stack = stack
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def _build(self, stack: ExitStack) -> None:
        me = ProcId.me()
        self.place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{me.pid}-{me.start_time}-"))
        stack.callback(shutil.rmtree, self.place, ignore_errors=True)
        self.name = self.place.name
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", MARK: self.name}
        self.identity = self.place / "id_ed25519"
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.identity)])
        authorized = self.identity.with_suffix(".pub").read_text()
        site = Holder("--mount", "--propagation=private", env=env)
        stack.callback(site.close)
        self.switch = Switch(env=env)
        stack.callback(self.switch.close)
        self.laptop = self._net(stack, env)
        self.switch.plug(self.laptop, "plap", f"{SUBNET}.10")
        addresses = {name: f"{SUBNET}.{11 + i}" for i, name in enumerate(self.options)}
        hosts = "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items())
        for name, options in self.options.items():
            net = self._net(stack, env)
            cable = self.switch.plug(net, f"p{name.removeprefix('pod-')}", addresses[name])
            pod = LabPod(name, options, net=net, cable=cable, site=site, place=self.place / name, env=env)
            stack.callback(pod.close)
            pod.install(address=addresses[name], authorized=authorized, hosts=hosts)
            pod.boot()
            self.pods[name] = pod
        self.home = OrchHome(self.place / "laptop" / ".orch")
        self.home.path.mkdir(parents=True, mode=0o700)
        if self._inventory:
            self.write_inventory()

    def _net(self, stack: ExitStack, env: dict[str, str]) -> Net:
        net = Net(env=env)
        stack.callback(net.close)
        stack.callback(self._end_processes_in, net)
        return net

    @staticmethod
    def _end_processes_in(net: Net) -> None:
        """What was left running on the laptop: a keeper, a follower. The holder itself goes after."""
        for pid in _pids():
            with suppress(OSError):
                if pid not in (net.pid, os.getpid()) and os.stat(f"/proc/{pid}/ns/net").st_ino == net.inode:
                    os.kill(pid, signal.SIGKILL)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
        self.pods.clear()

    def __getitem__(self, name: str) -> LabPod:
        return self.pods[name]

    # the laptop

    def write_inventory(self, home: OrchHome | None = None, **more: Any) -> Path:
        """pods.yaml with every pod, its key pinned; `more` goes to each."""
        home = home or self.home
        rows = ["pods:\n"]
        for pod in self.pods.values():
            rows.append(f"  {pod.name}:\n")
            given = pod.spec(self.identity, **more).model_dump(exclude_defaults=True)
            rows += [f"    {key}: {value}\n" for key, value in given.items()]
        home.inventory.write_text("".join(rows))
        home.inventory.chmod(0o600)
        return home.inventory

    def env(self, home: OrchHome | None = None) -> dict[str, str]:
        """The environment of a command on the laptop: a home and an ORCH_HOME of the lab's, no SSH agent."""
        home = home or self.home
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TERM")}
        return {
            **keep, "HOME": str(home.path.parent), "ORCH_HOME": str(home.path), "PYTHONPATH": str(ROOT),
            "COLUMNS": "120", "TZ": "UTC", MARK: self.name,
        }  # fmt: skip

    def popen(self, argv: Sequence[str], *, home: OrchHome | None = None, **more: Any) -> subprocess.Popen[str]:
        """Start a command on the laptop; its pid is the command's own."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given: dict[str, Any] = {**pipes, "text": True, "env": self.env(home), "cwd": self.place, **more}
        return subprocess.Popen(self.laptop.within(argv), **given)

    def start_orch(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        return self.popen([sys.executable, "-m", "orchestrator.cli", *args], **more)

    def orch(self, *args: str, timeout_s: float = ORCH_S, stdin: str = "", **more: Any) -> Ran:
        """`orch ARGS` on the laptop, to its end."""
        process = self.start_orch(*args, stdin=subprocess.PIPE, **more)
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"orch {' '.join(args)} took over {timeout_s} s\n{out}\n{err}") from None
        return Ran(process.returncode, out, err)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and those it starts meanwhile, on the laptop's network: to use a transport in process."""
        with self.laptop.inside():
            yield

    @contextmanager
    def swapped(self, one: str, other: str) -> Iterator[None]:
        """Two pods have each other's address."""
        a, b = self[one], self[other]
        first, second = a.address, b.address
        with ExitStack() as stack:
            stack.callback(self.laptop.run, "ip", "neigh", "flush", "dev", "eth0")
            stack.enter_context(a.addressed(f"{SUBNET}.250"))
            stack.enter_context(b.addressed(first))
            stack.enter_context(a.addressed(second))
            self.laptop.run("ip", "neigh", "flush", "dev", "eth0")
            yield


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def sweep() -> None:
    """Remove what labs left whose test process is gone: commands on their laptops, directories, memory limits."""
    base = Path(tempfile.gettempdir())
    dead = []
    for place in base.glob(f"{PREFIX}*"):
        pid_text, start, _ = place.name.removeprefix(PREFIX).split("-", 2)
        owner = ProcId.of(int(pid_text))
        if owner is None or str(owner.start_time) != start:
            dead.append(place)
    if not dead:
        return
    marks = {f"{MARK}={place.name}".encode() for place in dead}
    for pid in _pids():
        with suppress(OSError):
            if marks & set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    for place in dead:
        for top in (V1, V2):
            for group in top.glob(f"{place.name}-*"):
                with suppress(OSError):
                    group.rmdir()
        shutil.rmtree(place, ignore_errors=True)
