"""What ~/.ssh/config makes of a target: the chain of hosts to go through, and how each is reached and asked.

Understood: HostName, User, Port, IdentityFile, IdentitiesOnly, IdentityAgent, ProxyJump (chains), ProxyCommand,
HostKeyAlias, UserKnownHostsFile, GlobalKnownHostsFile, Host, Match and Include (read where it stands; a Host line in
an included file counts also when the block that includes it does not match). Never obeyed: ForwardAgent,
StrictHostKeyChecking, passwords, port forwards.

    E-SSH-026 the configuration cannot be read   E-SSH-027 its jumps go round in a circle
"""

from __future__ import annotations

import getpass
import glob
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pods.transport.target import DEFAULT_PORT, Target, host_port, parse_ssh
from workloads.contract.errors import LocalError, SpecError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
MAX_JUMPS = 8
MAX_INCLUDES = 16
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Hop:
    """One host on the way; the last is the pod."""

    host: str
    port: int
    user: str
    identities: tuple[Path, ...] = ()
    """key files to try, in order; `named` ones were asked for, the others are those that ssh tries by default"""
    named: bool = False
    identities_only: bool = False
    agent: str | None = None
    """the agent's socket"""
    proxy_command: str | None = None
    key_alias: str | None = None
    known_hosts: tuple[Path, ...] = ()

    @property
    def address(self) -> str:
        return host_port(self.host, self.port)


def resolve(ssh: str, *, identity: str | None = None, config_file: Path | None = None) -> list[Hop]:
    """The hops to `ssh` in order, the pod itself last. `identity` is for the pod alone."""
    text = _text(config_file)
    chain = _chain(parse_ssh(ssh), text, 0)
    if identity is not None:
        chain[-1] = replace(chain[-1], identities=(Path(identity).expanduser(),), named=True, identities_only=True)
    return chain


def _chain(target: Target, text: str, depth: int) -> list[Hop]:
    if depth > MAX_JUMPS:
        raise LocalError("E-SSH-027", "ProxyJump goes round in a circle", where="~/.ssh/config", value=target)
    options = _lookup(target, text)
    hop = _hop(target, options)
    jumps = [j.strip().removeprefix("ssh://") for j in str(options.get("proxyjump") or "").split(",") if j.strip()]
    if jumps and jumps != ["none"]:
        targets = [parse_ssh(j, where="ProxyJump in ~/.ssh/config") for j in jumps]
        if any(_hop(t, _lookup(t, text)).address == hop.address for t in targets):
            return [hop]  # `Host *` with ProxyJump also matches the host jumped through
        first = _chain(targets[0], text, depth + 1)  # only the first may have a way of its own, as ssh does it
        rest = [_hop(t, _lookup(t, text)) for t in targets[1:]]
        return [*first, *rest, hop]
    command = options.get("proxycommand")
    return [replace(hop, proxy_command=str(command))] if command and str(command).lower() != "none" else [hop]


def _lookup(target: Target, text: str) -> Mapping[str, Any]:
    from paramiko import SSHConfig
    from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize

    said = (f"Port {target.port}\n" if target.port is not None else "") + (
        f"User {target.user}\n" if target.user else ""
    )
    try:
        return SSHConfig.from_text(said + text).lookup(
            target.host
        )  # the first value of an option is the one that counts
    except (ConfigParseError, CouldNotCanonicalize, ValueError, KeyError, ImportError) as e:
        raise LocalError(
            "E-SSH-026", "the configuration of ssh cannot be understood", where="~/.ssh/config", value=e,
            fix=f"ssh -G {target.host}   (shows what ssh itself makes of it)",
        )  from e  # fmt: skip


def _hop(target: Target, options: Mapping[str, Any]) -> Hop:
    host = str(options.get("hostname") or target.host)
    port = str(options.get("port") or DEFAULT_PORT)
    if not port.isdigit() or not 1 <= int(port) <= 65535:
        raise SpecError("E-SSH-002", "Port is a whole number from 1 to 65535", where="~/.ssh/config", value=port)
    home = Path.home()
    named = [Path(p).expanduser() for p in options.get("identityfile", []) if str(p).lower() != "none"]
    files = named or [home / ".ssh" / name for name in _DEFAULT_KEYS]
    return Hop(
        host=host,
        port=int(port),
        user=str(options.get("user") or getpass.getuser()),
        identities=tuple(files),
        named=bool(named),
        identities_only=str(options.get("identitiesonly", "no")).lower() == "yes",
        agent=_agent(options.get("identityagent")),
        key_alias=options.get("hostkeyalias"),
        known_hosts=tuple(
            _files(options.get("userknownhostsfile"), home / ".ssh" / "known_hosts", home / ".ssh" / "known_hosts2")
            + _files(options.get("globalknownhostsfile"), Path("/etc/ssh/ssh_known_hosts"))
        ),
    )


def _agent(option: str | None) -> str | None:
    if option is None or option == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if option.lower() == "none":
        return None
    return os.environ.get(option[1:]) if option.startswith("$") else str(Path(option.strip('"')).expanduser())


def _files(option: str | None, *defaults: Path) -> list[Path]:
    if option is None:
        return list(defaults)
    return [Path(p).expanduser() for p in shlex.split(option) if p.lower() != "none"]


def _text(config_file: Path | None) -> str:
    """The user's configuration, then the machine's: included files put where they are named."""
    user = Path.home() / ".ssh" / "config"
    parts = [_read(config_file, 0)] if config_file is not None else [_read(p, 0) for p in (user, SYSTEM_CONFIG)]
    return "\nHost *\n".join(parts)


def _read(path: Path, depth: int) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise LocalError(
            "E-SSH-026", f"the configuration of ssh cannot be read: {e.strerror}", where=str(path),
            fix=f"ls -l {path}",
        ) from e  # fmt: skip
    return "\n".join(_with_includes(lines, path, depth))


def _with_includes(lines: list[str], path: Path, depth: int) -> Iterator[str]:
    block = "Host *"
    for line in lines:
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() in ("host", "match"):
            block = line
        if word.lower() != "include":
            yield line
        elif depth < MAX_INCLUDES:
            base = path.parent if path.is_relative_to("/etc") else Path.home() / ".ssh"
            for pattern in shlex.split(rest):
                for name in sorted(glob.glob(str(base / Path(pattern).expanduser()))):  # noqa: PTH207  may be absolute
                    yield _read(Path(name), depth + 1)
            yield block


def aliases(config_file: Path | None = None) -> list[str]:
    """The hosts that the user's configuration names without a pattern, in its order. For `orch pods import`."""
    found: dict[str, None] = {}
    for line in _read(config_file or Path.home() / ".ssh" / "config", 0).splitlines():
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() == "host":
            found |= dict.fromkeys(n for n in shlex.split(rest, comments=True) if not set(n) & set("*?!"))
    return list(found)
