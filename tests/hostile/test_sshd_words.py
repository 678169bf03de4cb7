"""Behind a real sshd: programs of the pod that answer with escapes, and what a person reads when nothing works.

The blocks are golden files, `tests/golden/errors/pods_*.txt` (ORCH_REGEN=1 writes them anew).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pods.transport.hostkeys import fingerprint
from tests.cli.conftest import Orch, Ran
from tests.hostile.corpus import ALL_ESCAPES, ESCAPES, harm_in
from tests.inventory.conftest import *  # noqa: F403  its fixtures
from tests.inventory.conftest import MakeSshd
from tests.inventory.test_commands import add, golden
from tests.lab.sshd import Sshd, free_port, make_key, public_key
from workloads.contract.rundir import OrchHome

WIRE = ALL_ESCAPES.encode("utf-8", "surrogateescape").replace(b"\0", b"")


def harmless(ran: Ran) -> Ran:
    assert not harm_in(ran.out + ran.err), (ran.out + ran.err)[:1500].encode()
    assert "Traceback (most recent" not in ran.err and "E-BUG" not in ran.err
    return ran


@pytest.fixture
def evil(make_sshd: MakeSshd, tmp_path: Path) -> Sshd:
    """A pod whose own programs answer every question with the whole corpus."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "words").write_bytes(WIRE)
    script = f'#!/bin/sh\ncat {bin_}/words\nprintf "\\n"\ncat {bin_}/words >&2\n'
    for name in (
        "uname",
        "id",
        "hostname",
        "nvidia-smi",
        "getconf",
        "df",
        "stat",
        "date",
        "ldd",
        "dmesg",
        "nproc",
        "ps",
    ):
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    sshd = make_sshd("evil", shell="/bin/bash")
    assert sshd.home is not None
    (sshd.home / ".bashrc").write_text(f"PATH={bin_}:/usr/bin:/bin:/usr/sbin:/sbin\n")
    return sshd


@pytest.mark.long
def test_programs_that_answer_with_escapes(orch: Orch, evil: Sshd) -> None:
    assert harmless(add(orch, "box", evil)).code in (0, 4, 5, 7)
    assert "\\x1b]52" in harmless(orch("pods", "exec", "box", "--", "uname", "-a")).out
    for words in (("pods", "check", "box"), ("pods", "check", "box", "--json"), ("pods", "list"),
                  ("launch", "--dry-run", "--pod", "box", "--", "true")):  # fmt: skip
        ran = harmless(orch(*words, timeout_s=60))
        assert ran.code != 0 or "list" in words, ran.out + ran.err
        if "--json" in words:
            json.loads(ran.out, parse_constant=lambda word: pytest.fail(word))


@pytest.mark.long
def test_output_of_a_command_and_names_of_files(orch: Orch, sshd: Sshd, tmp_path: Path) -> None:
    assert add(orch, "box", sshd).code == 0
    there = tmp_path / "there"
    there.mkdir()
    (there / "words").write_bytes(WIRE)
    ran = harmless(orch("pods", "exec", "box", "--", "sh", "-c", f"cat {there}/words; cat {there}/words >&2; exit 3"))
    assert ran.code == 3 and "\\x1b]52;c;" in ran.out and "\\x1b]52;c;" in ran.err
    for i, text in enumerate(ESCAPES.values()):
        name = os.fsencode(there) + b"/" + str(i).encode() + text.encode("utf-8", "surrogateescape").replace(b"/", b"")
        Path(os.fsdecode(name.replace(b"\0", b""))).write_text("x")
    target = tmp_path / "back"
    ran = harmless(orch("pods", "pull", "box", str(there), str(target)))
    assert ran.code == 7 and "left out" in ran.out
    assert all(not harm_in(p.name) and "\n" not in p.name for p in target.rglob("*")) and (target / "words").is_file()
    ran = harmless(orch("pods", "pull", "box", str(there / "no\x1b[2J"), str(target)))
    assert ran.code == 7
    ran = harmless(orch("pods", "exec", "box", "--", "/no/\x1b[2Jsuch"))
    assert ran.code == 127


# ---- rows 16 to 21: what a person reads


def inventory(home: OrchHome, sshd: Sshd, **changes: str) -> None:
    home.path.mkdir(exist_ok=True, mode=0o700)
    row = {"ssh": sshd.target, "host_key": sshd.host_key, "identity": str(sshd.identity), **changes}
    home.inventory.write_text("pods:\n  box:\n" + "".join(f"    {k}: {v}\n" for k, v in row.items() if v))
    home.inventory.chmod(0o600)


def block(orch: Orch, name: str, code: int, **places: object) -> str:
    """What `orch runs --from box` says; the same in `pods exec`, but for nothing."""
    ran = harmless(orch("runs", "--from", "box"))
    assert (ran.code, ran.out) == (code, ""), ran.err
    golden(name, ran.err, **places)
    return ran.err


@pytest.mark.parametrize("case", ["16_key_file_missing", "17_key_file_locked", "18_key_file_open_to_others"])
def test_the_key_file(orch: Orch, sshd: Sshd, home: OrchHome, tmp_path: Path, case: str) -> None:
    key = tmp_path / "key"
    if "missing" not in case:
        make_key(key, passphrase="secret" if "locked" in case else "")
        sshd.allow(public_key(key))
    if "open" in case:
        key.chmod(0o644)
    inventory(home, sshd, identity=str(key))
    told = block(orch, case, 5 if "locked" in case else 3, file=key, port=sshd.port, folder=tmp_path)
    fix = told.split("fix:   ")[1]
    assert ("ssh-add" in fix) == ("locked" in case) and ("chmod 600" in fix) == ("open" in case)
    if "open" in case:
        subprocess.run(fix, shell=True, check=True, timeout=120)
        assert orch("runs", "--from", "box").code == 0


def test_the_host_key_is_another(orch: Orch, sshd: Sshd, home: OrchHome, tmp_path: Path) -> None:
    other = public_key(make_key(tmp_path / "other"))
    inventory(home, sshd, host_key=other)
    block(orch, "19_host_key_changed", 5, port=sshd.port, seen=fingerprint(sshd.host_key), pinned=fingerprint(other))
    assert "publickey" not in sshd.log.read_text()


def test_the_host_key_is_not_pinned(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    inventory(home, sshd, host_key="")
    block(orch, "20_host_key_not_pinned", 5, port=sshd.port, home=home.path)
    assert "Connection from" not in sshd.log.read_text()


def test_nobody_listens(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    port = free_port()
    inventory(home, sshd, ssh=f"root@127.0.0.1:{port}")
    block(orch, "21_connection_refused", 4, port=port)


def test_something_else_listens(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    import threading

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock.sendall(b"HTTP/1.1 400 Bad \x1b]0;x\x07Request\r\n" * 300)
                sock.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        inventory(home, sshd, ssh=f"root@127.0.0.1:{port}")
        block(orch, "22_no_ssh_server", 4, port=port)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@pytest.mark.long
def test_a_host_that_says_nothing(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    """A full queue of connections: what comes is dropped without a word, as by a firewall."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        inventory(home, sshd, ssh=f"root@127.0.0.1:{port}")
        block(orch, "26_connect_timeout", 4, port=port)


def test_no_route(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    """The command in a network of its own, in which there is no way to anywhere."""
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if (why := subprocess.run([*alone, "true"], capture_output=True, text=True, timeout=120)).returncode:
        pytest.skip(f"needs a network namespace: {why.stderr.strip()}")
    inventory(home, sshd, ssh="root@192.0.2.1:2222")
    argv = [*alone, sys.executable, "-m", "orchestrator.cli", "runs", "--from", "box"]
    ran = subprocess.run(argv, env=orch.env(), cwd=orch.cwd, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (4, "")
    golden("27_no_route", ran.stderr)


@pytest.mark.long
def test_an_sshd_that_does_not_answer(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    inventory(home, sshd)
    with sshd.hung():
        block(orch, "23_sshd_hangs", 4, port=sshd.port)


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "says"), [("24_newer_protocol", "ORCH-REMOTE 2"), ("25_odd_protocol", "ORCH-REMOTE \\033[2J")]
)
def test_a_process_that_speaks_otherwise(
    orch: Orch, sshd: Sshd, home: OrchHome, tmp_path: Path, case: str, says: str
) -> None:
    """What the inventory calls Python there is a program that greets with another version."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *" serve "*) printf "{says}\\n"; sleep 5 ;; *) exec {sys.executable} "$@" ;; esac\n'
    )
    python.chmod(0o755)
    inventory(home, sshd, python=str(python), root=str(tmp_path / "root"))
    block(orch, case, 7, port=sshd.port)


# ---- the "plus" line: no terminal, no stdin, Ctrl-C twice, a reader that goes away


def test_no_stdin_no_terminal_and_a_reader_that_goes_away(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    inventory(home, sshd)
    process = orch.start("pods", "exec", "box", "--", "echo", "x", stdin=None, preexec_fn=lambda: os.close(0))
    assert process.communicate(timeout=120) == ("x\n", "") and process.returncode == 0
    process = orch.start("pods", "add", "new", sshd.target, stdin=None, preexec_fn=lambda: os.close(0))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 6 and out == "" and "Traceback" not in err, err
    process = orch.start("pods", "exec", "box", "--", "seq", "300000")
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    process.stdout.close()
    assert process.wait(timeout=120) == -signal.SIGPIPE and process.stderr is not None and process.stderr.read() == ""


@pytest.mark.long
def test_ctrl_c_twice(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    inventory(home, sshd)
    for words in (("pods", "exec", "box", "--", "sleep", "30"), ("runs", "--from", "box")):
        with sshd.hung() if words[0] == "runs" else contextlib.nullcontext():
            process = orch.start(*words, start_new_session=True)
            if words[0] == "pods":
                _until(lambda: "Accepted publickey" in sshd.log.read_text())
            time.sleep(0.7)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err, err
        assert out == "" and time.monotonic() - began < 5


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
