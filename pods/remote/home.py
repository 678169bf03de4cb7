"""Operations on a pod's `$ORCH_HOME` and login: which interpreters, which of orch's trees, which environment."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pods.remote.dispatch import Answer, Operation, want
from workloads.contract.errors import RemoteError
from workloads.contract.rundir import OrchHome

INTERPRETER_S = 20.0
LOGIN_KEYS = ("HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "SHELL", "TMPDIR")
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_ASK = """
import importlib.metadata as m, importlib.util as u, json, platform
def of(name):
    try: return m.version(name) if u.find_spec(name) else None
    except m.PackageNotFoundError: return None
has_torch = u.find_spec("torch") is not None
print("\\n" + json.dumps([platform.python_version(), of("ray"), has_torch, of("torch"), of("triton")]))
"""


def login_env(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a login a rank gets: where home is, who it is, the language, the search path. Nothing else leaks in."""
    env = {k: environ[k] for k in LOGIN_KEYS if environ.get(k)}
    env.setdefault("HOME", str(Path.home()))
    env.setdefault("USER", user_name())
    env.setdefault("LOGNAME", env["USER"])
    env["PATH"] = environ.get("PATH") or DEFAULT_PATH
    return env


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a uid without a name, as in many containers
        return str(os.getuid())


def interpreter(python: str) -> dict[str, Any]:
    """{path, version, ray, torch, torch_version, triton_version}: asked of the interpreter itself.

    version "" for one that cannot be run; `torch`: whether there is one; None for what is not there.
    """
    path = os.path.expanduser(python) if "/" in python else shutil.which(python) or python  # noqa: PTH111  links kept
    path = os.path.abspath(path) if "/" in path else path  # noqa: PTH100  a venv is known by the path of its link
    row: dict[str, Any] = {"path": path, "version": "", "ray": None, "torch": False}
    names = ("ray", "torch_version", "triton_version")
    try:
        done = subprocess.run(
            [path, "-s", "-c", _ASK], stdin=subprocess.DEVNULL, capture_output=True, timeout=INTERPRETER_S, check=True
        )
        version, ray, torch, *versions = json.loads(done.stdout.strip().rpartition(b"\n")[2])
    except (OSError, ValueError, TypeError, subprocess.SubprocessError):
        return row
    found = {k: v if isinstance(v, str) else None for k, v in zip(names, (ray, *versions), strict=True)}
    return {**row, "version": str(version), **found, "torch": torch is True}


def look(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{pythons, run} -> {env, uid, pythons: {as asked: interpreter}, run: {there}}: for a plan, in one round."""
    pythons = {str(p): interpreter(str(p)) for p in want(args, "pythons", list)}
    run = home.run(want(args, "run", str))
    there = {"there": run.run_json.exists()}
    return Answer({"env": login_env(os.environ), "uid": os.getuid(), "pythons": pythons, "run": there})


def tree(home: OrchHome, args: Mapping[str, Any], _: bytes) -> Answer:
    """{hash} -> {path, there}: whether orch's own tree of this hash lies here. Asking for it is a use of it."""
    digest = want(args, "hash", str)
    if not digest.isalnum():
        raise RemoteError("E-HOME-003", "that is no hash", value=digest)
    path = home.tree(digest)
    there = path.is_dir()
    if there:
        os.utime(path)  # what was used lately is not collected: a run that will name it may be on its way
    return Answer({"path": str(path), "there": there})


OPERATIONS: Mapping[str, Operation] = {"look": look, "tree": tree}
