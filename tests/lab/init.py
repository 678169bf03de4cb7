"""The first process of a lab pod: mounts what makes it a machine of its own, starts its sshd, reaps its orphans.

Started by `tests.lab.pod` as PID 1 of new PID, mount, UTS, IPC and cgroup namespaces, with an order (JSON) as argument.
It prints `ready` once sshd takes connections. Its standard input is held open by the test process: when that ends,
however it ended, this process ends too and the kernel kills everything in the pod. Standard library only.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  connect() asks for it, when no Python may be in sight any more
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

SSHD_WAIT_S = 10.0
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def mount(*argv: str) -> None:
    done = subprocess.run(["mount", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"init: mount {' '.join(argv)}: {done.stderr.strip()}")


def make_root(order: dict[str, Any]) -> None:
    """The pod's root: the host's system below, read only; the pod's own disk above it."""
    root, disk = order["root"], order["disk"]
    layers = f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work"
    mount("-t", "overlay", "overlay", "-o", layers, root)
    if order["tmp"] is not None:  # before the binds: what is bound may lie below /tmp
        mount("-t", "tmpfs", "-o", order["tmp"], "tmpfs", f"{root}/tmp")
    for source, path in order["binds"]:
        if os.path.isdir(source):
            os.makedirs(root + path, mode=0o755, exist_ok=True)
        mount("--bind", source, root + path)
        mount("-o", "remount,bind,ro", root + path)
    mount("-t", "proc", "proc", f"{root}/proc")
    mount("--bind", f"{disk}/boot_id", f"{root}/proc/sys/kernel/random/boot_id")
    mount("-t", "sysfs", "-o", "ro", "sysfs", f"{root}/sys")
    make_cgroups(f"{root}/sys/fs/cgroup")
    make_dev(f"{root}/dev")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/run")
    if order["home_readonly"]:
        mount("--bind", root + order["home"], root + order["home"])
        mount("-o", "remount,bind,ro", root + order["home"])


def make_cgroups(path: str) -> None:
    """The memory controller as a container sees it: its own limit at the top."""
    if os.path.isdir("/sys/fs/cgroup/memory"):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
        os.mkdir(f"{path}/memory")
        mount("-t", "cgroup", "-o", "memory", "cgroup", f"{path}/memory")
    elif os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        mount("-t", "cgroup2", "cgroup2", path)


def make_dev(dev: str) -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    for name, numbers in DEVICES.items():
        os.mknod(f"{dev}/{name}", 0o666 | stat.S_IFCHR, os.makedev(*numbers))
        os.chmod(f"{dev}/{name}", 0o666)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(f"{dev}/shm")
    os.mkdir(f"{dev}/pts")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{dev}/shm")
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620", "devpts", f"{dev}/pts")
    os.symlink("pts/ptmx", f"{dev}/ptmx")


def enter(root: str) -> None:
    """pivot_root(2) with the old root put below the new one and unmounted."""
    os.mkdir(f"{root}/run/old")
    subprocess.run(["pivot_root", root, f"{root}/run/old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/run/old"], check=True)
    os.rmdir("/run/old")


def start_sshd(port: int) -> None:
    os.makedirs("/run/sshd", mode=0o755)
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = ["/usr/sbin/sshd", "-D", "-f", "/etc/ssh/lab_sshd_config", "-E", "/var/log/sshd.log"]
    subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + SSHD_WAIT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise SystemExit("init: sshd did not start; see /var/log/sshd.log of the pod")


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as f:
        order = json.load(f)
    os.umask(0o022)
    make_root(order)
    libc = ctypes.CDLL(None, use_errno=True)
    name = order["hostname"].encode()
    if libc.sethostname(name, len(name)) != 0:
        raise SystemExit("init: sethostname failed")
    enter(order["root"])
    start_sshd(order["port"])
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([0, wake_r], [], [])
        if 0 in ready and not os.read(0, 64):
            os._exit(0)
        if wake_r in ready:
            os.read(wake_r, 4096)
            if order["reaps"]:
                reap()


main()
