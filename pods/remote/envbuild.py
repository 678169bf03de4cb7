"""The process that builds one environment on this pod: `main([home, hash, attempt])`, detached, with a log of its own.

It holds `envs/<hash>.lock`, and so does every uv it starts: while either lives nobody else touches the directory. What
it does is the order's; how far it is stands in the state file; the marker in the environment is written last, so one
that was cut at any point is built anew. Started by `pods.remote.env`; nothing waits for it but by looking.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pods.remote.envdir import EnvDir, digest, distributions, pythons, size_of
from pods.remote.envsay import explain
from pods.remote.files import sha256_of
from pods.remote.wire import error_row
from workloads.contract.errors import IntegrityError, OrchError, RemoteError
from workloads.contract.files import atomic_write, atomic_write_json, fsync_dir, read_json
from workloads.contract.rundir import OrchHome

INSTALL_S = 7200.0
STAGE_S = 900.0
PR_SET_PDEATHSIG = 1
MAX_OUTPUT_BYTES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_VERSIONS = "import platform,sys;print(platform.python_version(), sys.prefix)"


class Builder:
    def __init__(self, env: EnvDir, attempt: str, lock: int) -> None:
        self.env, self.attempt, self.lock = env, attempt, lock
        self.order = read_json(env.beside("order.json"))
        self.began, self.stage = time.time(), ""
        self.log = env.beside("log")
        self.offline = self.order.get("offline") is True

    def tell(self, stage: str, state: str = "building", **more: Any) -> None:
        """The state file; the newest stage is the last line of the log as well."""
        self.stage = stage
        if state == "building":
            print(f"== {stage}", file=sys.stderr, flush=True)
        row = {"v": 1, "attempt": self.attempt, "state": state, "stage": stage, "started": self.began, **more}
        atomic_write_json(self.env.beside("state.json"), row, durable=False)

    def build(self) -> None:
        """From nothing to an environment with its marker. OrchError says which stage failed and why."""
        self.tell("removing what an earlier attempt left")
        self.env.remove()
        uv = str(self.order["uv"])
        self.tell("starting uv")
        version = self.run([uv, "--version"], STAGE_S).strip()
        if self.offline:
            self.tell("checking the wheels")
            self.check_wheels()
        self.tell(f"making an environment of Python {self.order['python']}")
        self.make_venv(uv)
        self.tell("installing")
        self.install(uv)
        self.tell("verifying")
        python = self.verify(uv)
        self.tell("measuring")
        self.finish(python, version)

    def check_wheels(self) -> None:
        for name, size, sha256 in self.order["wheels"]:
            path = self.wheels / name
            if not path.is_file() or path.stat().st_size != size or sha256_of(path) != sha256:
                raise IntegrityError(
                    "E-ENV-040", "a wheel on the pod is missing or damaged", where=str(path), expected=sha256[:16],
                    fix="orch pods bootstrap NAME --offline   (sends it again)",
                )  # fmt: skip
            os.utime(path)  # in use: `gc` goes by this

    def make_venv(self, uv: str) -> None:
        minor = str(self.order["python"])
        found = pythons(self.env.home, minor)
        if not found and self.offline:
            raise RemoteError("E-ENV-041", f"there is no Python {minor} on the pod", fix="orch pods bootstrap NAME")
        wanted = found[0][0] if found else minor
        self.run([uv, "venv", "--no-project", "--python", wanted, str(self.env.path)], STAGE_S)

    def install(self, uv: str) -> None:
        argv = [uv, "pip", "install", "--python", str(self.env.python), *self.sources()]
        self.run([*argv, *(["--require-hashes"] if self.order["hashed"] else [])], INSTALL_S)

    def sources(self) -> list[str]:
        """Requirement and constraint files for uv; offline the very wheels that were carried here."""
        lines, constraints = list(self.order["lines"]), list(self.order["constraints"])
        if self.offline:
            lines = [x for x in lines if not x.startswith("-")]
            constraints += [f"{n}=={v}" for n, v, *_ in (str(w[0]).split("-") for w in self.order["wheels"])]
        argv = ["-r", str(self._file("requirements.txt", lines))]
        argv += ["-c", str(self._file("constraints.txt", constraints))] if constraints else []
        return argv + (["--offline", "--no-index", "--find-links", str(self.wheels)] if self.offline else [])

    def _file(self, name: str, lines: Sequence[str]) -> Path:
        path = self.env.path / f"orch-{name}"
        atomic_write(path, "".join(f"{x}\n" for x in lines).encode())
        return path

    @property
    def wheels(self) -> Path:
        return self.env.home.path / "wheels"

    def verify(self, uv: str) -> str:
        """The version of its Python. RemoteError when it is not what was asked for."""
        python = str(self.env.python)
        found = self.run([python, "-I", "-c", _VERSIONS], STAGE_S).split(maxsplit=1)
        if len(found) != 2 or not found[0].startswith(f"{self.order['python']}."):
            raise RemoteError(
                "E-ENV-042", "the environment's Python is another", value=found, expected=self.order["python"]
            )
        self.run([uv, "pip", "check", "--python", python], STAGE_S)
        plain = [x for x in self.order["lines"] if not x.startswith("-")]
        wanted = self._file("wanted.txt", [x.partition(" --hash=")[0] for x in plain])
        argv = [uv, "pip", "install", "--python", python, "--offline", "--no-index", "--dry-run", "-r", str(wanted)]
        said = self.run(argv, STAGE_S)
        if "Would make no changes" not in said:
            raise RemoteError("E-ENV-043", "not all that is required was installed", where=str(self.log), value=said)
        return found[0]

    def finish(self, python: str, uv: str) -> None:
        names = distributions(self.env.path)
        freeze = ["==".join(n.removesuffix(".dist-info").rsplit("-", 1)) for n in names]
        marker = {
            "v": 1, "hash": self.env.hash, "python": python, "machine": platform.machine(), "uv": uv,
            "lines": self.order["lines"], "constraints": self.order["constraints"], "offline": self.offline,
            "freeze": freeze, "freeze_sha256": digest(freeze), "dists_sha256": digest(names),
            "size_bytes": size_of(self.env.path), "built": time.time(), "seconds": round(time.time() - self.began, 3),
        }  # fmt: skip
        _sync(self.env.path)  # what uv wrote must be on the disk before the marker says so
        atomic_write_json(self.env.marker, marker)
        fsync_dir(self.env.home.envs)

    def run(self, argv: Sequence[str], timeout_s: float) -> str:
        """Its standard output and error, which go to the log too. Its end is ours: it dies with this process."""
        me = os.getpid()

        def die_with_me() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != me:
                os._exit(1)

        out = self.env.beside("out")
        with out.open("w+b") as said:
            try:
                code = self._wait(argv, timeout_s, said, die_with_me)
            except PermissionError as e:
                raise RemoteError(
                    "E-ENV-044", f"{argv[0]} may not be run on the pod", where=argv[0], value=e.strerror,
                    expected="a disk that programs can be run from (not mounted noexec)",
                    fix="give the pod a `root` on another disk in pods.yaml",
                ) from e  # fmt: skip
            said.seek(0)
            raw = said.read(MAX_OUTPUT_BYTES).decode(errors="replace")
        print(raw, end="" if raw.endswith("\n") or not raw else "\n", file=sys.stderr, flush=True)
        out.unlink(missing_ok=True)
        if code != 0:
            raise explain(self.stage, raw, code, log=str(self.log), offline=self.offline)
        return raw

    def _wait(self, argv: Sequence[str], timeout_s: float, said: IO[bytes], prepare: Any) -> int:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd="/",
            env=uv_env(os.environ, self.env.home, offline=self.offline), preexec_fn=prepare, pass_fds=(self.lock,),
        )  # fmt: skip
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired as e:
            raise RemoteError(
                "E-ENV-045", f"{self.stage} takes too long on the pod", where=str(self.log),
                expected=f"{timeout_s:.0f} s",
                fix=f"read {self.log} on the pod, and run it again: what was fetched is kept",
            ) from e  # fmt: skip
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _sync(path: Path) -> None:
    """Write out the file system that `path` is on, syncfs(2), and no other."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def uv_env(environ: Mapping[str, str], home: OrchHome, *, offline: bool) -> dict[str, str]:
    """What uv is run with: the pod's settings for registries, pip's where uv has none of its own, and orch's places."""
    env = {k: v for k, v in environ.items() if not (offline and k.startswith("UV_") and ("INDEX" in k or "LINKS" in k))}
    if not offline:
        for theirs, ours, also in (
            ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
            ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
            ("PIP_CERT", "SSL_CERT_FILE", "SSL_CERT_FILE"),
        ):
            if env.get(theirs) and not (env.get(ours) or env.get(also)):
                env[ours] = env[theirs]
    env.setdefault("UV_CACHE_DIR", str(home.cache / "uv-cache"))
    env.setdefault("UV_PYTHON_INSTALL_DIR", str(home.pythons))
    env.setdefault("UV_PYTHON_DOWNLOADS", "never" if offline else "automatic")
    return env | {"UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def main(argv: Sequence[str]) -> int:
    os.umask(0o077)
    env = EnvDir(OrchHome(Path(argv[0])), argv[1])
    with env.locked() as lock:
        if lock is None or env.ready() is not None:
            return 0  # another builder was faster
        builder = Builder(env, argv[2], lock)
        try:
            builder.build()
        except OrchError as e:
            builder.tell(builder.stage, "failed", ended=time.time(), error=error_row(e))
        except Exception as e:  # the state must say so: nobody else sees a traceback of a detached process
            error = RemoteError("E-ENV-046", f"{builder.stage} failed: {type(e).__name__}: {e}", where=str(builder.log))
            builder.tell(builder.stage, "failed", ended=time.time(), error=error_row(error))
            raise
        else:
            builder.tell("ready", "ready", ended=time.time())
            return 0
    return 1
