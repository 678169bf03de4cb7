"""Proving to a host who we are: keys of files and of the agent, tried in order. Never a password, never a prompt.

The agent itself is never forwarded: it is asked here for signatures, and no channel of ours requests it.

    E-SSH-020 the named key file is missing   021 others may read it   022 it is no private key
    E-SSH-023 it is locked by a passphrase and the agent does not have it   024 every key was refused
    E-SSH-025 the host wants something else than a key, or something more
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH

from pods.transport.sshconfig import Hop
from workloads.contract.errors import LocalError, OrchError, RefusedError, UnreachableError

AGENT_S = 30.0
"""an agent may ask a person before it signs"""
AGENT_LIST_S = 5.0


class _Agent(AgentSSH):
    """The agent at a socket of our choice, each answer waited for within bounds."""

    def __init__(self, path: str) -> None:
        super().__init__()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(AGENT_LIST_S)
            sock.connect(path)
            self._connect(sock)  # type: ignore[attr-defined]
            sock.settimeout(AGENT_S)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


@dataclass
class Credentials:
    """The keys to offer to one host, in order, the files that are locked, and what is wrong with others."""

    keys: list[tuple[str, paramiko.PKey]] = field(default_factory=list)
    locked: list[Path] = field(default_factory=list)
    faults: list[OrchError] = field(default_factory=list)
    agent: _Agent | None = None

    def close(self) -> None:
        if self.agent is not None:
            self.agent.close()


def credentials(pod: str, hop: Hop, *, strict: bool) -> Credentials:
    """What there is for `hop`. `strict`: its one identity was asked for by name, so a fault in it is an error."""
    found = Credentials(agent=_agent(hop))
    try:
        held = {k.asbytes(): k for k in (found.agent.get_keys() if found.agent else ())}
        for path in hop.identities:
            _from_file(pod, path, held, found, strict=strict)
        unnamed = not hop.identities_only or (found.locked and not found.keys)
        mine = {k.asbytes() for _, k in found.keys}
        rest = [(f"agent: {k.comment or k.get_name()}", k) for blob, k in held.items() if blob not in mine and unnamed]
        # as ssh: keys that were asked for come first, those that are only customary last
        found.keys = [*found.keys, *rest] if hop.named else [*rest, *found.keys]
        if strict and not found.keys and found.locked:
            raise _locked(pod, found.locked)
    except OrchError:
        found.close()
        raise
    return found


def _agent(hop: Hop) -> _Agent | None:
    if hop.agent is None:
        return None
    with contextlib.suppress(OSError, paramiko.SSHException, ValueError):
        return _Agent(hop.agent)
    return None  # a variable that outlived its agent


def _from_file(pod: str, path: Path, held: Mapping[bytes, paramiko.PKey], found: Credentials, *, strict: bool) -> None:
    """Adds the key of `path`, or what the agent has of it when it is locked."""
    try:
        _check_mode(pod, path)
        key: paramiko.PKey = paramiko.PKey.from_path(path)
    except FileNotFoundError as e:
        if strict:
            raise LocalError(
                "E-SSH-020", f"the key file of pod {pod} does not exist", where=f"pods.{pod}.identity", value=path,
                fix=f"ls {shlex.quote(str(path.parent))}   (and correct `identity`)",
            ) from e  # fmt: skip
        return
    except LocalError as e:
        if strict:
            raise
        found.faults.append(e)
        return
    except TypeError:  # what the library says of a passphrase
        public = _public_blob(path)
        if public in held:
            found.keys.append((f"{path} (agent)", held[public]))
        else:
            found.locked.append(path)
        return
    except (OSError, ValueError, paramiko.SSHException) as e:
        if strict:
            raise LocalError(
                "E-SSH-022", f"the key file of pod {pod} is no private key that can be used", where=str(path), value=e,
                fix=f"ssh-keygen -y -f {shlex.quote(str(path))}   (says whether ssh can read it)",
            ) from e  # fmt: skip
        return
    found.keys.append((str(path), key))


def _check_mode(pod: str, path: Path) -> None:
    status = path.stat()
    if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
        raise LocalError(
            "E-SSH-021", f"the key file of pod {pod} may be read by others, so it is not used", where=str(path),
            value=f"mode {stat.S_IMODE(status.st_mode):04o}", expected="mode 0600",
            fix=f"chmod 600 {shlex.quote(str(path))}",
        )  # fmt: skip


def _public_blob(path: Path) -> bytes:
    with contextlib.suppress(OSError, ValueError, IndexError, paramiko.SSHException):
        words = path.with_name(path.name + ".pub").read_text().split()
        return paramiko.pkey.PublicBlob.from_string(" ".join(words[:2])).key_blob
    return b""


def authenticate(pod: str, hop: Hop, transport: paramiko.Transport, offered: Credentials) -> None:
    """Offer each key until one is taken. The host key has been checked before."""
    tried: list[str] = []
    for label, key in offered.keys:
        try:
            more = transport.auth_publickey(hop.user, key)
        except paramiko.BadAuthenticationType as e:
            raise _other(pod, hop, e.allowed_types) from e
        except (paramiko.SSHException, EOFError, OSError, ValueError, AttributeError) as e:
            if not transport.is_active() and not tried:
                raise UnreachableError(
                    "E-SSH-040", f"the connection to pod {pod} was lost while it asked for a key",
                    where=hop.address, value=e,
                ) from e  # fmt: skip
            tried.append(label)
            if not transport.is_active():
                break  # it has seen enough of our keys (MaxAuthTries)
            continue
        if more:
            raise _other(pod, hop, more)
        return
    raise _refused(pod, hop, tried, offered)


def _refused(pod: str, hop: Hop, tried: list[str], offered: Credentials) -> OrchError:
    if offered.locked:
        return _locked(pod, offered.locked, tried)
    if offered.faults:
        return offered.faults[0]
    login = f"{hop.user}@{hop.host}"
    if not tried:
        return RefusedError(
            "E-SSH-024", f"there is no key to show to pod {pod}", where=f"{hop.user}@{hop.address}",
            expected="a key in the agent, in ~/.ssh, or `identity: FILE` in pods.yaml",
            fix="ssh-keygen -t ed25519   (makes one), or ssh-add FILE",
        )  # fmt: skip
    many = f"   ({len(tried)} keys were tried: name the right one with `identity`)" if len(tried) > 3 else ""
    key = next((t for t in tried if t.startswith("/")), "~/.ssh/id_ed25519").removesuffix(" (agent)")
    return RefusedError(
        "E-SSH-024", f"pod {pod} lets {hop.user} in with none of our keys", where=f"{hop.user}@{hop.address}",
        value=", ".join(tried), fix=f"ssh-copy-id -i {shlex.quote(key)} -p {hop.port} {login}{many}",
    )  # fmt: skip


def _locked(pod: str, files: list[Path], tried: list[str] | None = None) -> RefusedError:
    return RefusedError(
        "E-SSH-023", f"the key for pod {pod} is locked by a passphrase and the agent does not have it",
        where=", ".join(str(p) for p in files), value=f"refused: {', '.join(tried)}" if tried else None,
        fix=f"ssh-add {shlex.quote(str(files[0]))}",
    )  # fmt: skip


def _other(pod: str, hop: Hop, wanted: list[str]) -> RefusedError:
    return RefusedError(
        "E-SSH-025", f"pod {pod} wants more than a key, or something else", where=f"{hop.user}@{hop.address}",
        value=", ".join(wanted), expected="publickey alone",
        fix="let it take a key alone (PubkeyAuthentication yes, AuthenticationMethods publickey in its sshd_config)",
    )  # fmt: skip
