"""A Python for a pod that has none: a relocatable build from here, sent and unpacked with nothing but a POSIX sh.

The builds are those of `uv python install`, kept as directories in `$ORCH_HOME/cache/pythons/<build>/` and packed once
(`pods.remote.pythonpack`) without tests, tools and caches. Without a Python on the pod none of orch's operations run
there, so `bring_to_bare` uses the transport alone: pieces put one by one (those that are there are not sent again), a
script that cuts the blob into files, the new Python checking every byte of itself, one rename. Needs there: sh, dd,
gzip, mkdir, mv, chmod, ln. Where a Python runs already `bring_python` does the same by operations.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pods.copy import push_file
from pods.environment.home import Say, own_uv, run_here
from pods.environment.spec import Platform
from pods.pod import Pod
from pods.remote import pythonpack
from pods.remote.pythonpack import BLOB, INDEX
from pods.transport.base import Result, Transport
from workloads.contract.errors import LocalError, RemoteError, escape
from workloads.contract.rundir import OrchHome

MINOR = "3.12"
PIECE_BYTES = 4 << 20
PIECE_S = 120.0
ASK_S = 20.0
UNPACK_S = 300.0
INSTALL_S = 1200.0
LEFT_OUT = frozenset({
    "test", "tests", "idlelib", "tkinter", "turtledemo", "__pycache__", "site-packages", "lib2to3", "share", "tcl8",
    "tcl8.6", "tk8.6", "tcl9.0", "tk9.0", "itcl4.3.4", "ensurepip", "pkgconfig",
})  # fmt: skip

_HOME = r"""
H=$1
case $H in
  "") H=$HOME/.orch ;;
  "~"|"~/"*) H=$HOME${H#"~"} ;;
esac
"""
_ASK = (
    _HOME
    + r"""
L=glibc V=$(getconf GNU_LIBC_VERSION 2>/dev/null); V=${V#glibc }
for f in /lib/ld-musl-*; do [ -e "$f" ] && [ -z "$V" ] && L=musl V=1.2; done
P=none
for c in "$H"/python/*/bin/python3; do [ -x "$c" ] && P=$c; done
printf '\nORCH-ASK %s|%s|%s|%s|%s\n' "$(uname -m)" "$L" "${V:-2.17}" "$H" "$P"
command -v gzip >/dev/null 2>&1 || printf 'ORCH-LACKS gzip\n'
for f in "$H/python/$2"/*; do [ -f "$f" ] && printf 'ORCH-HAS %s %s\n' "${f##*/}" "$(wc -c <"$f")"; done
exit 0
"""
)
_UNPACK = r"""
set -e; umask 077
D=$1 B=$2 N=$3
cd "$D"
T=../.new.$B.$$
trap 'rm -rf "$T" blob.$$' 0
trap 'exit 1' 1 2 15
mkdir "$T"
again() { rm -f piece.* index check.py; exit 1; }
cat piece.* | gzip -dc >blob.$$ || again
exec 3<blob.$$
while IFS=' ' read -r kind a b c; do
  case $kind in
    d) mkdir "$T/$a${b:+ $b}${c:+ $c}" ;;
    l) ln -s "$a" "$T/$b${c:+ $c}" ;;
    f|x) if [ "$a" = 0 ]; then : >"$T/$c"; else dd bs="$a" count=1 of="$T/$c" <&3 2>/dev/null; fi
       if [ "$kind" = x ]; then chmod 700 "$T/$c"; fi ;;
  esac
done <index
"$T/bin/python3" -I -S check.py "$T" index || again
"$T/bin/python3" -I -S -c 'import ssl, zlib, hashlib, ctypes, subprocess' ||
  { printf 'ORCH-BAD\n'; exit 1; }
[ -d "../$B" ] || mv "$T" "../$B"
cd ..; rm -rf "$D"
printf '\nORCH-DONE %s\n' "$PWD/$B/bin/python3"
"""


@dataclass(frozen=True)
class Pack:
    build: str
    folder: Path
    sha256: str  # over index and blob

    @property
    def size(self) -> int:
        return (self.folder / BLOB).stat().st_size


@dataclass(frozen=True)
class Bare:
    """A pod as a shell tells it."""

    platform: Platform
    home: PurePosixPath
    python: str | None
    lacks: tuple[str, ...]
    pieces: dict[str, int]


def bring_to_bare(transport: Transport, root: str | None, home: OrchHome, say: Say, *, minor: str = MINOR) -> str:
    """The Python that orch brought to this pod, brought now if it is missing. `home` is this machine's.

    RemoteError when the pod cannot run it or its disk is full; LocalError when no build can be had here.
    """
    bare = _ask(transport, root, "-")
    if bare.python is not None:
        return bare.python
    if bare.lacks:
        raise RemoteError(
            "E-ENV-070", f"pod {transport.name} has neither Python nor {bare.lacks[0]} to unpack one with",
            fix="install Python 3.11 or 3.12 there, or choose another image",
        )  # fmt: skip
    pack = packed(home, minor, bare.platform, say)
    incoming = f".incoming.{pack.sha256[:12]}"
    have = _ask(transport, root, incoming).pieces
    folder = bare.home / "python" / incoming
    say(f"sending Python {pack.build} ({pack.size / 1e6:.0f} MB)")
    for name, data in _pieces(pack):
        if have.get(name) != len(data):
            transport.put(data, folder / name, timeout_s=PIECE_S)
    say("unpacking Python")
    done = transport.run(["/bin/sh", "-c", _UNPACK, "sh", str(folder), pack.build, pack.sha256], timeout_s=UNPACK_S)
    return _unpacked(transport.name, done, pack)


def bring_python(pod: Pod, home: OrchHome, minor: str, platform: Platform, say: Say) -> str:
    """As `bring_to_bare` for a version that the pod lacks beside the one that it has."""
    pack = packed(home, minor, platform, say)
    folder = pod.home.path / "python" / f".incoming.{pack.sha256[:12]}"
    told = {"build": pack.build, "pack": str(folder)}
    found = pod.call("env.unpack", told, timeout_s=UNPACK_S).fields.get("python")
    if isinstance(found, str):
        return found
    say(f"sending Python {pack.build} ({pack.size / 1e6:.0f} MB)")
    for name in (INDEX, BLOB):  # the blob last: with it the pack is whole
        push_file(pod, pack.folder / name, str(folder / name))
    return str(pod.call("env.unpack", told, timeout_s=UNPACK_S).fields["python"])


def _ask(transport: Transport, root: str | None, incoming: str) -> Bare:
    done = transport.run(["/bin/sh", "-c", _ASK, "sh", root or "", incoming], timeout_s=ASK_S)
    lines = [x for x in done.stdout.splitlines() if x.startswith("ORCH-")]
    try:
        machine, libc, version, home, python = lines[0].removeprefix("ORCH-ASK ").split("|")
        major, minor = (int(x) for x in version.split(".")[:2])
        pieces = {w[1]: int(w[2]) for w in (x.split() for x in lines if x.startswith("ORCH-HAS "))}
    except (ValueError, IndexError) as e:
        raise RemoteError(
            "E-ENV-071", f"the shell of pod {transport.name} gives no answer that can be read",
            value=escape(done.stdout[-200:] + done.stderr[-200:]),
        ) from e  # fmt: skip
    lacks = tuple(x.split()[1] for x in lines if x.startswith("ORCH-LACKS "))
    found = None if python == "none" else python
    return Bare(Platform(machine, libc, (major, minor)), PurePosixPath(home), found, lacks, pieces)


def _pieces(pack: Pack) -> Iterator[tuple[str, bytes]]:
    yield "index", (pack.folder / INDEX).read_bytes()
    yield "check.py", Path(pythonpack.__file__).read_bytes()
    with (pack.folder / BLOB).open("rb") as f:
        number = 0
        while data := f.read(PIECE_BYTES):
            yield f"piece.{number:05d}", data
            number += 1


def _unpacked(pod: str, done: Result, pack: Pack) -> str:
    for line in done.stdout.splitlines():
        if line.startswith("ORCH-DONE "):
            return line.removeprefix("ORCH-DONE ")
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    reason = escape(said[-1]) if said else f"exit code {done.exit_code}"
    full = "o space left" in done.stderr
    raise RemoteError(
        "E-ENV-072", f"Python cannot be unpacked on pod {pod}" + (": its disk is full" if full else ""),
        value=reason, expected=f"a disk with space for {pack.build} that programs can be run from",
        fix="free some space there, or give the pod a `root` on another disk in pods.yaml",
    )  # fmt: skip


def packed(home: OrchHome, minor: str, platform: Platform, say: Say) -> Pack:
    """The pack of a build of that version for that platform; build and pack are made where they are missing."""
    kind = "gnu" if platform.libc == "glibc" else "musl"
    key = f"linux-{platform.machine}-{kind}"
    cache = home.cache / "pythons"
    found = _newest(cache, minor, key)
    if found is None:
        found = _install(home, minor, key, say)
    folder = cache / f"{found.name}.pack"
    if not (folder / INDEX).exists():
        say(f"packing {found.name}")
        _pack(found, folder)
    digest = hashlib.sha256((folder / INDEX).read_bytes() + (folder / BLOB).read_bytes()).hexdigest()
    return Pack(found.name, folder, digest)


def _newest(cache: Path, minor: str, key: str) -> Path | None:
    found = [p for p in cache.glob(f"cpython-{minor}.*-{key}") if (p / "bin" / "python3").exists()]
    return max(found, key=lambda p: [int(x) for x in p.name.split("-")[1].split(".") if x.isdigit()], default=None)


def _install(home: OrchHome, minor: str, key: str, say: Say) -> Path:
    cache = home.cache / "pythons"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    fix = f"install Python {minor} on the pod, or put a relocatable build into {cache}/cpython-{minor}.N-{key}/"
    uv = own_uv(home, say)
    if uv is None:
        what = "a Python for the pod cannot be fetched here: there is no uv, and it cannot be fetched either"
        raise LocalError("E-ENV-073", what, fix=f"pip install uv, or {fix}")
    say(f"fetching Python {minor}")
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new.") as scratch:
        argv = [str(uv), "python", "install", "--no-bin", "--install-dir", scratch, f"cpython-{minor}-{key}"]
        done = run_here(argv, INSTALL_S)
        found = _newest(Path(scratch), minor, key)
        if done.returncode != 0 or found is None:
            reason = " ".join(done.stdout.split())[-200:]
            raise LocalError("E-ENV-074", "a Python for the pod cannot be fetched here", value=reason, fix=fix)
        target = cache / found.name
        if not target.exists():
            found.rename(target)
    return target


def _pack(build: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new.") as scratch:
        lines = []
        with gzip.open(Path(scratch) / BLOB, "wb", compresslevel=6) as blob:
            for path in _travels(build):
                name = path.relative_to(build).as_posix()
                if path.is_symlink():
                    lines.append(f"l {path.readlink()} {name}")
                elif path.is_dir():
                    lines.append(f"d {name}")
                else:
                    data = path.read_bytes()
                    kind = "x" if os.access(path, os.X_OK) else "f"
                    lines.append(f"{kind} {len(data)} {hashlib.sha256(data).hexdigest()} {name}")
                    blob.write(data)
        text = "".join(f"{x}\n" for x in lines)
        list(pythonpack.rows(text))
        (Path(scratch) / INDEX).write_text(text)
        if folder.exists():
            shutil.rmtree(folder)
        Path(scratch).rename(folder)
        Path(scratch).mkdir()


def _travels(build: Path) -> Iterator[Path]:
    """What the interpreter, its library and compilers against it need; directories before what is in them."""
    for folder, folders, names in os.walk(build):
        folders[:] = sorted(f for f in folders if f not in LEFT_OUT and not f.startswith("config-"))
        here = Path(folder)
        for name in sorted([*folders, *names]):
            path = here / name
            wanted = path.is_dir() or (here.name != "bin" or name.startswith("python"))
            outside = path.is_symlink() and not path.resolve().is_relative_to(build.resolve())
            if wanted and not outside and path.suffix not in (".a", ".pyc") and "\n" not in name and " " not in name:
                yield path
