"""One pod of the lab: a machine as far as SSH, processes, files and the network can tell, that can lose its power."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.disk import Image, PodOptions, binds
from tests.lab.limits import MemoryLimit
from tests.lab.need import LabUnavailable
from tests.lab.net import Cable, Holder, Net, call
from workloads.contract.config.inventory import PodSpec

BOOT_S = 20.0
END_S = 10.0
INIT = Path(__file__).with_name("init.py")


@dataclass(frozen=True)
class Seen:
    """A process of a pod; `pid` is its number there."""

    pid: int
    argv: tuple[str, ...]
    state: str


class LabPod:
    """Made by `Lab`. Its disk outlives `power_cut` and `boot`; what lay in /run, /dev/shm and /tmp does not."""

    def __init__(
        self, name: str, options: PodOptions, *, net: Net, cable: Cable, site: Holder, place: Path, env: dict[str, str]
    ) -> None:
        self.name, self.options, self.net, self.cable = name, options, net, cable
        self.address = ""
        self._site, self._place, self._env = site, place, env
        self._process: subprocess.Popen[bytes] | None = None
        self._limit = MemoryLimit(f"{place.parent.name}-{name}", options.memory_mib) if options.memory_mib else None
        self._init_pid = 0

    def install(self, *, address: str, authorized: str, hosts: str) -> None:
        """Make its disk and its host key; once."""
        self.address = address
        self._place.mkdir(mode=0o700)
        key = self._place / "host_key"
        call(["ssh-keygen", "-q", "-t", self.options.host_key_type, "-N", "", "-C", "", "-f", str(key)])
        public = key.with_suffix(".pub").read_text()
        self.host_key = " ".join(public.split()[:2])
        disk = self._place / "disk"
        for folder in (disk, self._place / "root"):
            folder.mkdir()
        size = f"size={self.options.disk_mib}m,mode=755"
        call([*self._in_site(), "mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)])
        self.disk = Path(f"/proc/{self._site.pid}/root{disk}")
        (self.disk / "work").mkdir()
        image = Image(self.disk / "upper", self.options)
        image.write(host_key=(key.read_text(), public), authorized=authorized, hosts=hosts)
        (self.disk / "upper/etc/hostname").write_text(f"{self.name}\n")

    def _in_site(self) -> list[str]:
        return ["nsenter", f"--mount={self._site.namespace('mnt')}", "--"]

    # power

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def boot(self, *, new_boot_id: bool = True) -> None:
        """Switch it on; returns when its sshd takes connections. A container restart keeps the host's boot id."""
        if self.running:
            return
        if new_boot_id or not (self.disk / "boot_id").exists():
            (self.disk / "boot_id").write_text(f"{uuid.uuid4()}\n")
        order = self._place / "order.json"
        order.write_text(json.dumps(self._order()))
        argv = [
            "nsenter", f"--mount={self._site.namespace('mnt')}", f"--net={self.net.namespace('net')}", "--",
            "unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup", "--",
            os.path.realpath(sys.executable), "-I", "-S", str(INIT), str(order),
        ]  # fmt: skip
        if self._limit is not None:
            argv = self._limit.around(argv)
        log = self._place / "init.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=self._env,
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.power_cut()
            raise LabUnavailable(f"{self.name} does not boot: {log.read_text(errors='replace').strip()[-500:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._init_pid = int(children[0])

    def _order(self) -> dict[str, Any]:
        options = self.options
        tmp = None if options.tmp_kept else "mode=1777" + (",noexec" if options.tmp_noexec else "")
        return {
            "root": str(self._place / "root"), "disk": str(self._place / "disk"), "hostname": self.name,
            "binds": binds(options), "port": options.port, "tmp": tmp, "home": options.home_dir,
            "home_readonly": options.home_readonly, "reaps": options.reaps,
        }  # fmt: skip

    def power_cut(self, *, silent: bool = False) -> None:
        """SIGKILL to everything in it at once. Its kernel would say nothing to its peers: `silent` has it so."""
        process, self._process = self._process, None
        if process is None:
            return
        init, self._init_pid = self._init_pid, 0
        with self.cable.silent() if silent else nullcontext():
            if init:
                with suppress(ProcessLookupError):
                    os.kill(
                        init, signal.SIGKILL
                    )  # `unshare` reaps it, and ends, when the kernel has killed all the rest
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
            process.kill()
            process.wait(END_S)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def reboot(self, *, new_boot_id: bool = True) -> None:
        self.power_cut()
        self.boot(new_boot_id=new_boot_id)

    def close(self) -> None:
        self.power_cut()
        if self._limit is not None:
            self._limit.close()

    # looking inside, without SSH

    def exec(
        self, argv: Sequence[str], *, timeout_s: float = 30.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there as root, with its default PATH."""
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.options.home_dir}
        full = ["nsenter", f"--target={self._init_pid}", "--mount", "--net", "--pid", "--uts", "--ipc", "--root",
                "--wd=/", "--", *argv]  # fmt: skip
        return subprocess.run(full, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=env)

    def path(self, inside: str | Path) -> Path:
        """A file of the running pod, as this process can open it."""
        return Path(f"/proc/{self._init_pid}/root{inside}")

    def processes(self) -> list[Seen]:
        """Everything that runs there, the first process included."""
        found = []
        proc = self.path("/proc")
        for name in os.listdir(proc):
            if not name.isdigit():
                continue
            with suppress(OSError, IndexError):
                argv = tuple((proc / name / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
                state = (proc / name / "stat").read_text().rsplit(")", 1)[1].split()[0]
                found.append(Seen(int(name), argv, state))
        return sorted(found, key=lambda p: p.pid)

    @property
    def boot_id(self) -> str:
        return (self.disk / "boot_id").read_text().strip()

    @property
    def oom_kills(self) -> int:
        """How often its memory limit had a process killed."""
        return 0 if self._limit is None else self._limit.oom_kills

    @property
    def sshd_log(self) -> str:
        return (self.disk / "upper/var/log/sshd.log").read_text(errors="replace")

    # reaching it

    @property
    def target(self) -> str:
        port = "" if self.options.port == 22 else f":{self.options.port}"
        return f"{self.options.user}@{self.address}{port}"

    def spec(self, identity: Path, **more: Any) -> PodSpec:
        """What the inventory says of it: pinned key, identity, the tests' interpreter for the ranks."""
        python = {"python": str(Path(sys.prefix, "bin", "python"))} if self.has_venv else {}
        given = {"ssh": self.target, "host_key": self.host_key, "identity": str(identity), "address": self.address}
        return PodSpec(**{**given, **python, **more})

    @property
    def has_venv(self) -> bool:
        return self.options.venv and self.options.python != "none"

    # what can go wrong with the network: see `Cable`

    @contextmanager
    def cut(self) -> Iterator[None]:
        with self.cable.cut():
            yield

    @contextmanager
    def silent(self) -> Iterator[None]:
        with self.cable.silent():
            yield

    @contextmanager
    def slow(self, rate: str = "1mbit") -> Iterator[None]:
        with self.cable.slow(rate):
            yield

    @contextmanager
    def lossy(self, share: float = 0.02) -> Iterator[None]:
        with self.cable.lossy(share):
            yield

    @contextmanager
    def far(self, delay_s: float = 0.04, loss: float = 0.0) -> Iterator[None]:
        with self.cable.far(delay_s, loss):
            yield

    @contextmanager
    def reset(self) -> Iterator[None]:
        with self.cable.reset(self.options.port):
            yield

    @contextmanager
    def cut_after(self, size_bytes: int, *, silent: bool = False) -> Iterator[None]:
        with self.cable.cut_after(size_bytes, self.options.port, silent=silent):
            yield

    @contextmanager
    def metered(self) -> Iterator[Callable[[], int]]:
        with self.cable.metered(self.options.port) as read:
            yield read

    @contextmanager
    def addressed(self, address: str) -> Iterator[None]:
        """At another address, as a rented machine that was given a new one; `address` becomes that."""
        own, self.address = self.address, address
        self._move(own, address)
        try:
            yield
        finally:
            self.address = own
            self._move(address, own)

    def _move(self, old: str, new: str) -> None:
        self.net.run("ip", "addr", "del", f"{old}/24", "dev", "eth0")
        self.net.run("ip", "addr", "add", f"{new}/24", "dev", "eth0")
