"""The text that names a machine: what is understood, and the corrected form for what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.transport.target import Target, parse_ssh
from workloads.contract.errors import SpecError


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("box", Target(None, "box", None)),
        ("root@1.2.3.4:40022", Target("root", "1.2.3.4", 40022)),
        ("root@[::1]:2222", Target("root", "::1", 2222)),
        ("[fe80::1%eth0]", Target(None, "fe80::1%eth0", None)),
        ("a.b@gpu-1.example.com.", Target("a.b", "gpu-1.example.com.", None)),
        ("pod-id-64411c@ssh.example.io:22", Target("pod-id-64411c", "ssh.example.io", 22)),
        ("user@corp@host:1", Target("user@corp", "host", 1)),
        ("  root@h  ", Target("root", "h", None)),
        ("host_with_underscore:65535", Target(None, "host_with_underscore", 65535)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_ssh(text) == target
    assert parse_ssh(str(target)) == target


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("", "E-SSH-001", "host"),
        ("root@", "E-SSH-001", "host"),
        (":22", "E-SSH-001", "host"),
        ("root@h:0", "E-SSH-002", "root@h:22"),
        ("root@h:70000", "E-SSH-002", "root@h:22"),
        ("root@h:abc", "E-SSH-002", "root@h:22"),
        ("root@h:", "E-SSH-002", "root@h:22"),
        ("root@h:١٢", "E-SSH-002", "root@h:22"),
        ("root@h:" + "9" * 5000, "E-SSH-002", "root@h:22"),
        ("[::1]:0", "E-SSH-002", "[::1]:22"),
        ("ssh://root@h:22", "E-SSH-003", "root@h:22"),
        ("https://h/path", "E-SSH-003", "write h"),
        ("root@::1", "E-SSH-004", "root@[::1]"),
        ("root@2001:db8::5:2222", "E-SSH-004", "root@[2001:db8::5]:2222"),
        ("[::1", "E-SSH-004", "["),
        ("ssh -p 40022 root@1.2.3.4 -i ~/.ssh/id_ed25519", "E-SSH-005", "write root@1.2.3.4:40022"),
        ("ssh root@1.2.3.4 -p 40022", "E-SSH-005", "write root@1.2.3.4:40022"),
        ("root@h; rm -rf /", "E-SSH-005", "host"),
        ("@h", "E-SSH-005", "write h"),
        ("-oProxyCommand=id", "E-SSH-005", "host"),
        ("root@-oProxyCommand=id", "E-SSH-005", "host"),
        ("ro`id`@h", "E-SSH-005", "host"),
        ("-l@h", "E-SSH-005", "host"),
        ("h\0", "E-SSH-005", "host"),
    ],
)
def test_what_is_no_target_says_what_to_write(text: str, code: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_ssh(text, where="pods.yaml:3")
    assert caught.value.code == code
    assert fix in str(caught.value.fix)
    assert caught.value.where == "pods.yaml:3"
    assert caught.value.exit_code == 2


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_spec_error(text: str) -> None:
    try:
        target = parse_ssh(text)
    except SpecError as e:
        assert e.fix
    else:
        assert parse_ssh(str(target)) == target
        assert not target.host.startswith("-") and not any(c.isspace() for c in str(target))
