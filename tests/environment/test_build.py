"""An environment is built once, whole or not at all: by uv on the pod, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from pods.environment.ensure import EnvResult
from pods.environment.home import carried_uv
from pods.environment.wheels import Wheel, push_wheels, wheelhouse
from pods.remote.envdir import EnvDir
from pods.remote.envsay import explain, harmless
from tests.environment.conftest import MINOR, THREE, Bench, builders, spec_of
from workloads.contract.errors import IntegrityError, OrchError, RemoteError, SpecError
from workloads.contract.process import environ_of
from workloads.contract.rundir import OrchHome

ROOT = Path(__file__).parents[2]
SPEC = spec_of(*THREE)


def LONG(value: str) -> ParameterSet:
    return pytest.param(value, marks=pytest.mark.long)


def until(what: object, *, timeout_s: float = 60.0) -> None:
    assert callable(what)
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def assert_whole(bench: Bench, result: EnvResult) -> None:
    """What a run relies on: it runs, has what was asked for, and the marker says so."""
    code = "import idna, iniconfig, packaging, platform; print(platform.python_version())"
    done = subprocess.run([result.python, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == result.marker["python"] and done.stdout.startswith(f"{MINOR}.")
    assert sorted(x.split("==")[0] for x in result.marker["freeze"]) == ["idna", "iniconfig", "packaging"]
    assert result.marker["size_bytes"] > 100_000 and result.marker["hash"] == result.hash
    assert sorted(p.name for p in (bench.root / "envs").iterdir() if p.is_dir()) == [result.hash]
    assert bench.look(SPEC)["state"] == "ready"


def wheels_of(bench: Bench) -> list[Wheel]:
    found = wheelhouse(bench.home, SPEC, bench.seen.platform, bench.said.append)
    push_wheels(bench.pod, found, lambda _: None)
    return found


def test_built_once_and_found_again(bench: Bench) -> None:
    shutil.rmtree(bench.root / "bin")
    first = bench.ensure(SPEC)
    assert first.built and {"uv", "fetch wheels", "send wheels", "build"} == {s for s, _ in first.stages}
    assert_whole(bench, first)
    again = bench.ensure(SPEC)
    assert not again.built and again.marker == first.marker
    assert again.seconds < 1.0
    rows = bench.pod.call("env.list").fields["envs"]
    assert [(r["hash"], r["state"], r["size_bytes"]) for r in rows] == [
        (SPEC.hash, "ready", first.marker["size_bytes"])
    ]
    assert bench.pod.call("env.remove", {"hash": SPEC.hash}).fields == {"removed": True}
    assert bench.look(SPEC)["state"] == "absent"


def test_from_the_pods_registry(bench: Bench) -> None:
    result = bench.ensure(SPEC, offline=False)
    assert_whole(bench, result)
    assert result.marker["offline"] is False and not (bench.root / "wheels").exists()


def test_two_at_once_build_one(bench: Bench) -> None:
    results: list[EnvResult] = []
    shutil.rmtree(bench.root / "bin")
    pods = [bench.another() for _ in range(3)]
    racers = [threading.Thread(target=lambda p=p: results.append(bench.ensure(SPEC, pod=p))) for p in pods]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    for pod in pods:
        pod.close()
    assert len(results) == 3, bench.said
    assert len({json.dumps(r.marker, sort_keys=True) for r in results}) == 1
    assert EnvDir(OrchHome(bench.root), SPEC.hash).beside("log").read_text().count("== installing") == 1
    assert_whole(bench, results[0])


@pytest.mark.parametrize("harm", [LONG("marker"), LONG("torn marker"), "package", LONG("interpreter")])
def test_what_is_damaged_is_built_anew(bench: Bench, harm: str) -> None:
    first = bench.ensure(SPEC)
    path = Path(first.python).parents[1]
    if harm == "marker":
        (path / "orch-env.json").unlink()
        (path / "half-written").write_text("x")
    elif harm == "torn marker":
        (path / "orch-env.json").write_bytes((path / "orch-env.json").read_bytes()[:40])
    elif harm == "package":
        shutil.rmtree(next(path.glob("lib/python*/site-packages/idna-*.dist-info")))
    else:
        (path / "bin" / "python").unlink()
    assert bench.look(SPEC)["state"] != "ready"
    again = bench.ensure(SPEC)
    assert again.built and not (path / "half-written").exists()
    assert_whole(bench, again)


def gate(bench: Bench, at: str) -> tuple[Path, Path]:
    """uv that stops once before its command `at` until it is let go; (the program, the file that says so)."""
    uv = carried_uv(bench.home, bench.seen.platform, bench.said.append)[0]
    reached = bench.home.path / "reached"
    program = bench.home.path / "uv"
    program.write_text(
        f'#!/bin/sh\nif [ "$1 $2" = "{at}" ] && mkdir {reached}.once; then touch {reached}\n'
        f"while [ -e {reached} ]; do sleep 0.02; done; fi\n"
        f'exec {uv} "$@"\n'
    )
    program.chmod(0o700)
    return program, reached


@pytest.mark.long
@pytest.mark.parametrize("at", [LONG("--version "), LONG("venv --no-project"), "pip install", LONG("pip check")])
def test_a_killed_builder_is_followed_by_another(bench: Bench, at: str) -> None:
    """kill -9 at every step: nothing of it lives on, nobody takes what it left for an environment."""
    program, reached = gate(bench, at)
    bench.pod.call("env.start", bench.order(SPEC, wheels_of(bench), uv=str(program)))
    until(reached.exists)
    assert bench.look(SPEC)["state"] == "building"
    [builder] = builders(bench.root)
    children = Path(f"/proc/{builder}/task/{builder}/children").read_text().split()
    os.kill(builder, signal.SIGKILL)
    until(lambda: bench.look(SPEC)["state"] == "lost")
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))
    assert_whole(bench, bench.ensure(SPEC))


def test_the_build_goes_on_without_who_asked_for_it(bench: Bench) -> None:
    program, reached = gate(bench, "pip install")
    bench.pod.call("env.start", bench.order(SPEC, wheels_of(bench), uv=str(program)))
    until(reached.exists)
    os.kill(int(bench.pod.hello["pid"]), signal.SIGKILL)
    bench.pod.close()
    [builder] = builders(bench.root)
    assert "ORCH_MARK" not in environ_of(builder)
    reached.unlink()
    bench.pod = bench.another()
    until(lambda: bench.look(SPEC)["state"] == "ready")
    result = bench.ensure(SPEC)
    assert not result.built
    assert_whole(bench, result)


def test_a_build_that_goes_on_is_waited_for(bench: Bench) -> None:
    program, reached = gate(bench, "pip install")
    bench.pod.call("env.start", bench.order(SPEC, wheels_of(bench), uv=str(program)))
    until(reached.exists)
    with pytest.raises(OrchError) as e:
        bench.pod.call("env.remove", {"hash": SPEC.hash})
    assert e.value.code == "E-ENV-021"
    threading.Timer(0.3, reached.unlink).start()
    result = bench.ensure(SPEC)
    assert result.built and f"environment {SPEC.hash} is being built already" in bench.said
    assert_whole(bench, result)


OPERATOR = """
import os, signal, sys
from pathlib import Path
import pods.copy, pods.environment.ensure as ensure
from pods.pod import FarPod
from pods.transport.local import LocalTransport
from tests.environment.conftest import THREE, spec_of
from workloads.contract.rundir import OrchHome
home, root, at = sys.argv[1:]
pods.copy.CHUNK_BYTES = 20_000
def die(): os.kill(os.getpid(), signal.SIGKILL)
def say(text):
    if text.startswith(at): die()
if at == "bytes":
    ensure.Meter.add = lambda self, n, seen=[0]: (seen.append(n), die() if len(seen) > 2 else None)
pod = FarPod("pod", LocalTransport(), root=root)
ensure.ensure_environment(pod, ensure.about(pod), spec_of(*THREE), OrchHome(Path(home)), say, offline=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("at", [LONG("sending uv"), LONG("sending 3 wheels"), "bytes", "building", LONG("making")])
def test_a_killed_operator_is_followed_by_another(bench: Bench, at: str) -> None:
    argv = [sys.executable, "-c", OPERATOR, str(bench.home.path), str(bench.root), at]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    if at != "making":  # the build may be faster than the second look
        assert done.returncode == -signal.SIGKILL, done.stderr
    if at == "bytes":
        assert list(bench.root.glob("wheels/.*.part")), "it was cut within a file"
    assert_whole(bench, bench.ensure(SPEC))
    assert not list(bench.root.glob("wheels/.*.part"))


def test_a_truncated_wheel_is_refused_before_it_is_sent(bench: Bench) -> None:
    wheel = next(bench.home.cache.glob("wheels/*/idna-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(IntegrityError) as e:
        bench.ensure(SPEC)
    assert e.value.code == "E-ENV-060"
    assert_whole(bench, bench.ensure(SPEC))


@pytest.mark.long
def test_a_wheel_that_was_damaged_on_the_pod_is_sent_again(bench: Bench) -> None:
    wheels = wheels_of(bench)
    there = bench.root / "wheels" / wheels[0].path.name
    data = bytearray(there.read_bytes())
    data[1000] ^= 1
    there.write_bytes(data)
    bench.pod.call("env.start", bench.order(SPEC, wheels))
    until(lambda: bench.look(SPEC)["state"] == "failed")
    assert bench.look(SPEC)["error"]["code"] == "E-ENV-040"
    assert_whole(bench, bench.ensure(SPEC))


def failure(bench: Bench, *lines: str, offline: bool = True) -> OrchError:
    with pytest.raises(OrchError) as e:
        bench.ensure(spec_of(*lines), offline=offline)
    assert not any(p.is_file() for p in bench.root.glob("envs/*/orch-env.json"))
    return e.value


@pytest.mark.long
def test_another_hash_is_refused_at_home_and_on_the_pod(bench: Bench) -> None:
    right = next(w.sha256 for w in wheels_of(bench) if w.path.name.startswith("iniconfig"))
    version = next(w.path.name for w in wheels_of(bench) if w.path.name.startswith("iniconfig")).split("-")[1]
    wrong = f"iniconfig=={version} --hash=sha256:{right[:-4]}{'0000' if right[-4:] != '0000' else '1111'}"
    at_home = failure(bench, wrong)
    assert isinstance(at_home, IntegrityError) and at_home.code == "E-ENV-031"
    on_pod = failure(bench, wrong, offline=False)
    assert isinstance(on_pod, IntegrityError) and on_pod.code == "E-ENV-031"
    good = bench.ensure(spec_of(f"iniconfig=={version} --hash=sha256:{right}"))
    assert good.marker["freeze"] == [f"iniconfig=={version}"]


def test_requirements_that_cannot_be_met(bench: Bench) -> None:
    on_pod = failure(bench, "iniconfig==99.0", offline=False)
    assert isinstance(on_pod, SpecError) and on_pod.code == "E-ENV-033"
    at_home = failure(bench, "iniconfig==99.0")
    assert isinstance(at_home, SpecError) and at_home.code == "E-ENV-061" and at_home.value == "iniconfig==99.0"


def test_no_registry_proposes_to_carry_the_wheels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    error = failure(bench, *THREE, offline=False)
    assert isinstance(error, RemoteError) and error.code == "E-ENV-035"
    assert "orch pods bootstrap pod --offline" in str(error.fix)
    assert "secret" not in error.render()


@pytest.mark.long
def test_pips_setting_of_the_registry_is_uvs_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    assert failure(bench, *THREE, offline=False).code == "E-ENV-035"


def test_a_uv_that_may_not_be_run_is_told(bench: Bench) -> None:
    program = bench.home.path / "uv"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o600)
    bench.pod.call("env.start", bench.order(SPEC, wheels_of(bench), uv=str(program)))
    until(lambda: bench.look(SPEC)["state"] == "failed")
    assert bench.look(SPEC)["error"]["code"] == "E-ENV-044"


def test_what_is_asked_is_checked(bench: Bench) -> None:
    for name, args in (("env.look", {"hash": "../../etc"}), ("env.start", {"hash": SPEC.hash}), ("env.gc", {})):
        with pytest.raises(RemoteError):
            bench.pod.call(name, args)
    with pytest.raises(RemoteError):
        bench.pod.call("env.unpack", {"build": "../x", "pack": "/tmp"})


@pytest.mark.parametrize(
    ("output", "exit_code", "code"),
    [
        ("error: Failed to fetch: `https://h/x/`\n  Caused by: dns error: failed to lookup address", 2, "E-ENV-035"),
        ("  × No solution found when resolving dependencies:\n  ╰─▶ Because x was not found", 1, "E-ENV-033"),
        ("error: Failed to install\n  Caused by: No space left on device (os error 28)", 2, "E-ENV-032"),
        ("  × Failed to build `flash-attn==2`\n  The build backend returned an error", 1, "E-ENV-034"),
        ("Resolved 3 packages", -9, "E-ENV-030"),
        ("thread panicked", 101, "E-ENV-036"),
        ("", 1, "E-ENV-036"),
    ],
)  # fmt: skip
def test_uvs_words_become_ours(output: str, exit_code: int, code: str) -> None:
    error = explain("installing", output, exit_code, log="/x.log", offline=False)
    assert error.code == code and error.where == "/x.log" and error.fix


def test_credentials_are_not_shown() -> None:
    assert harmless("at https://me:pw@host/simple and http://t@h") == "at https://***@host/simple and http://***@h"
