"""The connection to a pod: its hops one after another, each host key judged, with another try where one can help.

A connection is a chain of `fabric.Connection`s, each through the one before. `open_link` makes it, `Link.close` ends
all of it; it belongs to one `SshTransport`. `fetch_host_keys` goes the same way to see the keys before a pod is pinned.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import fabric
import paramiko

from pods.transport import hostkeys
from pods.transport.hopclient import Dropped, HopClient, Judge, Way, unreachable
from pods.transport.hostkeys import HostKey
from pods.transport.identity import credentials
from pods.transport.sshconfig import Hop, resolve
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import UnreachableError

MAX_TRIES = 6
"""a connection that is dropped at once is tried again this often, within three times the timeout"""
FIRST_PAUSE_S = 0.2
SHUT_S = 2.0


@dataclass
class Link:
    """A chain of connections that is up; `transport` is that of the pod."""

    connections: list[fabric.Connection] = field(default_factory=list)

    @property
    def transport(self) -> paramiko.Transport:
        found = self.connections[-1].client.get_transport()
        assert isinstance(found, paramiko.Transport)
        return found

    @property
    def alive(self) -> bool:
        return bool(self.connections) and all(
            t is not None and t.is_active() for t in (c.client.get_transport() for c in self.connections)
        )

    def close(self) -> None:
        for connection in reversed(self.connections):
            shut(connection.client.close)


def open_link(
    name: str, spec: PodSpec, config_file: Path | None, timeout_s: float, reach_s: float | None = None
) -> Link:
    """The connection to the pod, authenticated at every hop. RefusedError, LocalError or UnreachableError."""
    assert spec.ssh is not None
    hops = resolve(spec.ssh, identity=spec.identity, config_file=config_file)
    if spec.host_key is None:
        raise hostkeys.not_pinned(name, spec.ssh)
    pinned = hostkeys.parse_key(spec.host_key, where=f"pods.{name}.host_key")
    ways = [_jump(name, spec, hop, i, timeout_s, None) for i, hop in enumerate(hops[:-1])]
    ways.append(Way(name, hops[-1], (pinned,), _same(name, (pinned,), hostkeys.changed), timeout_s))
    ways = [replace(way, reach_s=min(reach_s or timeout_s, timeout_s)) for way in ways]
    return _tried(lambda: _through(ways, strict=spec.identity is not None), timeout_s)


def fetch_host_keys(
    name: str,
    spec: PodSpec,
    *,
    config_file: Path | None = None,
    timeout_s: float = 5.0,
    confirm: Callable[[HostKey], bool] | None = None,
) -> list[HostKey]:
    """The key of each hop in order, the pod's last. Nothing is shown to the pod, and to a hop on the way only after its
    key was found pinned or in known_hosts, or `confirm` said yes to it; else RefusedError (E-SSH-013).

    `known` of the pod's own key says whether known_hosts has it; one that is marked @revoked there is refused
    (E-SSH-015), however it was confirmed.
    """
    assert spec.ssh is not None
    hops = resolve(spec.ssh, identity=spec.identity, config_file=config_file)
    ways = [_jump(name, spec, hop, i, timeout_s, confirm) for i, hop in enumerate(hops[:-1])]
    ways.append(Way(name, hops[-1], (), lambda hop, key: None, timeout_s, login=False))
    link = _tried(lambda: _through(ways, strict=False), timeout_s)
    try:
        seen = [c.client.seen for c in link.connections]
    finally:
        link.close()
    last = hops[-1]
    known = hostkeys.known_keys(last.known_hosts, last.host, last.port, last.key_alias)
    if seen[-1].key in known.revoked:
        raise hostkeys.revoked_key(name, last.address, seen[-1].key)
    seen[-1] = HostKey(seen[-1].host, seen[-1].key, seen[-1].key in known.keys)
    return seen


def _jump(
    name: str, spec: PodSpec, hop: Hop, index: int, timeout_s: float, confirm: Callable[[HostKey], bool] | None
) -> Way:
    """A hop on the way: pinned by `jump_keys`, else as known_hosts says, else as `confirm` says."""
    if index < len(spec.jump_keys):
        pinned = (hostkeys.parse_key(spec.jump_keys[index], where=f"pods.{name}.jump_keys[{index}]"),)
        return Way(name, hop, pinned, _same(name, pinned, hostkeys.changed_jump), timeout_s)
    known = hostkeys.known_keys(hop.known_hosts, hop.host, hop.port, hop.key_alias)

    def judge(hop: Hop, key: str) -> None:
        if key in known.revoked:
            raise hostkeys.revoked_key(name, hop.address, key)
        if known.keys and key not in known.keys:
            raise hostkeys.changed_jump(name, hop.address, known.keys, key)
        if not known.keys and not (confirm is not None and confirm(HostKey(hop.address, key))):
            raise hostkeys.unknown_jump(name, hop.address, key)

    return Way(name, hop, known.keys, judge, timeout_s)


def _same(name: str, accepted: tuple[str, ...], error: Callable[[str, str, tuple[str, ...], str], Exception]) -> Judge:
    def judge(hop: Hop, key: str) -> None:
        if key not in accepted:
            raise error(name, hop.address, accepted, key)

    return judge


def _through(ways: list[Way], *, strict: bool) -> Link:
    """One try. What came up is ended again when a later hop fails."""
    link = Link()
    try:
        for i, way in enumerate(ways):
            last = i == len(ways) - 1
            offered = credentials(way.pod, way.hop, strict=strict and last) if way.login else None
            before = link.connections[-1] if link.connections else None
            connection = fabric.Connection(
                way.hop.host, user=way.hop.user, port=way.hop.port, gateway=before, forward_agent=False,
                config=fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True),
            )  # fmt: skip
            connection.client = HopClient(way, offered)
            link.connections.append(connection)
            _open(connection, way, ways[i - 1] if before is not None else None)
    except BaseException:
        link.close()
        raise
    return link


def _open(connection: fabric.Connection, way: Way, before: Way | None) -> None:
    try:
        connection.open()
    except (paramiko.SSHException, EOFError, OSError) as e:
        if before is None:
            raise unreachable(way.pod, way.hop, "E-SSH-035", "ended the connection", e, Dropped) from e
        what = f"cannot be reached from {before.hop.address}"
        raise unreachable(way.pod, way.hop, "E-SSH-039", what, e) from e


def _tried(attempt: Callable[[], Link], timeout_s: float) -> Link:
    """`attempt` until it is no longer dropped at once: sshd lets only so many begin at the same time (MaxStartups)."""
    deadline = time.monotonic() + 3 * timeout_s
    pause_s = FIRST_PAUSE_S
    for left in reversed(range(MAX_TRIES)):
        try:
            return attempt()
        except Dropped:
            wait_s = random.uniform(0.5, 1.5) * pause_s
            if not left or time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)
            pause_s *= 2
    raise AssertionError("the last try returns or raises")


def lost(pod: str, where: str, error: object = None) -> UnreachableError:
    with contextlib.suppress(Exception):
        error = str(error) if error is not None and str(error) else None
    return UnreachableError(
        "E-SSH-040", f"the connection to pod {pod} was lost", where=where, value=error,
        fix="the same command again (nothing on the pod was stopped by this)",
    )  # fmt: skip


def shut(close: Callable[[], object]) -> None:
    """Carry out `close` of something of paramiko's, and wait for it, but not for ever.

    Ctrl-C that strikes inside paramiko leaves its locks held; who waits for one of them then waits without end. Such a
    wait is left to a thread that ends with this process.
    """

    def work() -> None:
        with contextlib.suppress(EOFError, OSError):
            close()

    thread = threading.Thread(target=work, daemon=True, name="hang-up")
    thread.start()
    thread.join(SHUT_S)
