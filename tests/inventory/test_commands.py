"""`orch pods ...` as a person has it: the real command against a real sshd."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.inventory import execute
from pods.inventory import load_inventory
from pods.transport.hostkeys import fingerprint
from pods.transport.local import LocalTransport
from tests.cli.conftest import Orch, Ran, make_run
from tests.inventory.conftest import MakeSshd, Terminal
from tests.lab.sshd import Sshd, make_key, public_key
from workloads.contract.config.inventory import PodSpec
from workloads.contract.rundir import OrchHome

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "errors"


def add(orch: Orch, name: str, sshd: Sshd, *more: str) -> Ran:
    line = (sshd.target, "-i", str(sshd.identity), "--fingerprint", fingerprint(sshd.host_key), *more)
    return orch("pods", "add", name, *line)


def golden(name: str, told: str, **places: object) -> None:
    """`told` with what differs from run to run taken out; ORCH_REGEN=1 writes it anew."""
    for word, value in places.items():
        told = told.replace(str(value), f"<{word}>")
    path = GOLDEN / f"pods_{name}.txt"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(told)
    assert told == path.read_text()


def test_a_person_types_yes(terminal: Callable[..., Terminal], sshd: Sshd, home: OrchHome) -> None:
    shell = terminal("pods", "add", "box", "ssh", "-p", str(sshd.port), "-i", str(sshd.identity), "root@127.0.0.1")
    said = shell.until("type yes")
    assert fingerprint(sshd.host_key) in said and f"127.0.0.1:{sshd.port}" in said
    assert not home.inventory.exists()  # nothing before the answer
    assert "Accepted" not in sshd.log.read_text() and "publickey" not in sshd.log.read_text()
    shell.type("yes\n")
    assert shell.end() == 0 and "box  added" in shell.said
    pod = load_inventory(home).pods["box"]
    assert (pod.ssh, pod.host_key, pod.identity) == (sshd.target, sshd.host_key, str(sshd.identity))


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_anything_but_yes_is_no(terminal: Callable[..., Terminal], sshd: Sshd, home: OrchHome, answer: str) -> None:
    shell = terminal("pods", "add", "box", sshd.target, "-i", str(sshd.identity))
    shell.until("type yes")
    shell.type(answer)
    assert shell.end() == 5 and "E-PODS-022" in shell.said and not home.inventory.exists()


def test_ctrl_c_at_the_question(terminal: Callable[..., Terminal], sshd: Sshd, home: OrchHome) -> None:
    shell = terminal("pods", "add", "box", sshd.target)
    shell.until("type yes")
    shell.process.send_signal(signal.SIGINT)
    assert shell.end() == 130 and not home.inventory.exists() and "Traceback" not in shell.said


def test_without_a_terminal_the_command_to_type_is_told(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    ran = orch("pods", "add", "box", f"ssh -p {sshd.port} root@127.0.0.1 -i {sshd.identity}")
    golden("01_key_unknown", ran.err, port=sshd.port, key=fingerprint(sshd.host_key), file=sshd.identity)
    assert ran.code == 5 and not home.inventory.exists()
    typed = ran.err.split("fix:   ")[1].split()
    again = orch(*typed[1:], "--json")
    assert again.code == 0 and again.json["created"] and again.json["error"] is None
    assert again.json["pod"]["fingerprint"] == fingerprint(sshd.host_key)


def test_another_key_than_the_given_one_is_refused_before_anything_is_shown_to_it(
    orch: Orch, make_sshd: MakeSshd, home: OrchHome
) -> None:
    one, two = make_sshd("one"), make_sshd("two")
    ran = orch("pods", "add", "box", one.target, "--fingerprint", fingerprint(two.host_key))
    golden("02_another_key", ran.err, port=one.port, seen=fingerprint(one.host_key), given=fingerprint(two.host_key))
    assert ran.code == 5 and not home.inventory.exists()
    assert "publickey" not in one.log.read_text()


def test_a_pod_that_does_not_let_us_in_is_kept(orch: Orch, sshd: Sshd, tmp_path: Path, home: OrchHome) -> None:
    sshd.allow(public_key(make_key(tmp_path / "other")))
    ran = add(orch, "box", sshd)
    assert ran.code == 5 and "E-SSH-024" in ran.err and "box" in load_inventory(home).pods
    sshd.allow(public_key(Path(str(sshd.identity))))
    assert orch("pods", "exec", "box", "--", "true").code == 0


def test_nobody_there(orch: Orch, home: OrchHome) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        ran = orch("pods", "add", "box", f"root@127.0.0.1:{s.getsockname()[1]}")
    assert ran.code == 4 and "refuses the connection" in ran.err and not home.inventory.exists()


@pytest.mark.long
def test_names_and_machines_that_are_there(orch: Orch, make_sshd: MakeSshd, home: OrchHome) -> None:
    one = make_sshd("one")
    assert add(orch, "box", one).code == 0
    places: dict[str, object] = {"port": one.port, "home": home.path, "key": fingerprint(one.host_key),
                                 "short": fingerprint(one.host_key)[7:19], "file": one.identity}  # fmt: skip
    same_name = add(orch, "box", one)
    golden("03_name_is_there", same_name.err, **places)
    by_address = add(orch, "two", one)
    golden("04_target_is_there", by_address.err, **places)
    by_key = orch("pods", "add", "two", f"root@localhost:{one.port}", "--fingerprint", fingerprint(one.host_key))
    golden("05_machine_is_there", by_key.err, **places)
    assert [same_name.code, by_address.code, by_key.code] == [6, 6, 6]
    assert add(orch, "box", one, "--if-missing").code == 0
    assert add(orch, "local", one).code == 2
    bad = add(orch, "Big Box", one)
    assert bad.code == 2 and "did you mean: big-box" in bad.err
    assert list(load_inventory(home).pods) == ["local", "box"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("06_bad_fingerprint", ("pods", "add", "x", "h", "--fingerprint", "abc")),
        ("07_no_target", ("pods", "add", "x")),
        ("08_option_that_is_none", ("pods", "add", "x", "h", "--identitty", "k")),
        ("09_jump", ("pods", "add", "x", "ssh", "-J", "j", "h")),
        ("10_port", ("pods", "add", "x", "ssh", "-p", "70000", "h")),
        ("11_unknown_pod", ("pods", "exec", "nope", "--", "true")),
        ("12_no_command", ("pods", "exec", "nope")),
        ("13_relative_root", ("pods", "add", "x", "h", "--root", "orch")),
        ("14_unknown_command", ("pods", "lst")),
        ("15_nothing_to_import", ("pods", "import")),
    ],
)
def test_blocks(orch: Orch, home: OrchHome, case: str, words: tuple[str, ...]) -> None:
    ran = orch(*words)
    assert ran.code in (2, 3) and ran.out == "" and "Traceback" not in ran.err
    golden(case, ran.err, home=home.path)


def test_a_changed_key_is_refused_and_pinned_anew_on_demand(
    orch: Orch, make_sshd: MakeSshd, terminal: Callable[..., Terminal], home: OrchHome
) -> None:
    one = make_sshd("one")
    assert add(orch, "box", one).code == 0
    assert orch("pods", "repin", "box").out == "box  shows the pinned key; nothing to do\n"
    port, old = one.port, one.host_key
    one.close()
    two = make_sshd("two", port=port, identity=one.identity)
    refused = orch("pods", "exec", "box", "--", "true")
    assert refused.code == 5 and fingerprint(old) in refused.err and fingerprint(two.host_key) in refused.err
    by_ssh = orch("pods", "ssh", "box", "--", "true")
    assert by_ssh.code == 255 and "publickey" not in two.log.read_text()  # OpenSSH refuses before authentication, too
    alone = orch("pods", "repin", "box")
    assert alone.code == 5 and "E-PODS-023" in alone.err
    shell = terminal("pods", "repin", "box")
    said = shell.until("type yes")
    assert fingerprint(old) in said and fingerprint(two.host_key) in said and "only if you rebuilt" in said
    shell.type("yes\n")
    assert shell.end() == 0
    assert load_inventory(home).pods["box"].host_key == two.host_key
    assert orch("pods", "exec", "box", "--", "true").code == 0


@pytest.mark.long
def test_import(orch: Orch, make_sshd: MakeSshd, person: Path, home: OrchHome) -> None:
    known, unknown = make_sshd("known"), make_sshd("unknown")
    config = "".join(
        f"Host {name}\n HostName 127.0.0.1\n Port {s.port}\n User {s.user}\n IdentityFile {s.identity}\n"
        for name, s in (("known", known), ("My_Box", unknown))
    )
    (person / ".ssh" / "config").write_text(config + "Host *\n  Compression no\n")
    (person / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{known.port} {known.host_key}\n")
    listed = orch("pods", "import", "--json").json["hosts"]
    assert [(h["name"], h["alias"], h["there"]) for h in listed] == [
        ("known", "known", False), ("pod-my-box", "My_Box", False),
    ]  # fmt: skip
    assert not home.inventory.exists()
    ran = orch("pods", "import", "*")
    assert ran.code == 5 and "known  added" in ran.out and "E-PODS-023" in ran.err
    assert list(load_inventory(home).pods) == ["local", "known"]
    ran = orch("pods", "import", "My*", "--fingerprint", fingerprint(unknown.host_key))
    assert ran.code == 0 and load_inventory(home).pods["pod-my-box"].ssh == "My_Box"
    assert orch("pods", "exec", "--all", "--", "true").code == 0
    assert orch("pods", "import", "nothing*").code == 2


def test_a_key_in_known_hosts_that_differs_is_shown(
    terminal: Callable[..., Terminal], make_sshd: MakeSshd, person: Path
) -> None:
    one, two = make_sshd("one"), make_sshd("two")
    (person / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{one.port} {two.host_key}\n")
    shell = terminal("pods", "add", "box", one.target)
    said = shell.until("type yes")
    assert fingerprint(two.host_key) in said and "ANOTHER key" in said
    shell.type("no\n")
    assert shell.end() == 5


def test_a_revoked_key_is_never_pinned(orch: Orch, make_sshd: MakeSshd, person: Path, home: OrchHome) -> None:
    """Neither by `import`, which takes what known_hosts has, nor by a fingerprint that was typed."""
    sshd, pinned = make_sshd("one"), make_sshd("two")
    config = f"Host box\n HostName 127.0.0.1\n Port {sshd.port}\n User {sshd.user}\n IdentityFile {sshd.identity}\n"
    (person / ".ssh" / "config").write_text(config)
    line = f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n"
    (person / ".ssh" / "known_hosts").write_text(f"{line}@revoked {line}")
    assert add(orch, "mine", pinned).code == 0
    listed = home.inventory.read_text()
    home.inventory.write_text(listed.replace(str(pinned.port), str(sshd.port)))  # the machine was rebuilt with that key
    before = home.inventory.read_text()
    told = ("--fingerprint", fingerprint(sshd.host_key))
    for words in (("import", "box"), ("import", "box", *told), ("repin", "mine", *told)):
        ran = orch("pods", *words)
        assert ran.code == 5 and "E-SSH-015" in ran.err and fingerprint(sshd.host_key) in ran.err, words
    assert orch("pods", "forget", "mine").code == 0
    assert add(orch, "box", sshd).code == 5
    assert list(load_inventory(home).pods) == ["local"] and sshd.host_key not in before
    assert "publickey" not in sshd.log.read_text()


@pytest.mark.long
def test_forget_names_the_runs(orch: Orch, sshd: Sshd, home: OrchHome) -> None:
    assert add(orch, "box", sshd).code == 0
    assert orch("pods", "ssh", "box", "--", "true").code == 0
    kept = home.cache / "known_hosts" / "box"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and sshd.host_key in kept.read_text()
    home.runs.mkdir(exist_ok=True)
    made = make_run(home)
    doc = json.loads(made.run.run_json.read_text())
    doc["pods"][0]["name"] = "box"
    made.run.run_json.write_text(json.dumps(doc))
    ran = orch("pods", "forget", "box")
    assert ran.code == 0 and made.run.run_id in ran.out and not kept.exists()
    assert orch("pods", "list", "--json").json["pods"][0]["name"] == "local"
    assert orch("pods", "forget", "box").code == 2 and orch("pods", "forget", "local").code == 2


ARGV = ["printf", "%s\\n", "a b", "", "$HOME", "`id`", "it's", 'say "x"', "; exit 9", "-n", "é\t|", "*", "a\nb"]


@pytest.mark.parametrize("verb", [("exec",), ("ssh",)])
def test_words_arrive_whole(orch: Orch, sshd: Sshd, verb: tuple[str, ...]) -> None:
    assert add(orch, "box", sshd).code == 0
    ran = orch("pods", *verb, "box", "--", *ARGV)
    assert ran.code == 0 and ran.out == "\n".join(ARGV[2:]) + "\n"
    assert orch("pods", *verb, "box", "--", "sh", "-c", "exit 7").code == 7


def test_a_command_that_this_machine_cannot_run_is_told(orch: Orch, tmp_path: Path) -> None:
    odd = tmp_path / "noformat"
    odd.write_text("hello\n")
    odd.chmod(0o700)
    ran = orch("pods", "exec", "local", "--", str(odd))
    assert ran.code == 126 and f"{odd}: Exec format error" in ran.err
    below = orch("pods", "exec", "local", "--", f"{odd}/x")
    assert below.code == 126 and "Not a directory" in below.err


def test_a_fault_of_orchs_own_is_told_for_the_pod_it_befell(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other pod has its answer; the exit code is the fault's."""
    local = LocalTransport()

    class Broken:
        transport = local

        def close(self) -> None:
            raise RuntimeError("close")

    class Well(Broken):
        def close(self) -> None:
            return

    monkeypatch.setattr(execute, "open_pod", lambda home, name, spec: Broken() if name == "a" else Well())
    said: list[execute.Outcome] = []
    pods = {"a": PodSpec(ssh="x@a"), "b": PodSpec(ssh="x@b")}
    outcomes = execute.execute(home, pods, ["true"], timeout_s=60.0, tell=said.append)
    assert sorted(o.pod for o in said) == ["a", "b"] and set(said) == set(outcomes)
    assert outcomes[0].error is not None and outcomes[0].error.code == "E-BUG-001" and outcomes[1].exit_code == 0
    assert execute.worst(outcomes) != 0


@pytest.mark.long
def test_several_pods_at_once(orch: Orch, make_sshd: MakeSshd) -> None:
    one, two = make_sshd("one"), make_sshd("two")
    assert add(orch, "one", one).code == 0 and add(orch, "two", two).code == 0
    ran = orch("pods", "exec", "one", "two", "--", "sh", "-c", "printf 'a\\033[31m\\n\\nb'; echo bad >&2; exit 3")
    assert ran.code == 3
    for name in ("one", "two"):
        mine = [line for line in ran.out.splitlines() if line.startswith(f"{name} | ")]
        assert mine == [f"{name} | a\\x1b[31m", f"{name} | ", f"{name} | b"]
        assert f"{name} | bad" in ran.err and f"{name} | exit code 3" in ran.err
    assert "\x1b[31m" in orch("pods", "exec", "one", "--raw", "--", "printf", "\x1b[31m").out
    two.close()
    rows = orch("pods", "exec", "--all", "--json", "--", "sh", "-c", "kill -9 $$")
    by_name = {row["pod"]: row for row in rows.json["pods"]}
    assert by_name["one"]["exit_code"] == -9 and by_name["two"]["error"]["code"].startswith("E-SSH")
    assert rows.code == 137
    assert orch("pods", "exec", "--all", "--", "true").code == 4  # the other is shown all the same


@pytest.mark.long
def test_a_command_that_takes_too_long(orch: Orch, sshd: Sshd) -> None:
    assert add(orch, "box", sshd).code == 0
    began = time.monotonic()
    ran = orch("pods", "exec", "box", "--timeout", "1", "--", "sleep", "60")
    assert ran.code == 4 and time.monotonic() - began < 15


@pytest.mark.long
def test_the_agent_is_never_forwarded(orch: Orch, sshd: Sshd, person: Path) -> None:
    (person / ".ssh" / "config").write_text("Host *\n  ForwardAgent yes\n  ForwardX11 yes\n")
    assert add(orch, "box", sshd).code == 0
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    values = dict(part.split("=", 1) for part in agent.replace("\n", ";").split(";") if "=" in part)
    try:
        env = {**orch.env(), "SSH_AUTH_SOCK": values["SSH_AUTH_SOCK"]}
        for verb in ("ssh", "exec"):
            process = orch.start("pods", verb, "box", "--", "sh", "-c", 'echo "[$SSH_AUTH_SOCK]"', env=env)
            out, _ = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "[]\n")
        assert "auth-agent-req" not in sshd.log.read_text()
    finally:
        os.kill(int(values["SSH_AGENT_PID"]), signal.SIGTERM)


@pytest.mark.long
def test_ssh_over_jump_hosts_accepts_pinned_keys_alone(
    orch: Orch, make_sshd: MakeSshd, person: Path, home: OrchHome
) -> None:
    jump = make_sshd("jump")
    pod = make_sshd("target", identity=jump.identity)
    (person / ".ssh" / "config").write_text(
        f"Host jump\n HostName 127.0.0.1\n Port {jump.port}\n User {jump.user}\n IdentityFile {jump.identity}\n"
        f"Host far\n HostName 127.0.0.1\n Port {pod.port}\n User {pod.user}\n IdentityFile {pod.identity}\n"
        " ProxyJump jump\n"
    )
    alone = orch("pods", "add", "far", "far")
    assert alone.code == 5 and fingerprint(jump.host_key) in alone.err  # the hop is asked about first
    assert "publickey" not in jump.log.read_text()
    both = ("--fingerprint", fingerprint(jump.host_key), "--fingerprint", fingerprint(pod.host_key))
    assert orch("pods", "add", "far", "far", *both).code == 0
    assert load_inventory(home).pods["far"].jump_keys == [jump.host_key]
    ran = orch("pods", "ssh", "far", "--", "echo", "there")
    assert (ran.code, ran.out) == (0, "there\n"), ran.err
    port = jump.port
    jump.close()
    other = make_sshd("other", port=port, identity=jump.identity)
    ran = orch("pods", "ssh", "far", "--", "echo", "there")
    assert ran.code == 255 and "publickey" not in other.log.read_text()


def test_forward(orch: Orch, sshd: Sshd) -> None:
    assert add(orch, "box", sshd).code == 0
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(10)
        process = orch.start("forward", "box", str(server.getsockname()[1]), "--json")
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60) as client:
            taken, _ = server.accept()
            with taken:
                client.sendall(b"ping")
                assert taken.recv(10) == b"ping"
                taken.sendall(b"pong")
                assert client.recv(10) == b"pong"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=2)


@pytest.mark.long
def test_forward_is_refused_when_it_cannot_be(orch: Orch, sshd: Sshd) -> None:
    assert add(orch, "box", sshd).code == 0
    assert orch("forward", "box", "70000").code == 2 and orch("forward", "local", "80").code == 2
    sshd.close()
    assert orch("forward", "box", "80").code == 4


def test_listing_needs_no_network_and_no_ssh(orch: Orch, sshd: Sshd) -> None:
    assert add(orch, "box", sshd).code == 0
    sshd.close()
    code = (
        "import sys\nfrom orchestrator.cli.main import main\nrc = main(['pods', 'list'])\n"
        "print([m for m in ('paramiko', 'fabric', 'ray', 'torch') if m in sys.modules], rc)"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], env=orch.env(), capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[] 0\n") and fingerprint(sshd.host_key)[7:15] in done.stdout
