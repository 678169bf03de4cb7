"""The way to a pod: aliases, includes, IPv6, jumps one after another with each host's key checked, a ProxyCommand."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pods.transport.hostkeys import HostKey
from pods.transport.ssh import SshTransport, fetch_host_keys
from pods.transport.sshconfig import resolve
from tests.lab.sshd import Sshd, make_key, public_key
from tests.ssh.conftest import Connect, MakeSshd
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import LocalError, OrchError, RefusedError, UnreachableError

LOGIN = "userauth-request for user"
RELAY = """\
import socket, sys, os, threading
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := s.recv(65536): os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536): s.sendall(data)
"""


def block(name: str, sshd: Sshd, *lines: str) -> str:
    rows = [f"HostName {sshd.address}", f"Port {sshd.port}", f"User {sshd.user}", f'IdentityFile "{sshd.identity}"']
    return f"Host {name}\n" + "".join(f"  {x}\n" for x in [*rows, *lines])


def known(home: Path, *sshds: Sshd) -> None:
    text = "".join(f"[{s.address}]:{s.port} {s.host_key}\n" for s in sshds)
    (home / ".ssh/known_hosts").write_text(text)


def ran(transport: SshTransport) -> bool:
    try:
        return transport.run(["true"], timeout_s=60).ok
    finally:
        transport.close()


def test_ipv6(make_sshd: MakeSshd, connect: Connect) -> None:
    try:
        sshd = make_sshd(address="::1")
    except (OSError, RuntimeError) as e:
        pytest.skip(f"no IPv6 loopback: {e}")
    assert sshd.target.endswith(f"@[::1]:{sshd.port}")
    assert ran(connect(sshd))
    assert fetch_host_keys("box", PodSpec(ssh=sshd.target))[0].host == f"[::1]:{sshd.port}"


def test_a_name_with_a_dead_first_address_is_reached_by_its_second(
    sshd: Sshd, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`localhost` is ::1 first, where nobody listens."""
    import socket

    real = socket.getaddrinfo

    def both(host: str, port: int, **more: object) -> object:
        return [*real("::1", port, type=socket.SOCK_STREAM), *real("127.0.0.1", port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert ran(connect(sshd, ssh=f"{sshd.user}@localhost:{sshd.port}"))


def test_an_alias_with_everything_in_an_included_file(sshd: Sshd, connect: Connect, home: Path) -> None:
    (home / ".ssh/config").write_text("Include conf.d/*.conf\nHost *\n  Port 1\n  User nobody\n")
    (home / ".ssh/conf.d").mkdir()
    (home / ".ssh/conf.d/a.conf").write_text(block("gpu", sshd))
    assert ran(connect(sshd, ssh="gpu", identity=None))
    hop = resolve("other@gpu:7")[0]
    assert (hop.user, hop.port, hop.host) == ("other", 7, sshd.address), "what is written out wins"
    assert resolve("elsewhere")[0].port == 1


def test_a_configuration_may_be_another_file(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(block("gpu", sshd, "IdentitiesOnly yes"))
    assert ran(connect(sshd, ssh="gpu", identity=None, config_file=config))


@pytest.mark.parametrize("text", ["Port what\n", "Match all host x\n", "Host a\n  Garbage\n"])
def test_a_configuration_that_cannot_be_understood_is_said(text: str, home: Path) -> None:
    (home / ".ssh/config").write_text(text)
    with pytest.raises(OrchError) as caught:
        resolve("a")
    assert caught.value.code in ("E-SSH-026", "E-SSH-002") and caught.value.exit_code in (2, 3)


def test_a_chain_of_two_jumps(make_sshd: MakeSshd, connect: Connect, home: Path) -> None:
    first, second, pod = (make_sshd(n) for n in ("first", "second", "pod"))
    (home / ".ssh/config").write_text(
        block("first", first) + block("second", second, "ProxyJump first") + block("pod", pod, "ProxyJump second")
    )
    known(home, first, second)
    transport = connect(pod, ssh="pod", identity=None)
    done = transport.run(["sh", "-c", "echo $LAB_SSHD; head -c 3000000 /dev/zero"], timeout_s=60)
    assert done.stdout.startswith(pod.token) and len(done.stdout) == 3000000 + len(pod.token) + 1
    for sshd in (first, second, pod):
        assert sshd.log.read_text().count("Accepted publickey") == 1
    transport.close()
    keys = fetch_host_keys("box", PodSpec(ssh="pod"))
    assert [k.key for k in keys] == [first.host_key, second.host_key, pod.host_key]
    assert [k.known for k in keys] == [True, True, False]
    second.close()
    with pytest.raises(UnreachableError) as caught:
        transport.run(["true"], timeout_s=60)
    assert f"127.0.0.1:{second.port} cannot be reached from 127.0.0.1:{first.port}" in caught.value.what
    assert caught.value.code == "E-SSH-039"


def test_a_list_of_jumps_in_one_line_and_the_loss_of_the_first(
    make_sshd: MakeSshd, connect: Connect, home: Path
) -> None:
    first, second, pod = (make_sshd(n) for n in ("first", "second", "pod"))
    (home / ".ssh/config").write_text(
        block("first", first) + block("second", second) + block("pod", pod, "ProxyJump first,second")
    )
    keys = [first.host_key, second.host_key]
    transport = connect(pod, ssh="pod", identity=None, jump_keys=keys)
    assert transport.run(["true"], timeout_s=60).ok
    first.drop_connections()
    deadline = time.monotonic() + 60
    while True:
        try:
            if transport.run(["true"], timeout_s=60).ok and first.log.read_text().count("Accepted publickey") == 2:
                break
        except UnreachableError as e:
            assert e.code in ("E-SSH-040", "E-SSH-041")
        assert time.monotonic() < deadline
    assert pod.log.read_text().count("Accepted publickey") == 2


def test_a_jump_that_is_not_known_is_refused_before_anything_is_shown_to_it(
    make_sshd: MakeSshd, connect: Connect, home: Path, tmp_path: Path
) -> None:
    jump, pod = make_sshd("jump"), make_sshd("pod")
    (home / ".ssh/config").write_text(block("jump", jump) + block("pod", pod, "ProxyJump jump"))
    transport = connect(pod, ssh="pod", identity=None)
    for code, text in (
        ("E-SSH-013", ""),
        ("E-SSH-014", f"[127.0.0.1]:{jump.port} {public_key(make_key(tmp_path / 'was'))}\n"),
        ("E-SSH-015", f"@revoked [127.0.0.1]:{jump.port} {jump.host_key}\n"),
    ):
        (home / ".ssh/known_hosts").write_text(text)
        with pytest.raises(RefusedError) as caught:
            transport.run(["true"], timeout_s=60)
        assert caught.value.code == code
        assert f"127.0.0.1:{jump.port}" in caught.value.what
    with pytest.raises(RefusedError) as caught:
        ran(connect(pod, ssh="pod", identity=None, jump_keys=[pod.host_key]))
    assert caught.value.code == "E-SSH-014"
    assert LOGIN not in jump.log.read_text()
    assert "Connection from" not in pod.log.read_text()


def test_fetching_keys_asks_about_a_jump_before_it_logs_in_there(make_sshd: MakeSshd, home: Path) -> None:
    jump, pod = make_sshd("jump"), make_sshd("pod")
    (home / ".ssh/config").write_text(block("jump", jump) + block("pod", pod, "ProxyJump jump"))
    asked: list[HostKey] = []

    def answer(key: HostKey) -> bool:
        assert LOGIN not in jump.log.read_text()
        asked.append(key)
        return len(asked) > 1

    with pytest.raises(RefusedError):
        fetch_host_keys("box", PodSpec(ssh="pod"), confirm=answer)
    assert LOGIN not in jump.log.read_text()
    keys = fetch_host_keys("box", PodSpec(ssh="pod"), confirm=answer)
    assert [k.key for k in asked] == [jump.host_key] * 2
    assert [k.key for k in keys] == [jump.host_key, pod.host_key]
    assert LOGIN not in pod.log.read_text()
    pinned = fetch_host_keys("box", PodSpec(ssh="pod", jump_keys=[jump.host_key]))
    assert pinned[0].known


def test_the_pods_changed_key_is_seen_through_a_jump(make_sshd: MakeSshd, connect: Connect, home: Path) -> None:
    jump, pod = make_sshd("jump"), make_sshd("pod", key_types=("rsa",))
    (home / ".ssh/config").write_text(block("jump", jump) + block("pod", pod, "ProxyJump jump"))
    known(home, jump)
    with pytest.raises(RefusedError) as caught:
        ran(connect(pod, ssh="pod", identity=None, host_key=jump.host_key))
    assert caught.value.code == "E-SSH-012"
    assert LOGIN not in pod.log.read_text()


def test_jumps_that_match_themselves_or_each_other(home: Path) -> None:
    (home / ".ssh/config").write_text("Host *\n  ProxyJump bastion\n")
    assert [h.host for h in resolve("gpu")] == ["bastion", "gpu"]
    assert [h.host for h in resolve("bastion")] == ["bastion"]
    (home / ".ssh/config").write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(LocalError) as caught:
        resolve("a")
    assert caught.value.code == "E-SSH-027"
    (home / ".ssh/config").write_text("Host a\n  ProxyJump none\nHost *\n  ProxyJump b\n")
    assert [h.host for h in resolve("a")] == ["a"]


def test_a_proxy_command_carries_the_connection_and_ends_with_it(
    sshd: Sshd, connect: Connect, home: Path, tmp_path: Path
) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    command = f"{sys.executable} {relay} %h %p"
    (home / ".ssh/config").write_text(block("gpu", sshd, f"ProxyCommand {command}"))
    transport = connect(sshd, ssh="gpu", identity=None)
    done = transport.run(["sh", "-c", "tr a b"], timeout_s=10, stdin=b"a" * 1_000_000)
    assert done.stdout == "b" * 1_000_000
    assert relays(relay)
    transport.close()
    assert not relays(relay)
    (home / ".ssh/config").write_text(block("gpu", sshd, "ProxyCommand sh -c 'exit 9'"))
    with pytest.raises(UnreachableError) as caught:
        transport.run(["true"], timeout_s=60)
    assert caught.value.code == "E-SSH-038" and "ended with 9" in caught.value.what


def relays(script: Path) -> list[int]:
    found = []
    for pid in (int(x) for x in os.listdir("/proc") if x.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(script).encode() in words:
            found.append(pid)
    return found
