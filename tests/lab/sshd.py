"""A real sshd on loopback: own host key, own client key, own log; everything it started is gone when it is closed.

    with Sshd(tmp_path / "pod") as sshd:
        spec = PodSpec(ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity))

It runs as the one who runs the tests, with another home directory. As root it can also have another login shell (a
passwd file of its own in a mount namespace of its own, made when it starts: what is mounted later it does not see);
without root `home` is given by SetEnv and `shell` raises `NotHere`. Nothing but loopback is listened on.
`LAB_SSHD=<token>` is in the environment of every command, so that `close` finds also what is in a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 10.0
STOP_S = 5.0
MARK = "LAB_SSHD"


class NotHere(Exception):
    """What was asked of this sshd is not to be had here (root on Linux, a shell); the text says what. Skip with it."""


def why_no_sshd() -> str | None:
    """None where a real sshd can be started; else the reason for a skip."""
    missing = [p for p in ("sshd", "ssh-keygen") if find(p) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "", comment: str = "lab") -> Path:
    """A new key pair at `path` and `path`.pub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = {"rsa": ["-b", "2048"], "ecdsa": ["-b", "256"]}.get(kind, [])
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", passphrase, "-C", comment, "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=120)
    return path


def public_key(path: Path) -> str:
    """`type base64` of the key pair at `path`, without its comment."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
        s.bind((address, 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Sshd:
    """`folder` holds its files. Options are those of sshd; `extra` are more lines of its configuration."""

    folder: Path
    address: str = "127.0.0.1"
    port: int = 0
    """0: a free one"""
    key_types: Sequence[str] = ("ed25519",)
    """kinds of host keys it has; `host_key` is the first"""
    identity: Path | None = None
    """the client's key that is let in; default: a new one"""
    max_sessions: int = 10
    max_startups: str = "10:30:100"
    banner: str = ""
    home: Path | None = None
    """default: a new one in `folder`. Never that of the person: its login files would run, and be killed half way"""
    shell: str | None = None
    sftp: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """more of it for every command"""
    extra: Sequence[str] = ()
    pid: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.home is None:
            self.home = self.folder / "home"
            self.home.mkdir(exist_ok=True, mode=0o700)
        self.user = pwd.getpwuid(os.getuid()).pw_name
        for kind in self.key_types:
            if not self._key_file(kind).exists():
                make_key(self._key_file(kind), kind, comment="host")
        if self.identity is None:
            self.identity = self.folder / "id_ed25519"
            if not self.identity.exists():
                make_key(self.identity)
        self.allow(public_key(self.identity))

    def _key_file(self, kind: str) -> Path:
        return self.folder / f"host_{kind}"

    @property
    def log(self) -> Path:
        return self.folder / "sshd.log"

    @property
    def host_key(self) -> str:
        return self.host_keys[0]

    @property
    def host_keys(self) -> list[str]:
        return [public_key(self._key_file(kind)) for kind in self.key_types]

    @property
    def target(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user}@{host}:{self.port}"

    def allow(self, *keys: str) -> None:
        """The public keys that are let in from now on."""
        (self.folder / "authorized_keys").write_text("".join(k + "\n" for k in keys))

    def _config(self) -> str:
        (self.folder / "banner").write_text(self.banner)
        lines = [
            f"ListenAddress {'[' + self.address + ']' if ':' in self.address else self.address}:{self.port}",
            *(f"HostKey {_quoted(self._key_file(k))}" for k in self.key_types),
            f"AuthorizedKeysFile {_quoted(self.folder / 'authorized_keys')}",
            f"PidFile {_quoted(self.folder / 'sshd.pid')}",
            *("UsePAM no", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no"),
            *("PermitRootLogin yes", "UseDNS no", "LogLevel DEBUG1", "PrintMotd no"),
            f"MaxSessions {self.max_sessions}",
            f"MaxStartups {self.max_startups}",
            *([f"Banner {_quoted(self.folder / 'banner')}"] if self.banner else []),
            *(["Subsystem sftp internal-sftp"] if self.sftp else []),
            "SetEnv " + " ".join(f'"{k}={v}"' for k, v in self._env().items()),  # of several such lines one counts
            *self.extra,
        ]
        return "\n".join(lines) + "\n"

    def _env(self) -> dict[str, str]:
        return {MARK: self.token, **({"HOME": str(self.home)} if os.getuid() else {}), **self.env}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start it, on the same port as before if it ran before; returns when it listens."""
        if (reason := why_no_sshd()) is not None:
            raise RuntimeError(reason)
        asked = self.port
        for left in (2, 1, 0):
            self.port = asked or free_port(self.address)
            if self._started():
                return
            if asked or not left:
                raise RuntimeError(f"sshd did not start:\n{self.log.read_text()}")

    def _started(self) -> bool:
        config = self.folder / "sshd_config"
        config.write_text(self._config())
        self.log.write_text("")
        program = find("sshd") or "sshd"
        argv = [program, "-D", "-f", str(config), "-E", str(self.log)]
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        if os.getuid() == 0:
            argv = self._in_own_passwd(argv)
        elif self.shell:
            raise NotHere("another login shell needs root")
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        self.pid = self._process.pid
        deadline = time.monotonic() + START_S
        while "Server listening on" not in self.log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                return False
            time.sleep(0.01)
        return True

    def _in_own_passwd(self, argv: list[str]) -> list[str]:
        """`argv` where /etc/passwd gives the user our home and shell; the pid stays that of the process started."""
        entry = pwd.getpwuid(os.getuid())
        if self.shell and not os.access(self.shell, os.X_OK):
            raise NotHere(f"{self.shell} is not installed")
        home, shell = str(self.home), self.shell or entry.pw_shell
        lines = [x for x in Path("/etc/passwd").read_text().splitlines() if not x.startswith(f"{self.user}:")]
        mine = ":".join((self.user, "x", str(entry.pw_uid), str(entry.pw_gid), "lab", home, shell))
        passwd = self.folder / "passwd"
        passwd.write_text("\n".join([mine, *lines]) + "\n")
        script = f"mount --bind {shlex.quote(str(passwd))} /etc/passwd && exec {shlex.join(argv)}"
        return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script]

    def connections(self) -> list[int]:
        """The processes of sshd that hold a connection each (with what they forked before it had a command)."""
        parents = {pid: stat_ppid(pid) for pid in pids()}
        found, level = [], {self.pid}
        while level := {p for p, parent in parents.items() if parent in level and _is_sshd(p)}:
            found += sorted(level)
        return found

    def drop_connections(self) -> None:
        """Cut every connection; commands that run there stay alive."""
        for pid in self.connections():
            _kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Inside, sshd and its connections are stopped: the kernel still accepts, nobody answers."""
        stopped = [self.pid, *self.connections()]
        for pid in stopped:
            _kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                _kill(pid, signal.SIGCONT)

    def commands(self) -> list[int]:
        """Every process that was started through it and lives, also in sessions of their own."""
        mark = f"{MARK}={self.token}".encode()
        found = []
        for pid in pids():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def close(self) -> None:
        """End sshd, its connections and every command started through it. Idempotent; `start` starts it again."""
        process, self._process = self._process, None
        if process is None:
            return
        doomed = self.connections()
        process.kill()
        process.wait(timeout=STOP_S)
        for pid in doomed:
            _kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_S
        while (left := self.commands()) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _quoted(path: Path) -> str:
    return f'"{path}"'


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def pids() -> list[int]:
    return [int(x) for x in os.listdir("/proc") if x.isdigit()]


def stat_ppid(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def _is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:
        return False
