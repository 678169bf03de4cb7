"""What a lab pod finds on its disk when it is first switched on: its own accounts, home, keys; not the host's.

A pod's root is an overlay: the host's system (`KEPT`) below, the pod's own disk above. What a pod writes goes to its
disk alone, so it can neither change this machine nor the checkout, and does not see the checkout at all: orch has to
bring its parts. The test run's virtual environment is bound in, read only, as a pod's image would have torch and Ray.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.oldpython import OLD_PYTHON

ROOT = Path(__file__).resolve().parents[2]
KEPT = re.compile(r"bin|sbin|lib[0-9a-z]*|usr|etc|opt|var")
MADE = ("dev", "proc", "sys", "tmp", "run", "mnt", "home", "workspace")
EMPTY = ("tmp", "run", "mnt", "home", "root", "srv", "workspace", "var/tmp", "var/log")
PROGRAM_DIRS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
PYTHON = re.compile(r"(python|pypy)[0-9.]*")
USER_ID = 1000
OLD_PYTHON_RUNS = "/opt/.lab/runs-old-python"


@dataclass(frozen=True)
class PodOptions:
    """How a pod is, where it is not plain: root, bash, Python and the venv there, everything writable."""

    user: str = "root"
    """any other name is a user of id 1000 without rights"""
    shell: str = "/bin/bash"
    home: str | None = None
    """of the user; default /root or /home/<user>"""
    bashrc: str = ""
    banner: str = ""
    hide: tuple[str, ...] = ()
    """programs that are not installed: tar, rsync, sudo, ..."""
    python: str = "any"
    """any: what the host has; none; old: a python3 that says it is 3.9"""
    venv: bool = True
    sftp: bool = True
    sshd: Mapping[str, str] = field(default_factory=dict)
    """more of sshd_config, such as MaxSessions: 1"""
    port: int = 22
    host_key_type: str = "ed25519"
    disk_mib: int = 4096
    memory_mib: int | None = None
    tmp_noexec: bool = False
    tmp_kept: bool = False
    """/tmp is on the disk and outlives a reboot"""
    home_readonly: bool = False
    """/workspace is writable all the same"""
    reaps: bool = True
    """False: the first process of the container leaves zombies, as `sleep infinity` does"""
    programs: Mapping[str, str] = field(default_factory=dict)
    """executables in /usr/local/bin, name to text; a fake nvidia-smi for one"""
    files: Mapping[str, str] = field(default_factory=dict)
    """absolute path to text"""

    @property
    def home_dir(self) -> str:
        return self.home or ("/root" if self.user == "root" else f"/home/{self.user}")

    @property
    def uid(self) -> int:
        return 0 if self.user == "root" else USER_ID


def binds(options: PodOptions) -> list[tuple[str, str]]:
    """What of the host is bound in read only, and where: the tests' interpreter where the pod would not see it."""
    if options.python == "none":
        return []
    found: list[tuple[str, str]] = []
    if options.python == "old":
        found.append((os.path.realpath(sys.executable), OLD_PYTHON_RUNS))
    for path in (Path(sys.base_prefix), Path(sys.prefix)):
        if path == Path(sys.prefix) != Path(sys.base_prefix) and not options.venv:
            continue
        same_disk = path.stat().st_dev == Path("/").stat().st_dev
        if not (same_disk and KEPT.fullmatch(path.parts[1]) and not path.is_relative_to(ROOT)):
            found.append((str(path), str(path)))
    return found


class Image:
    """Writes the upper layer of a pod, below `upper`, as the pod will see it at `/`."""

    def __init__(self, upper: Path, options: PodOptions) -> None:
        self.upper, self.options = upper, options

    def write(self, *, host_key: tuple[str, str], authorized: str, hosts: str) -> None:
        """`host_key`: private and public half; `authorized`: public keys that may log in."""
        self.upper.mkdir(mode=0o755)
        self._hide_host()
        self._accounts()
        self._home()
        self._text("etc/hosts", hosts)
        self._text("etc/resolv.conf", "")
        self._text("etc/ssh/lab_host_key", host_key[0], mode=0o600)
        self._text("etc/ssh/lab_host_key.pub", host_key[1])
        self._text("etc/ssh/lab_authorized_keys", authorized)
        self._text("etc/ssh/lab_banner", self.options.banner)
        self._text("etc/ssh/lab_sshd_config", self._sshd_config())
        for name in self.options.hide:
            self._without_program(name)
        self._python()
        for name, text in self.options.programs.items():
            self._text(f"usr/local/bin/{name}", text, mode=0o755)
        for path, text in self.options.files.items():
            self._text(path.lstrip("/"), text)
        for source, path in binds(self.options):
            if os.path.isdir(source):
                self._folder(path.lstrip("/"))
                for parent in list(Path(path).parents)[:-1] if self.options.uid else []:
                    way = self.upper / parent.relative_to("/")
                    way.chmod(way.stat().st_mode | 0o011)

    def _hide_host(self) -> None:
        for entry in os.scandir("/"):
            if entry.is_symlink() or KEPT.fullmatch(entry.name):
                continue
            if entry.is_dir():
                self._opaque(entry.name)
            else:
                self._whiteout(entry.name)
        for name in MADE:
            self._folder(name)
        for name in EMPTY:
            self._opaque(name)
        for name in ("tmp", "var/tmp", "workspace"):
            (self.upper / name).chmod(0o1777)
        (self.upper / "root").chmod(0o700)
        self._opaque(str(ROOT).lstrip("/"))

    def _accounts(self) -> None:
        options = self.options
        kept = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] != options.user]
        kept = [line for line in kept if options.uid == 0 or line.split(":")[2] != str(USER_ID)]
        mine = f"{options.user}:x:{options.uid}:{options.uid}::{options.home_dir}:{options.shell}"
        self._text("etc/passwd", "\n".join([mine, *kept]) + "\n")
        names = [line.split(":")[0] for line in kept]
        self._text("etc/shadow", "".join(f"{n}:*:19000:0:99999:7:::\n" for n in (options.user, *names)), mode=0o600)
        if options.uid:
            groups = Path("/etc/group").read_text().splitlines()
            groups = [g for g in groups if g.split(":")[2] != str(USER_ID)]
            self._text("etc/group", "\n".join([f"{options.user}:x:{USER_ID}:", *groups]) + "\n")

    def _home(self) -> None:
        options = self.options
        home = self._folder(options.home_dir.lstrip("/"))
        home.chmod(0o700)
        if options.bashrc:
            (home / ".bashrc").write_text(options.bashrc)
        for path in (home, *home.iterdir()):
            os.chown(path, options.uid, options.uid)

    def _sshd_config(self) -> str:
        lines = {
            "Port": str(self.options.port),
            "HostKey": "/etc/ssh/lab_host_key",
            "AuthorizedKeysFile": "/etc/ssh/lab_authorized_keys",
            "PidFile": "/run/sshd.pid",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "UseDNS": "no",
            "LogLevel": "VERBOSE",
            "ClientAliveInterval": "5",
            "ClientAliveCountMax": "3",
        }
        if self.options.sftp:
            lines["Subsystem"] = "sftp internal-sftp"
        if self.options.banner:
            lines["Banner"] = "/etc/ssh/lab_banner"
        return "".join(f"{k} {v}\n" for k, v in {**lines, **self.options.sshd}.items())

    def _python(self) -> None:
        if self.options.python == "any":
            return
        for folder in PROGRAM_DIRS:
            for name in os.listdir(f"/{folder}"):
                if PYTHON.fullmatch(name):
                    self._whiteout(f"{folder}/{name}")
        for found in Path("/opt").glob("*/bin/python*"):
            self._opaque(str(found.parents[1]).lstrip("/"))
        if self.options.python == "old":
            self._text(OLD_PYTHON_RUNS.lstrip("/"), "", mode=0o755)  # the host's interpreter is bound over it
            self._text("usr/local/bin/python3", OLD_PYTHON.format(python=OLD_PYTHON_RUNS), mode=0o755)

    def _without_program(self, name: str) -> None:
        for folder in PROGRAM_DIRS:
            if os.path.lexists(f"/{folder}/{name}"):
                self._whiteout(f"{folder}/{name}")

    def _real(self, inside: str) -> Path:
        """Below `upper`, with the host's links (/bin is usr/bin) followed."""
        parent = os.path.realpath(os.path.join("/", os.path.dirname(inside)))
        return self.upper / parent.lstrip("/") / os.path.basename(inside)

    def _folder(self, inside: str) -> Path:
        """Make a folder; where the host has one of the name, with its mode and owner, since the layer above counts."""
        made = self.upper
        for part in Path(inside).parts:
            made = made / part
            if made.is_dir():
                continue
            made.mkdir(mode=0o755)
            below = Path("/") / made.relative_to(self.upper)
            if below.is_dir():
                found = below.stat()
                made.chmod(stat.S_IMODE(found.st_mode))
                os.chown(made, found.st_uid, found.st_gid)
        return made

    def _opaque(self, inside: str) -> None:
        os.setxattr(self._folder(inside), "trusted.overlay.opaque", b"y")

    def _whiteout(self, inside: str) -> None:
        path = self._real(inside)
        if not os.path.lexists(path):
            self._folder(str(path.parent.relative_to(self.upper)))
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _text(self, inside: str, text: str, *, mode: int = 0o644) -> None:
        path = self._real(inside)
        self._folder(str(path.parent.relative_to(self.upper)))
        if path.is_char_device():
            path.unlink()
        path.write_text(text)
        path.chmod(mode)
