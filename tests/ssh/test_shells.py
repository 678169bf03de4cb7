"""The same command through every login shell a pod may have, however noisy; any words arrive as they were."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pods.pod import FarPod
from pods.transport.ssh import SshTransport
from tests.lab.sshd import Sshd, why_no_sshd
from tests.ssh.conftest import Connect, MakeSshd, spec_of
from workloads.contract.errors import RemoteError

SHELLS = ["/bin/bash", "/bin/dash", "/usr/bin/zsh", "/usr/bin/fish", "/bin/tcsh", "/bin/csh", "/bin/sh"]
WORDS = ["a b", "é☃\n'\"$(id)`id`", "", "-x", "!x", "\\", "a;b", "*", "~", "$HOME", "%s", "a\tb", "\x01\x81", "\n", "#"]


def noisy(home: Path) -> None:
    """Login files that print on both streams, with no final newline, in every shell's words."""
    home.mkdir(exist_ok=True)
    text = "printf 'Welcome\\nto the pod'; printf 'stty: not a tty' >&2\n"
    for name in (".bashrc", ".zshenv", ".profile"):
        (home / name).write_text(text)
    (home / ".cshrc").write_text("echo 'Welcome to the pod'\nprintf 'no newline'\n")
    (home / ".config/fish").mkdir(parents=True)
    (home / ".config/fish/config.fish").write_text("echo Welcome; echo warning >&2; printf 'no newline'\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_runs_the_same_command(
    shell: str, make_sshd: MakeSshd, connect: Connect, tmp_path: Path
) -> None:
    home = tmp_path / "its home"
    noisy(home)
    sshd = make_sshd(shell=shell, home=home)
    transport = connect(sshd)
    done = transport.run(["printf", "<%s>", *WORDS], timeout_s=60)
    assert done.stdout == "".join(f"<{w}>" for w in WORDS)
    assert (done.exit_code, done.stderr) == (0, "")
    done = transport.run(["sh", "-c", 'cat; echo "$A" >&2; exit 7'], timeout_s=10, stdin=b"in\nput", env={"A": "b'\nc"})
    assert (done.exit_code, done.stdout, done.stderr) == (7, "in\nput", "b'\nc\n")
    transport.put(b"data", PurePosixPath(home) / "a 'b" / "c\nd", timeout_s=60)
    assert (home / "a 'b" / "c\nd").read_bytes() == b"data"
    pod = FarPod("box", transport)
    assert pod.home.path == home / ".orch"
    pod.close()


def test_a_noisy_shell_was_really_noisy(make_sshd: MakeSshd, tmp_path: Path) -> None:
    """The control of the test above: OpenSSH itself shows the noise."""
    home = tmp_path / "its home"
    noisy(home)
    sshd = make_sshd(shell="/bin/bash", home=home)
    argv = ["ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    argv += ["-i", str(sshd.identity), "-p", str(sshd.port), f"{sshd.user}@127.0.0.1", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert "Welcome" in done.stdout


def test_a_shell_that_lets_nobody_run_a_command_says_so_in_its_words(make_sshd: MakeSshd, connect: Connect) -> None:
    sshd = make_sshd(shell="/usr/sbin/nologin")
    transport = connect(sshd)
    for ask in (transport.run, transport.start):
        with pytest.raises(RemoteError) as caught:
            ask(["true"], timeout_s=10)
        assert caught.value.code == "E-SSH-044"
        assert "not available" in str(caught.value.value)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshTransport]:
    """One connection for many examples."""
    if (reason := why_no_sshd()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("still")
    with Sshd(folder / "pod") as sshd:
        transport = SshTransport("box", spec_of(sshd))
        yield transport
        transport.close()


word = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(word | st.sampled_from(WORDS), min_size=1, max_size=6), value=word, data=st.binary(max_size=300))
def test_any_words_environment_and_input_arrive_as_they_were(
    still: SshTransport, words: list[str], value: str, data: bytes
) -> None:
    show = 'printf "%s\\0" "$@" "$V"; cat >&2'
    done = still.run(["sh", "-c", show, "sh", *words], timeout_s=10, env={"V": value}, stdin=data)
    assert done.stdout == "".join(f"{w}\0" for w in [*words, value])
    assert done.stderr == data.decode(errors="replace")
    assert done.exit_code == 0
