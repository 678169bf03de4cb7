"""Operations on the environments of this pod: what it is, have one built, look how far that is, list, remove.

A build is a process of its own (`pods.remote.envbuild`): it goes on when whoever asked for it is gone, and everybody
who asks for the same environment sees the same build.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pods.keeper.spawn import clean_env, spawn_detached
from pods.remote.dispatch import Answer, Operation, want
from pods.remote.envdir import EnvDir, pythons, size_of
from pods.remote.envgc import collect
from pods.remote.envsay import harmless, last_line
from pods.remote.pythonpack import BLOB, unpack_build
from workloads.contract.errors import ConflictError, RemoteError
from workloads.contract.files import atomic_write_json, read_tail, try_read_json
from workloads.contract.rundir import OrchHome

MAX_LOG_BYTES = 4 << 20
TAIL_BYTES = 16 << 10
PASSED = ("UV_", "PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_BUILD = "import sys; sys.path.insert(0, {root!r}); from pods.remote.envbuild import main; sys.exit(main(sys.argv[1:]))"


def about(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{} -> {machine, libc, libc_version, pythons, uv, free_bytes}: what an environment depends on."""
    libc, version = _libc()
    free = os.statvfs(home.path if home.path.exists() else Path.home())
    return Answer({
        "machine": platform.machine(), "libc": libc, "libc_version": list(version),
        "pythons": [list(row) for row in pythons(home)], "uv": shutil.which("uv"),
        "free_bytes": free.f_bavail * free.f_frsize,
    })  # fmt: skip


def _libc() -> tuple[str, tuple[int, int]]:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor, *_rest = version.split(".")
    except (ValueError, OSError):
        return "musl", (1, 2)
    else:
        return name, (int(major), int(minor))


def start(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash, attempt, python, lines, constraints, hashed, offline, wheels, uv} -> {state, started}

    ready, or building: by this call (started) or an earlier one. `attempt`: any word that tells this try from others.
    """
    env = EnvDir(home, want(args, "hash", str))
    order = {
        "v": 1, "hash": env.hash, "python": want(args, "python", str), "lines": want(args, "lines", list),
        "constraints": want(args, "constraints", list), "hashed": want(args, "hashed", bool),
        "offline": want(args, "offline", bool), "wheels": want(args, "wheels", list), "uv": want(args, "uv", str),
    }  # fmt: skip
    attempt = want(args, "attempt", str)
    with env.locked() as lock:
        if lock is None:
            return Answer({"state": "building", "started": False})
        if env.ready() is not None:
            return Answer({"state": "ready", "started": False})
        atomic_write_json(env.beside("order.json"), order)
        if env.beside("log").exists() and env.beside("log").stat().st_size > MAX_LOG_BYTES:
            env.beside("log").unlink()
    passed = {k: v for k, v in os.environ.items() if k.upper().startswith(PASSED)}
    root = str(Path(__file__).resolve().parents[2])
    argv = [sys.executable, "-I", "-S", "-c", _BUILD.format(root=root), str(home.path), env.hash, attempt]
    spawn_detached(sys.executable, argv, env=clean_env(os.environ, **passed), log=env.beside("log"))
    return Answer({"state": "building", "started": True})


def look(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash, use} -> {state, stage, line, seconds, attempt, error, log, marker}. `use`: it is wanted now, told to `gc`.

    ready: whole and verified cheaply. building: its builder lives. failed: `error` says why. lost: the builder is
    gone and has not said how it ended (killed, or the pod was started anew). absent: nobody has built it.
    """
    env = EnvDir(home, want(args, "hash", str))
    marker = env.ready()
    state = try_read_json(env.beside("state.json")) or {}
    if marker is not None:
        word = "ready"
        if args.get("use") is True:
            os.utime(env.marker)
    elif env.busy():
        word = "building"
    elif state.get("state") == "failed":
        word = "failed"
    else:
        word = "lost" if state else "absent"
    said = read_tail(env.beside("out"), TAIL_BYTES) or read_tail(env.beside("log"), TAIL_BYTES)
    text = harmless(said.decode(errors="replace"))
    began = state.get("started")
    return Answer({
        "state": word, "stage": str(state.get("stage", "")), "line": last_line(text), "tail": text,
        "seconds": time.time() - began if isinstance(began, int | float) else 0.0,
        "attempt": str(state.get("attempt", "")), "error": state.get("error") if word == "failed" else None,
        "log": str(env.beside("log")), "path": str(env.path), "python": str(env.python), "marker": marker,
    })  # fmt: skip


def listing(home: OrchHome, _: Mapping[str, Any], __: bytes) -> Answer:
    """{} -> {envs: [{hash, state, size_bytes, python, built}]}"""
    rows = []
    for path in sorted(home.envs.glob("[0-9a-f]" * 16)):
        env = EnvDir(home, path.name)
        marker = env.ready()
        state = "ready" if marker is not None else "building" if env.busy() else "broken"
        size = marker["size_bytes"] if marker is not None else size_of(path)
        rows.append({
            "hash": env.hash, "state": state, "size_bytes": size, "path": str(path),
            "python": (marker or {}).get("python"), "built": (marker or {}).get("built"),
        })  # fmt: skip
    return Answer({"envs": rows})


def remove(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash} -> {removed}. ConflictError while it is being built. Runs that use it are not looked at, as by `gc`."""
    env = EnvDir(home, want(args, "hash", str))
    with env.locked() as lock:
        if lock is None:
            raise ConflictError("E-ENV-021", "the environment is being built", where=str(env.path))
        there = env.path.exists()
        env.remove()
        for suffix in ("state.json", "order.json", "log", "out"):
            env.beside(suffix).unlink(missing_ok=True)
    return Answer({"removed": there})


def unpack(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{build, pack} -> {python}: a build of Python, there or made of the pack that was sent; null without either."""
    build, pack = want(args, "build", str), Path(want(args, "pack", str))
    if "/" in build or build.startswith("."):
        raise RemoteError("E-ENV-022", "that is no name of a build of Python", value=build)
    there = os.access(home.pythons / build / "bin" / "python3", os.X_OK)
    if not there and not (pack / BLOB).exists():
        return Answer({"python": None})
    python = unpack_build(home, build, pack)
    if pack.parent == home.pythons and pack.name.startswith(".incoming."):
        shutil.rmtree(pack, ignore_errors=True)
    return Answer({"python": str(python)})


def gc(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{older_s, dry_run} -> {items: [{kind, path, size_bytes, age_s}], kept}: what is (or would be) removed."""
    older = args.get("older_s")
    if not isinstance(older, int | float) or isinstance(older, bool) or older < 0:
        raise RemoteError("E-POD-014", "an operation needs older_s as a number", value=repr(older)[:80])
    items, kept = collect(home, float(older), dry_run=want(args, "dry_run", bool))
    return Answer({"items": items, "kept": kept})


OPERATIONS: Mapping[str, Operation] = {
    "about": about, "start": start, "look": look, "list": listing, "remove": remove, "unpack": unpack, "gc": gc,
}  # fmt: skip
