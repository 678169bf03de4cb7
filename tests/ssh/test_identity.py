"""Who we are: keys of files and of a real agent, what is wrong with them, and never a password or a forwarded agent."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.sshd import Sshd, make_key, public_key
from tests.ssh.conftest import Connect, MakeSshd
from workloads.contract.errors import LocalError, OrchError, RefusedError


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real ssh-agent of the test's own."""
    sock = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if sock.exists():
                break
            subprocess.run(["sleep", "0.01"], check=True)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        yield sock
    finally:
        process.kill()
        process.wait(timeout=120)


def add(key: Path, passphrase: str = "") -> None:
    ask = key.with_name("ask")
    ask.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
    ask.chmod(0o700)
    env = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    subprocess.run(["ssh-add", "-q", str(key)], check=True, env=env, stdin=subprocess.DEVNULL, timeout=120)


def refusal(connect: Connect, sshd: Sshd, **changes: object) -> OrchError:
    with pytest.raises(OrchError) as caught:
        connect(sshd, **changes).run(["true"], timeout_s=60)
    return caught.value


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_file_of_every_kind(kind: str, sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    key = make_key(tmp_path / "a key" / kind, kind)
    sshd.allow(public_key(key))
    assert connect(sshd, identity=str(key)).run(["true"], timeout_s=60).ok


def test_without_identity_the_keys_of_dot_ssh_are_tried(sshd: Sshd, connect: Connect, home: Path) -> None:
    make_key(home / ".ssh/id_ed25519")
    sshd.allow(public_key(make_key(home / ".ssh/id_rsa", "rsa")))
    assert connect(sshd, identity=None).run(["true"], timeout_s=60).ok


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_key_that_only_the_agent_has(kind: str, sshd: Sshd, connect: Connect, agent: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "gone", kind)
    add(key)
    sshd.allow(public_key(key))
    key.unlink()
    assert connect(sshd, identity=None).run(["true"], timeout_s=60).ok


def test_a_locked_key_is_named_until_the_agent_has_it(
    sshd: Sshd, connect: Connect, agent: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "locked key", passphrase="secret")
    sshd.allow(public_key(key))
    e = refusal(connect, sshd, identity=str(key))
    assert (e.code, type(e)) == ("E-SSH-023", RefusedError)
    assert e.fix == f"ssh-add '{key}'"
    add(key, "secret")
    assert connect(sshd, identity=str(key)).run(["true"], timeout_s=60).ok


def test_a_locked_default_key_is_named_when_nothing_else_is_let_in(sshd: Sshd, connect: Connect, home: Path) -> None:
    key = make_key(home / ".ssh/id_ed25519", passphrase="secret")
    make_key(home / ".ssh/id_rsa", "rsa")
    e = refusal(connect, sshd, identity=None)
    assert e.code == "E-SSH-023"
    assert str(key) in str(e.fix) and "id_rsa" in str(e.value)


def test_an_agent_that_is_gone_is_no_obstacle(sshd: Sshd, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere/agent")
    assert connect(sshd).run(["true"], timeout_s=60).ok


def test_what_is_wrong_with_a_key_file_is_said_with_the_command_against_it(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    missing = refusal(connect, sshd, identity=str(tmp_path / "none"))
    assert (missing.code, type(missing), missing.value) == ("E-SSH-020", LocalError, tmp_path / "none")
    key = make_key(tmp_path / "open")
    key.chmod(0o644)
    shared = refusal(connect, sshd, identity=str(key))
    assert (shared.code, shared.exit_code, shared.fix) == ("E-SSH-021", 3, f"chmod 600 {key}")
    assert "0644" in str(shared.value)
    public = tmp_path / "open.pub"
    public.chmod(0o600)
    assert refusal(connect, sshd, identity=str(public)).code == "E-SSH-022"
    assert refusal(connect, sshd, identity=str(tmp_path)).exit_code == 3
    assert "Connection from" not in sshd.log.read_text()


def test_a_refusal_says_as_whom_and_with_what(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    key = make_key(tmp_path / "stranger")
    e = refusal(connect, sshd, identity=str(key))
    assert (e.code, e.exit_code) == ("E-SSH-024", 5)
    assert f"lets {sshd.user} in" in e.what and str(key) in str(e.value)
    assert str(e.fix).startswith(f"ssh-copy-id -i {key} -p {sshd.port} {sshd.user}@127.0.0.1")
    assert sshd.log.read_text().count("Connection from") == 1, "a refusal is not tried again"
    none = refusal(connect, sshd, identity=None)
    assert none.code == "E-SSH-024" and "no key" in none.what


def test_an_agent_full_of_other_keys_ends_in_a_refusal_that_says_so(
    sshd: Sshd, connect: Connect, agent: Path, tmp_path: Path
) -> None:
    for i in range(8):
        add(make_key(tmp_path / f"k{i}"))
    e = refusal(connect, sshd, identity=None)
    assert e.code == "E-SSH-024" and "identity" in str(e.fix)
    assert connect(sshd).run(["true"], timeout_s=60).ok, "a named identity comes first"


def test_a_host_that_wants_a_password_is_told_from_one_that_refuses(make_sshd: MakeSshd, connect: Connect) -> None:
    passwords = make_sshd("a", extra=["PubkeyAuthentication no", "Match all", "PasswordAuthentication yes"])
    e = refusal(connect, passwords)
    assert (e.code, "password" in str(e.value)) == ("E-SSH-025", True)


def test_the_agent_is_never_forwarded(sshd: Sshd, connect: Connect, agent: Path, home: Path) -> None:
    (home / ".ssh/config").write_text("Host *\n  ForwardAgent yes\n")
    transport = connect(sshd)
    done = transport.run(["sh", "-c", "echo ${SSH_AUTH_SOCK-none}"], timeout_s=60)
    assert done.stdout == "none\n"
    process = transport.start(["sh", "-c", "echo ${SSH_AUTH_SOCK-none}"], timeout_s=60)
    assert process.read(timeout_s=60) == b"none\n"
    process.close()
    requests = set(re.findall(r"server_input_channel_req: .* request (\S+)", sshd.log.read_text()))
    assert requests == {"exec"}
