"""A wheelhouse for a pod without network: made here for its Python, machine and C library, known by the requirements.

`$ORCH_HOME/cache/wheels/<hash of spec and platform>/` holds the wheels and, written last, `wheelhouse.json`. Versions
are settled by uv for the pod's platform, so that markers mean the pod and not this machine; pip then fetches exactly
those. Where uv cannot settle them (a registry that only pip is told of), pip does both. Called by `ensure`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pods.copy import push_file
from pods.environment.home import Say, own_uv, run_here, run_pip
from pods.environment.spec import EnvSpec, Platform
from pods.pod import Pod
from workloads.contract.errors import IntegrityError, LocalError, SpecError
from workloads.contract.files import atomic_write_json, try_read_json
from workloads.contract.rundir import OrchHome

RESOLVE_S = 600.0
FETCH_S = 7200.0
NEWEST_KNOWN_GLIBC = 40  # of uv's --python-platform
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Wheel:
    path: Path
    size: int
    sha256: str

    def row(self) -> list[object]:
        return [self.path.name, self.size, self.sha256]


def wheelhouse(home: OrchHome, spec: EnvSpec, platform: Platform, say: Say) -> list[Wheel]:
    """The wheels that `spec` needs on `platform`, from the cache or fetched. SpecError for what has no wheel."""
    key = hashlib.sha256(f"{spec.hash} {platform.libc} {platform.version}".encode()).hexdigest()[:16]
    target = home.cache / "wheels" / key
    found = _read(target)
    if found is not None:
        return found
    say("fetching wheels")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new.") as scratch:
        folder = Path(scratch) / "house"
        folder.mkdir()
        _fetch(home, spec, platform, folder, Path(scratch), say)
        rows = [Wheel(p, p.stat().st_size, _sha256(p)) for p in sorted(folder.glob("*.whl"))]
        atomic_write_json(folder / "wheelhouse.json", {"v": 1, "spec": spec.hash, "wheels": [w.row() for w in rows]})
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    return [Wheel(target / w.path.name, w.size, w.sha256) for w in rows]


def push_wheels(pod: Pod, wheels: Sequence[Wheel], on_bytes: OnBytes) -> None:
    """Into `$ORCH_HOME/wheels/` there; what is there already is not sent. IntegrityError for a damaged one here."""
    folder = pod.home.path / "wheels"
    for wheel in wheels:
        if not wheel.path.is_file() or wheel.path.stat().st_size != wheel.size or _sha256(wheel.path) != wheel.sha256:
            shutil.rmtree(wheel.path.parent, ignore_errors=True)
            raise IntegrityError(
                "E-ENV-060", "a wheel in this machine's cache is damaged; the cache of these wheels was removed",
                where=str(wheel.path), expected=f"{wheel.size} bytes, sha256 {wheel.sha256[:16]}",
                fix="run it again: they are fetched anew",
            )  # fmt: skip
        push_file(pod, wheel.path, str(folder / wheel.path.name), on_bytes=on_bytes)


def _read(target: Path) -> list[Wheel] | None:
    rows = (try_read_json(target / "wheelhouse.json") or {}).get("wheels")
    if not isinstance(rows, list):
        return None
    return [Wheel(target / str(n), int(size), str(sha256)) for n, size, sha256 in rows]


def _fetch(home: OrchHome, spec: EnvSpec, platform: Platform, folder: Path, scratch: Path, say: Say) -> None:
    wanted, bounds = scratch / "requirements.txt", scratch / "constraints.txt"
    wanted.write_text("".join(f"{x}\n" for x in spec.requirements.lines))
    bounds.write_text("".join(f"{x}\n" for x in spec.requirements.constraints))
    argv = ["download", "--quiet", "--only-binary=:all:", "-d", str(folder), *_tags(spec, platform)]
    extra = home.cache / "wheels" / "extra"
    links = ["--find-links", str(extra)] if extra.is_dir() else []
    if spec.requirements.hashed:
        argv += ["--no-deps", "--require-hashes", "-r", str(wanted)]
    elif (settled := _settle(home, spec, platform, wanted, bounds, scratch, links, say)) is not None:
        argv += ["--no-deps", "-r", str(settled)]
    else:
        argv += ["-r", str(wanted), "-c", str(bounds)]
    done = run_pip(home, [*argv, *links], FETCH_S)
    if done.returncode != 0:
        raise _failed(done.stdout, extra, spec, platform)


def _settle(
    home: OrchHome, spec: EnvSpec, platform: Platform, wanted: Path, bounds: Path, scratch: Path, links: list[str],
    say: Say,
) -> Path | None:  # fmt: skip
    """Every package and its version as uv resolves them for the pod; None where it cannot."""
    uv = own_uv(home, say)
    target = scratch / "settled.txt"
    name = uv_platform(platform)
    if uv is not None and name is not None:
        argv = [str(uv), "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--emit-index-url", str(wanted)]
        argv += ["-c", str(bounds), "--only-binary", ":all:", "--python-version", spec.python]
        argv += ["--python-platform", name, "--no-python-downloads", "-o", str(target), *links]
        done = run_here(argv, RESOLVE_S)
        if done.returncode == 0:
            return target
        reason = " ".join(done.stdout.split())[:200]
    else:
        reason = "no uv here for it"
    if sys.platform != "linux" or f"{sys.version_info[0]}.{sys.version_info[1]}" != spec.python:
        say(f"versions are settled for this machine's Python and may lack packages of the pod's ({reason})")
    return None


def uv_platform(platform: Platform) -> str | None:
    """What uv calls it; a glibc that uv does not know yet is taken for the newest that it does. None for others."""
    major, minor = platform.version
    if platform.libc == "musl":
        return f"{platform.machine}-unknown-linux-musl"
    if major != 2 or minor < 17:
        return None
    known = [17, 28, *range(31, NEWEST_KNOWN_GLIBC + 1)]
    return f"{platform.machine}-manylinux_2_{max(x for x in known if x <= minor)}"


def _tags(spec: EnvSpec, platform: Platform) -> list[str]:
    """pip's options for a pod's interpreter: every platform tag that it takes, newest first."""
    names = [*platform_tags(platform), f"linux_{platform.machine}"]
    version = spec.python
    options = ["--python-version", version, "--implementation", "cp"]
    return options + [x for name in names for x in ("--platform", name)]


def platform_tags(platform: Platform) -> Iterator[str]:
    """As in PEP 600 and PEP 656."""
    major, minor = platform.version
    if platform.libc == "musl":
        yield from (f"musllinux_{major}_{k}_{platform.machine}" for k in range(minor, -1, -1))
        return
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    for k in range(minor, 4, -1):
        yield f"manylinux_{major}_{k}_{platform.machine}"
        if k in old:
            yield f"{old[k]}_{platform.machine}"


def _failed(output: str, extra: Path, spec: EnvSpec, platform: Platform) -> Exception:
    lines = [x.strip() for x in output.splitlines() if x.strip().startswith("ERROR")] or [output.strip()[-300:]]
    if "HASHES" in output or "hash" in lines[-1].lower():
        return IntegrityError(
            "E-ENV-031", "a package is not the one that the requirements give the hash of", value=lines[0],
            fix="find out why before you change the hash: a package of the same version never changes",
        )  # fmt: skip
    m = re.search(r"No matching distribution found for ([^\s(]+)", output)
    if m:
        libc = f"{platform.libc} {'.'.join(map(str, platform.version))}"
        return SpecError(
            "E-ENV-061", f"{m[1]} has no wheel for the pod", value=m[1],
            expected=f"a wheel for Python {spec.python}, {platform.machine}, {libc}",
            fix=f"pin a version that has one, or put a wheel that you built into {extra}",
        )  # fmt: skip
    return LocalError(
        "E-ENV-062", "the wheels for the pod cannot be fetched here", value=lines[-1],
        fix="check this machine's network and pip's settings",
    )  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
