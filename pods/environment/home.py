"""What is carried to pods and how this machine gets it: uv for a platform, and a way to run pip. Cached by version.

Kept under `$ORCH_HOME/cache/uv/`. Nothing is fetched that the cache holds. Called by `ensure`, `wheels`, `pythons`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pods.environment.spec import Platform
from workloads.contract.errors import LocalError
from workloads.contract.rundir import OrchHome

Say = Callable[[str], None]
UV_WANTED = "uv>=0.9,<1"
FETCH_S = 600.0
_VERSION = re.compile(r"uv-(\d+(?:\.\d+)+)-(\w+)-(glibc|musl)")


def carried_uv(home: OrchHome, platform: Platform, say: Say) -> tuple[Path, str]:
    """(uv for a pod of that platform, its version), fetched once. LocalError when it cannot be had here."""
    cache = home.cache / "uv"
    cached = _cached(cache, platform)
    if cached is not None:
        return cached
    say("fetching uv")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new.") as scratch:
        tags = uv_tags(platform)
        argv = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", scratch, *tags, UV_WANTED]
        done = run_pip(home, argv, FETCH_S)
        wheel = next(Path(scratch).glob("uv-*.whl"), None)
        if done.returncode != 0 or wheel is None:
            raise LocalError(
                "E-ENV-050", "uv, which builds environments on pods, cannot be fetched here",
                value=_last(done.stdout), expected=f"a package registry that has {UV_WANTED} for {platform.machine}",
                fix="check this machine's network and pip's settings:  pip download uv --no-deps",
            )  # fmt: skip
        version = wheel.name.split("-")[1]
        target = cache / f"uv-{version}-{platform.machine}-{platform.libc}"
        _unpack_uv(wheel, Path(scratch) / "uv")
        (Path(scratch) / "uv").replace(target)
    return target, version


def uv_tags(platform: Platform) -> list[str]:
    kind = "manylinux_2_17" if platform.libc == "glibc" else "musllinux_1_1"
    return ["--platform", f"{kind}_{platform.machine}"]


def _cached(cache: Path, platform: Platform) -> tuple[Path, str] | None:
    found = []
    for path in cache.glob("uv-*"):
        m = _VERSION.fullmatch(path.name)
        if m and (m[2], m[3]) == (platform.machine, platform.libc):
            found.append((tuple(int(x) for x in m[1].split(".")), path, m[1]))
    return max(found)[1:] if found else None


def _unpack_uv(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith(".data/scripts/uv"))
        with z.open(name) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    target.chmod(0o700)


def own_uv(home: OrchHome, say: Say) -> Path | None:
    """A uv that runs on this machine: on PATH, or on Linux the one that pods get. None when there is none."""
    found = shutil.which("uv")
    if found:
        return Path(found)
    if sys.platform != "linux":
        return None
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "musl 1.2").partition(" ")
    major, minor = (int(x) for x in version.split(".")[:2])
    try:
        return carried_uv(home, Platform(os.uname().machine, name, (major, minor)), say)[0]
    except LocalError:
        return None


def run_pip(home: OrchHome, args: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """pip of this interpreter, or by a uv on PATH where it has none, as in uv's environments. LocalError without."""
    if importlib.util.find_spec("pip") is not None:
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    elif uv := shutil.which("uv"):
        argv = [uv, "tool", "run", "--from", "pip", "pip", "--disable-pip-version-check", "--no-input"]
    else:
        raise LocalError(
            "E-ENV-051", "neither pip nor uv is here to fetch packages with", where=sys.executable,
            fix=f"{sys.executable} -m ensurepip    or install uv",
        )  # fmt: skip
    return run_here([*argv, *args], timeout_s)


def run_here(argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A program of this machine; output and errors together. LocalError when it takes too long."""
    try:
        return subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise LocalError(
            "E-ENV-052",
            f"`{Path(argv[0]).name}` takes too long here",
            value=" ".join(argv),
            expected=f"{timeout_s:.0f} s",
        ) from e


def _last(text: str) -> str:
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    errors = [x for x in lines if x.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]
