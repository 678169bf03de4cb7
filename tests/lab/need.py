"""What the lab needs of this machine, and the reason in words when it is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache

TOOLS = ("ip", "tc", "nft", "mount", "umount", "nsenter", "unshare", "pivot_root", "ssh-keygen")
SSHD = "/usr/sbin/sshd"


class LabUnavailable(RuntimeError):
    """This machine cannot carry the lab, or a part of it; the message says why."""


@cache
def missing() -> str | None:
    """None when the lab can be built here, else why not."""
    if sys.platform != "linux":
        return "the lab needs Linux namespaces"
    if os.geteuid() != 0:
        return "the lab needs root"
    absent = [t for t in TOOLS if shutil.which(t) is None] + ([] if os.access(SSHD, os.X_OK) else ["sshd"])
    if absent:
        return f"the lab needs {', '.join(absent)} (sh tests/system-packages.sh)"
    script = (
        'mount -t tmpfs t "$1" && mkdir "$1/u" "$1/w" "$1/m" && '
        'mount -t overlay overlay -o "lowerdir=/,upperdir=$1/u,workdir=$1/w" "$1/m"'
    )
    with tempfile.TemporaryDirectory() as place:
        argv = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "sh", "-c", script, "sh", place]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return None if done.returncode == 0 else f"no namespaces or no overlay here: {done.stderr.strip()[-200:]}"
