"""Lines as providers give them and people paste them."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.inventory.podname import pod_name
from pods.sshline import parse_line
from pods.transport.target import parse_ssh
from workloads.contract.config.inventory import Inventory, PodSpec
from workloads.contract.errors import OrchError, UsageError


@pytest.mark.parametrize(
    ("line", "ssh", "identity"),
    [
        ("root@1.2.3.4:40022", "root@1.2.3.4:40022", None),
        ("box", "box", None),
        ("ssh box", "box", None),
        ("ssh root@1.2.3.4 -p 40022 -i ~/.ssh/id_ed25519", "root@1.2.3.4:40022", "~/.ssh/id_ed25519"),
        ("ssh -p 40022 root@ssh5.vast.ai -L 8080:localhost:8080", "root@ssh5.vast.ai:40022", None),
        (
            "ssh abc123-64411e5f@ssh.runpod.io -i ~/.ssh/id_ed25519",
            "abc123-64411e5f@ssh.runpod.io",
            "~/.ssh/id_ed25519",
        ),
        ("ssh -oPort=23 -lroot ::1", "root@[::1]:23", None),
        ("ssh -o 'Port 23' -o HostName=10.0.0.7 -o User=ada x", "ada@10.0.0.7:23", None),
        ("$ ssh -vvA -p22 a@b", "a@b:22", None),
        ("ssh://root@h:22/", "root@h:22", None),
        ("ssh a@b ls -l /", "a@b", None),
        ("/usr/bin/ssh -tt -C a@b 'nvidia-smi -L'", "a@b", None),
        ("ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null a@b", "a@b", None),
        ("ssh -- a@b", "a@b", None),
        ('ssh -i "/my keys/k" a@b', "a@b", "/my keys/k"),
    ],
)
def test_lines(line: str, ssh: str, identity: str | None) -> None:
    for words in ([line], shlex.split(line.removeprefix("$ "))):
        found = parse_line(words)
        assert (found.ssh, found.identity) == (ssh, identity)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("ssh -A a@b", "agent"), ("ssh -L 1:b:2 a@b", "orch forward"), 
        ("ssh -o StrictHostKeyChecking=no a@b", "host key"),
        ("ssh a@b ls", "`ls`"), ("ssh -N a@b", "-N"), ("ssh://a@b", "ssh://"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(line: str, word: str) -> None:
    assert len(parse_line([line]).notes) == 1 and word in parse_line([line]).notes[0]


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("ssh -J jump a@b", "E-PODS-004", "ProxyJump jump"), ("ssh -o ProxyJump=j a@b", "E-PODS-004", "ProxyJump j"),
        ("ssh -F conf a@b", "E-PODS-005", "-F"), ("ssh -o ProxyCommand=x a@b", "E-PODS-005", "ProxyCommand"),
        ("ssh -W x:1 a@b", "E-PODS-005", "-W"), ("ssh -o HostKeyAlias=x a@b", "E-PODS-005", "HostKeyAlias"),
        ("ssh", "E-PODS-006", "no machine"), ("ssh -p", "E-PODS-003", "-p"), ("ssh 'a", "E-PODS-001", "quote"),
        ("ssh --identitx k a@b", "E-PODS-002", "--identitx"), ("ssh -l ada root@b", "E-PODS-007", "ada"),
        ("ssh -p 22 b:23", "E-PODS-008", "23"), ("ssh -p 70000 a@b", "E-SSH-002", "65535"),
        ("ssh -Z a@b", "E-PODS-005", "-Z"), ("ssh -l 'a;b' h", "E-SSH-005", "a;b"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(line: str, code: str, word: str) -> None:
    with pytest.raises(OrchError) as e:
        parse_line([line] if " " in line else shlex.split(line))
    assert e.value.code == code and word in e.value.render() and "fix:" in e.value.render()


def test_nothing_is_no_machine() -> None:
    for words in ([], [""], ["  "]):
        with pytest.raises(OrchError):
            parse_line(words)


@given(
    st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from(["-p", "22", "-i", "-o", "a@b", "::1", "-", "--"])), max_size=6
    )
)
def test_any_words_give_a_target_or_an_error(words: list[str]) -> None:
    try:
        found = parse_line(words)
    except OrchError as e:
        assert isinstance(e, UsageError) or e.code.startswith("E-SSH")
    else:
        parse_ssh(found.ssh)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("root@203.0.113.7:40022", "pod-203-0-113-7"), ("ada@gpu1.lab.example", "gpu1-lab-example"), ("box", "taken"),
        ("ssh -p 2222 ada@box", "box"), ("ada@taken:2222", "taken-2222"), ("root@" + "a" * 60, "a" * 39),
    ],
)  # fmt: skip
def test_a_name_for_a_machine_without_one(text: str, name: str) -> None:
    """Of `make train REMOTE_HOST=...`: the name it has, else one made of the host that no other has."""
    assert pod_name(Inventory(pods={"taken": PodSpec(ssh="box")}), text) == name
