"""`[user@]host[:port]`, `user@[::1]:2222` or an alias of ~/.ssh/config: the text a person names a machine by.

Only the text is read here; what an alias stands for is `pods.transport.sshconfig`'s. Light: used by every command that
reads the inventory.

    E-SSH-001 no host   002 port   003 scheme   004 IPv6 without brackets   005 not one word, or a strange character
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workloads.contract.errors import SpecError

DEFAULT_PORT = 22
FORM = "[user@]host[:port], [user@][IPv6]:port or an alias of ~/.ssh/config"
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?\Z")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\Z")
_USER = re.compile(r"[A-Za-z0-9_.][^\s:\x00-\x1f\x7f'\"`$\\;&|<>(){}!]*\Z")


@dataclass(frozen=True)
class Target:
    """What was written; None where it says nothing (then ssh's configuration does, or the default)."""

    user: str | None
    host: str
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port is not None else "")


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_ssh(text: str, *, where: str | None = None) -> Target:
    """`text` as a target; SpecError with the corrected form where there is one."""
    given = text.strip()
    if given.startswith("ssh://"):
        raise _wrong("E-SSH-003", "an ssh target is written without ssh://", text, where, given[6:].rstrip("/"))
    if "://" in given:
        raise _wrong("E-SSH-003", "an ssh target is no URL", text, where, given.split("://", 1)[1].split("/")[0])
    if given.startswith("ssh ") or " " in given:
        raise _wrong("E-SSH-005", "an ssh target is one word", text, where, _of_command(given))
    user, at, rest = given.rpartition("@")
    if at and not user:
        raise _wrong("E-SSH-005", "there is no user before the @", text, where, rest)
    if user and not _USER.match(user):
        raise _wrong("E-SSH-005", "this is no user name", text, where, None)
    host, port = _split(rest, user, text, where)
    if not host:
        raise _wrong("E-SSH-001", "an ssh target needs a host", text, where, None)
    if not (_ADDRESS if ":" in host else _HOST).match(host):
        raise _wrong("E-SSH-005", "this is no host name or address", text, where, None)
    return Target(user or None, host, None if port is None else _port(port, user, host, text, where))


def _split(rest: str, user: str, text: str, where: str | None) -> tuple[str, str | None]:
    """Host and what follows its colon."""
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise _wrong(
                "E-SSH-004", "an IPv6 address is closed by ] and followed by :port or nothing", text, where, None
            )
        return host, after[1:] if after else None
    if rest.count(":") > 1:
        address, _, last = rest.rpartition(":")
        as_port = last.isdigit() and len(last) > 2 and "::" in rest and not address.endswith(":")
        better = f"[{address}]:{last}" if as_port else f"[{rest}]"
        raise _wrong("E-SSH-004", "an IPv6 address needs brackets", text, where, f"{user}@{better}" if user else better)
    host, colon, port = rest.partition(":")
    return host, port if colon else None


def _port(port: str, user: str, host: str, text: str, where: str | None) -> int:
    if port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535 and len(port) <= 5:
        return int(port)
    raise SpecError(
        "E-SSH-002", "the port of an ssh target is a whole number from 1 to 65535", where=where, value=text,
        expected="1 to 65535", fix=f"write {Target(user or None, host, DEFAULT_PORT)}   (with the port that it has)",
    )  # fmt: skip


def _of_command(given: str) -> str | None:
    """The target of a pasted `ssh -p 40022 root@1.2.3.4 -i key`."""
    words = given.split()
    port = next((words[i + 1] for i, w in enumerate(words[:-1]) if w == "-p"), None)
    taken = {i + 1 for i, w in enumerate(words) if w in ("-p", "-i", "-l", "-o", "-L", "-J", "-F")}
    plain = [w for i, w in enumerate(words) if i not in taken and not w.startswith("-") and (i or w != "ssh")]
    if len(plain) != 1 or (port is not None and not port.isdigit()):
        return None
    return f"{plain[0]}:{port}" if port else plain[0]


def _wrong(code: str, what: str, text: str, where: str | None, better: str | None) -> SpecError:
    return SpecError(
        code, what, where=where, value=text, expected=FORM, fix=f"write {better}" if better else f"write it as {FORM}"
    )
