"""Which machine it is: the pinned key and no other, before anything of ours is shown."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from pods.transport.hostkeys import fingerprint, known_keys, parse_key
from pods.transport.ssh import fetch_host_keys
from tests.lab.sshd import Sshd, make_key, public_key
from tests.ssh.conftest import Connect, MakeSshd, spec_of
from workloads.contract.errors import RefusedError, SpecError

LOGIN = "userauth-request for user"
"""what sshd logs as soon as somebody wants to be let in"""


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_pinned_key_is_asked_for_though_the_host_has_others(
    kind: str, make_sshd: MakeSshd, connect: Connect
) -> None:
    """Also rsa, which no client would choose by itself here."""
    sshd = make_sshd(key_types=("ed25519", "ecdsa", "rsa"))
    pinned = next(k for k in sshd.host_keys if kind in k)
    assert connect(sshd, host_key=pinned + " a comment").run(["true"], timeout_s=60).ok


def test_another_host_key_is_refused_with_both_fingerprints_and_nothing_is_shown_to_it(
    make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    sshd = make_sshd()
    transport = connect(sshd)
    assert transport.run(["true"], timeout_s=60).ok
    assert LOGIN in sshd.log.read_text()
    transport.close()
    sshd.close()
    other = make_sshd("other", port=sshd.port, identity=sshd.identity)
    with pytest.raises(RefusedError) as caught:
        transport.run(["true"], timeout_s=60)
    e = caught.value
    assert (e.code, e.exit_code) == ("E-SSH-012", 5)
    shown = [subprocess.run(["ssh-keygen", "-lf", str(s.folder / "host_ed25519.pub")], capture_output=True, text=True)
             for s in (sshd, other)]  # fmt: skip
    assert shown[0].stdout.split()[1] in str(e.expected)
    assert shown[1].stdout.split()[1] in str(e.value)
    assert "orch pods repin box" in str(e.fix) and "rebuilt" in str(e.fix)
    assert "Connection from" in other.log.read_text()
    assert LOGIN not in other.log.read_text()


def test_a_host_without_the_pinned_kind_of_key_is_refused_with_both_too(
    make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    sshd = make_sshd(key_types=("rsa",))
    pinned = public_key(make_key(tmp_path / "was"))
    with pytest.raises(RefusedError) as caught:
        connect(sshd, host_key=pinned).run(["true"], timeout_s=60)
    assert caught.value.code == "E-SSH-012"
    assert fingerprint(pinned) in str(caught.value.expected)
    assert fingerprint(sshd.host_key) in str(caught.value.value)
    assert LOGIN not in sshd.log.read_text()


def test_a_pod_that_is_not_pinned_is_not_even_connected_to(make_sshd: MakeSshd, connect: Connect, home: Path) -> None:
    sshd = make_sshd()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")  # is not what pins a pod
    with pytest.raises(RefusedError) as caught:
        connect(sshd, host_key=None).run(["true"], timeout_s=60)
    assert caught.value.code == "E-SSH-011"
    assert "orch pods repin box" in str(caught.value.fix)
    assert "Connection from" not in sshd.log.read_text()


def test_the_keys_of_a_host_are_fetched_without_logging_in(make_sshd: MakeSshd, home: Path) -> None:
    sshd = make_sshd(key_types=("rsa", "ed25519"))
    seen = fetch_host_keys("box", spec_of(sshd, host_key=None, identity="/nowhere"))
    assert [(k.host, k.key, k.known) for k in seen] == [(f"127.0.0.1:{sshd.port}", sshd.host_keys[1], False)]
    shown = subprocess.run(["ssh-keygen", "-lf", str(sshd.folder / "host_ed25519.pub")], capture_output=True, text=True)
    assert seen[0].fingerprint == shown.stdout.split()[1]
    assert LOGIN not in sshd.log.read_text()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_keys[1]}\n")
    assert fetch_host_keys("box", spec_of(sshd, host_key=None))[0].known


@pytest.mark.parametrize("known_too", [False, True])
def test_a_key_that_known_hosts_revokes_is_no_key_to_pin(known_too: bool, make_sshd: MakeSshd, home: Path) -> None:
    """Also where another line has it as a good one: a mark `@revoked` outweighs that, as in ssh itself."""
    sshd = make_sshd()
    name, key = f"[127.0.0.1]:{sshd.port}", sshd.host_key
    known_hosts = home / ".ssh/known_hosts"
    known_hosts.write_text((f"{name} {key}\n" if known_too else "") + f"@revoked {name} {key}\n")
    with pytest.raises(RefusedError) as caught:
        fetch_host_keys("box", spec_of(sshd, host_key=None), confirm=lambda key: True)
    e = caught.value
    assert (e.code, e.value) == ("E-SSH-015", fingerprint(key)) and f"127.0.0.1:{sshd.port}" in e.what
    look = shlex.split(str(e.fix).split("   (")[0])
    shown = subprocess.run([*look, "-f", str(known_hosts)], capture_output=True, text=True, timeout=60)
    assert "@revoked" in shown.stdout
    assert LOGIN not in sshd.log.read_text()


def test_known_hosts_hashed_by_ssh_keygen_patterns_and_marks(tmp_path: Path) -> None:
    keys = [public_key(make_key(tmp_path / f"k{i}")) for i in range(5)]
    file = tmp_path / "known_hosts"
    file.write_text(f"plain {keys[0]}\n[plain]:2222 {keys[1]}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "plain" not in file.read_text()
    with file.open("a") as f:
        f.write(
            f"*.example.com,!bad.example.com {keys[2]}\n@revoked plain {keys[3]}\n@cert-authority plain {keys[4]}\n"
            f"# plain {keys[4]}\nplain ssh-ed25519 !!!\nplain ssh-rsa {keys[4].split()[1]}\n|1|x|y {keys[4]}\n\xff\n"
        )
    files = [tmp_path / "missing", tmp_path, file]
    assert known_keys(files, "plain", 22).keys == (keys[0],)
    assert known_keys(files, "plain", 22).revoked == (keys[3],)
    assert known_keys(files, "PLAIN", 2222).keys == (keys[1],)
    assert known_keys(files, "other", 40022, alias="plain").keys == (keys[0],)
    assert known_keys(files, "a.example.com", 22).keys == (keys[2],)
    assert known_keys(files, "bad.example.com", 22).keys == ()


WRONG_TYPE = "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIKPzx5poKyjohHcP634JJWCQebDacnj2JUCepgrwjTIw"
NO_KEYS = ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-dss AAAAB3NzaC1kc3M=", "é ü", "SHA256:abc", WRONG_TYPE]


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_is_no_host_key_is_said_of_the_inventory(text: str, sshd: Sshd, connect: Connect) -> None:
    with pytest.raises(SpecError) as caught:
        parse_key(text)
    assert caught.value.code == "E-SSH-010"
    if text:
        with pytest.raises(SpecError) as caught:
            connect(sshd, host_key=text).run(["true"], timeout_s=60)
        assert caught.value.where == "pods.box.host_key"
