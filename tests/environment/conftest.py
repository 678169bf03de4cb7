"""Real uv, a real wheelhouse of three small packages, and a pod that is a second process on this machine.

What is fetched is fetched once a session; every test has homes of its own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pods.environment.ensure import About, EnvResult, about, ensure_environment
from pods.environment.home import carried_uv
from pods.environment.pythons import LEFT_OUT, packed
from pods.environment.spec import EnvSpec, Platform, Requirements
from pods.environment.wheels import Wheel, wheelhouse
from pods.pod import FarPod, Pod
from pods.remote.env import _libc
from pods.transport.local import LocalTransport
from tests.lab.fixtures import make_lab  # noqa: F401
from workloads.contract.errors import LocalError
from workloads.contract.process import all_pids
from workloads.contract.rundir import OrchHome

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
PLATFORM = Platform(platform.machine(), *_libc())
THREE = ("idna", "iniconfig>=2", "packaging")


def spec_of(*lines: str, python: str = MINOR) -> EnvSpec:
    return EnvSpec(Requirements(lines), python, platform.machine(), _libc()[0])


def builders(root: Path) -> list[int]:
    """Builders of the pod whose home is `root`."""
    found = []
    for pid in all_pids():
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"\0{root}\0".encode() in argv and b"envbuild" in argv:
            found.append(pid)
    return found


@dataclass
class Bench:
    """This machine's home and a pod's, and the words that were said."""

    home: OrchHome
    root: Path
    pod: FarPod
    said: list[str] = field(default_factory=list)

    def ensure(self, spec: EnvSpec, *, offline: bool = True, pod: Pod | None = None) -> EnvResult:
        target = pod or self.pod
        return ensure_environment(target, about(target), spec, self.home, self.said.append, offline=offline)

    def another(self) -> FarPod:
        return FarPod("pod", LocalTransport(), root=str(self.root))

    def look(self, spec: EnvSpec) -> dict[str, Any]:
        return self.pod.call("env.look", {"hash": spec.hash}).fields

    def order(self, spec: EnvSpec, wheels: list[Wheel], **more: Any) -> dict[str, Any]:
        """The arguments of `env.start`, with the real uv at home as the pod's."""
        wanted = spec.requirements
        return {
            "hash": spec.hash, "python": spec.python, "lines": list(wanted.lines), "hashed": wanted.hashed,
            "constraints": list(wanted.constraints), "offline": True, "wheels": [w.row() for w in wheels],
            "uv": str(carried_uv(self.home, self.seen.platform, self.said.append)[0]), "attempt": "one", **more,
        }  # fmt: skip

    @property
    def seen(self) -> About:
        return about(self.pod)


@pytest.fixture(scope="session", autouse=True)
def _plain_path() -> Iterator[None]:
    """The pods of these tests find the interpreter of the tests first, and no version manager's scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).resolve().parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        yield


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds uv and the wheels of THREE."""
    root = tmp_path_factory.mktemp("fetched")
    home = OrchHome(root / "home")
    pod = FarPod("pod", LocalTransport(), root=str(root / "pod"))
    try:
        seen = about(pod)
        carried_uv(home, seen.platform, lambda _: None)
        wheelhouse(home, spec_of(*THREE), seen.platform, lambda _: None)
    except LocalError as e:
        if e.code == "E-ENV-050":
            pytest.skip(f"no package registry here: {e.value}")
        raise
    finally:
        pod.close()
    return home.cache


@pytest.fixture
def bench(tmp_path: Path, fetched: Path) -> Iterator[Bench]:
    home = OrchHome(tmp_path / "home")
    home.path.mkdir()
    shutil.copytree(fetched, home.cache, copy_function=os.link)
    for wheel in home.cache.glob("wheels/*/*.whl"):  # tests damage these: bytes of their own
        data = wheel.read_bytes()
        wheel.unlink()
        wheel.write_bytes(data)
    [uv] = home.cache.glob("uv/uv-*")
    there = tmp_path / "pod" / "bin" / "-".join(uv.name.split("-")[:2])
    there.parent.mkdir(parents=True)
    os.link(uv, there)  # sent already; a test that wants it sent removes it
    made = Bench(home, tmp_path / "pod", FarPod("pod", LocalTransport(), root=str(tmp_path / "pod")))
    yield made
    made.pod.close()
    for pid in builders(made.root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds this machine's own Python as a build, packed."""
    home = OrchHome(tmp_path_factory.mktemp("builds"))
    kind = "gnu" if PLATFORM.libc == "glibc" else "musl"
    version = platform.python_version()
    build = home.cache / "pythons" / f"cpython-{version}-linux-{PLATFORM.machine}-{kind}"
    base = Path(sys.base_prefix)
    if base == Path("/usr"):
        pytest.skip("this Python is the system's: no tree of its own to send")
    for part in ("bin", "lib", "include"):
        ignore = shutil.ignore_patterns(*LEFT_OUT, "*.pyc", "*.a", "config-*")
        shutil.copytree(base / part, build / part, symlinks=True, ignore=ignore)
    packed(home, MINOR, PLATFORM, lambda _: None)
    return home.cache
