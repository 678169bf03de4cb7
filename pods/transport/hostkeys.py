"""Host keys as text: what one is, its fingerprint as OpenSSH shows it, and what ~/.ssh/known_hosts says of a host.

A pod's key is pinned in the inventory and is the only one accepted. Hosts on the way there (ProxyJump) are checked
against `jump_keys` or known_hosts. Nothing is ever added or accepted on its own. Standard library only.

    E-SSH-010 the text is no host key   011 not pinned   012 another key than the pinned one
    E-SSH-013 a host on the way is not known   014 it has another key   015 its key is revoked in known_hosts
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.contract.errors import RefusedError, SpecError

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""kind of key -> signature algorithms it is accepted with, best first"""
MAX_FILE_BYTES = 8 << 20


@dataclass(frozen=True)
class HostKey:
    """The key that a host showed. `known`: it is the pinned one, or known_hosts has it."""

    host: str
    """`host:port` as it was asked"""
    key: str
    """`ssh-ed25519 AAAA...`"""
    known: bool = False

    @property
    def kind(self) -> str:
        return self.key.split(" ", 1)[0]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


def parse_key(text: str, *, where: str | None = None) -> str:
    """`kind base64` of a public key line (a comment may follow); SpecError when it is none."""
    words = text.split()
    if len(words) >= 2 and words[0] in ALGORITHMS:
        try:
            blob = base64.b64decode(words[1], validate=True)
        except binascii.Error:
            blob = b""
        size = int.from_bytes(blob[:4], "big")
        if len(blob) > 4 + size and blob[4 : 4 + size] == words[0].encode():
            return f"{words[0]} {base64.b64encode(blob).decode()}"
    raise SpecError(
        "E-SSH-010", "this is no SSH host key", where=where, value=text,
        expected="one line like `ssh-ed25519 AAAA...` (" + ", ".join(ALGORITHMS) + ")",
        fix="orch pods repin NAME   (asks the pod for its key)",
    )  # fmt: skip


def fingerprint(key: str) -> str:
    """`SHA256:...` as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def algorithms(keys: Iterable[str]) -> list[str]:
    """What may be negotiated so that the server shows one of `keys`."""
    kinds = {k.split(" ", 1)[0] for k in keys}
    return [a for kind, names in ALGORITHMS.items() if kind in kinds for a in names]


@dataclass(frozen=True)
class Known:
    """What known_hosts says of one host."""

    keys: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()


def known_keys(files: Sequence[Path], host: str, port: int, alias: str | None = None) -> Known:
    """The keys of `host` in `files` (hashed names and patterns too). What cannot be read or understood is passed by."""
    name = (alias or host if alias or port == 22 else f"[{host}]:{port}").lower()
    keys: list[str] = []
    revoked: list[str] = []
    for file in files:
        try:
            with file.open("rb") as f:
                text = f.read(MAX_FILE_BYTES).decode(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#") or marker == "@cert-authority" or not _names(words[0], name):
                continue
            try:
                key = parse_key(" ".join(words[1:3]))
            except SpecError:
                continue
            (revoked if marker == "@revoked" else keys).append(key)
    return Known(tuple(keys), tuple(revoked))


def _names(field: str, name: str) -> bool:
    """Whether the first field of a known_hosts line is about `name`."""
    if field.startswith("|1|"):
        try:
            _, _, salt, digest = field.split("|")
            mac = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(mac, base64.b64decode(digest))
        except (ValueError, binascii.Error):
            return False
    found = False
    for pattern in field.lower().split(","):
        wanted = not pattern.startswith("!")
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if not wanted:
                return False
            found = True
    return found


def _looked_up(address: str) -> str:
    """`host:port` as known_hosts names it, for a shell."""
    host, port = address.rsplit(":", 1)
    bare = host.strip("[]")
    return bare if port == "22" else shlex.quote(f"[{bare}]:{port}")


def _named(*keys: str) -> str:
    return ", ".join(f"{fingerprint(key)} ({key.split()[0]})" for key in keys)


def not_pinned(pod: str, ssh: str | None) -> RefusedError:
    return RefusedError(
        "E-SSH-011", f"the host key of pod {pod} is not pinned, so it cannot be told from another machine",
        where=f"pods.{pod}", fix=f"orch pods repin {pod}   (shows its fingerprint; asked of {ssh})",
    )  # fmt: skip


def changed(pod: str, host: str, pinned: Sequence[str], seen: str) -> RefusedError:
    return RefusedError(
        "E-SSH-012", f"pod {pod} shows another host key than the pinned one", where=host,
        value=_named(seen),
        expected=_named(*pinned),
        fix=f"orch pods repin {pod}   (do not go on unless you rebuilt the pod: it may be another machine)",
    )  # fmt: skip


def unknown_jump(pod: str, host: str, seen: str) -> RefusedError:
    return RefusedError(
        "E-SSH-013", f"the host key of {host}, on the way to pod {pod}, is not known", where=host,
        value=_named(seen), expected="a key in ~/.ssh/known_hosts or in jump_keys",
        fix=f"orch pods repin {pod}   (shows the fingerprint of each host on the way), or ssh there once",
    )  # fmt: skip


def changed_jump(pod: str, host: str, known: Sequence[str], seen: str) -> RefusedError:
    return RefusedError(
        "E-SSH-014", f"{host}, on the way to pod {pod}, shows another host key than the known one", where=host,
        value=_named(seen),
        expected=_named(*known),
        fix=f"orch pods repin {pod}   (do not go on unless that host was rebuilt: it may be another machine)",
    )  # fmt: skip


def revoked_key(pod: str, host: str, seen: str) -> RefusedError:
    return RefusedError(
        "E-SSH-015", f"the host key of {host} is marked @revoked in known_hosts (pod {pod})", where=host,
        value=fingerprint(seen),
        fix=f"ssh-keygen -F {_looked_up(host)}   (shows the line; do not go on: somebody else may have that key)",
    )  # fmt: skip
