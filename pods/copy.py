"""Files to a pod and back, resumable and checked: on top of the operations of `pods.remote.files`.

Called by `orch pods push` and `pull`, by the environment (wheels) and by the run's `pull`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from pods.pod import Pod, told
from workloads.contract.errors import ConflictError, IntegrityError, LocalError, RemoteError
from workloads.contract.files import write_all

CHUNK_BYTES = 4 << 20
TRIES = 6
HASH_S = 600.0  # the pod hashes a file of any size before it answers
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
OnBytes = Callable[[int], None]


def push_file(pod: Pod, source: Path, target: str, *, mode: int = 0o600, on_bytes: OnBytes = lambda _: None) -> str:
    """Send one file; bytes that an earlier, cut attempt sent are not sent again. The absolute path there.

    `on_bytes(n)`: n more bytes are there. LocalError when the file cannot be read or changes meanwhile.
    """
    for _ in range(TRIES - 1):
        try:
            return _push(pod, source, target, mode, on_bytes)
        except ConflictError as e:
            if (
                e.code != "E-FILE-004"
            ):  # two uploads of one file share what lies there half-sent; this one was overtaken
                raise
            time.sleep(random.uniform(0.05, 0.5))
    return _push(pod, source, target, mode, on_bytes)


def _push(pod: Pod, source: Path, target: str, mode: int, on_bytes: OnBytes) -> str:
    try:
        with source.open("rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
            size = f.tell()
            file = {"path": target, "size": size, "sha256": sha256}
            offer = pod.call("files.offer", file, timeout_s=HASH_S).fields
            have = told(offer, "have", int, pod.name)
            if not 0 <= have <= size:
                raise RemoteError("E-COPY-005", f"pod {pod.name} has more of a file than there is", value=have)
            on_bytes(have)
            if offer.get("done") is True:
                return told(offer, "path", str, pod.name)
            f.seek(have)
            while have < size:
                chunk = f.read(min(CHUNK_BYTES, size - have))
                if not chunk:
                    raise LocalError("E-COPY-001", "the file became shorter while it was sent", where=str(source))
                pod.call("files.append", {"path": target, "sha256": sha256, "offset": have}, chunk, timeout_s=60.0)
                have += len(chunk)
                on_bytes(len(chunk))
    except OSError as e:
        raise LocalError("E-COPY-002", f"the file cannot be read: {e.strerror}", where=str(source)) from e
    return told(pod.call("files.commit", {**file, "mode": mode}, timeout_s=HASH_S).fields, "path", str, pod.name)


def pull_file(
    pod: Pod, source: str, target: Path, *, size: int, sha256: str | None = None, on_bytes: OnBytes = lambda _: None
) -> None:
    """Fetch one file of `size` bytes (never more), atomically; resumes what an earlier, cut attempt left.

    `sha256`: what it must hash to, when the caller knows (a manifest); else the pod's own word is taken.
    IntegrityError when the bytes hash to something else; nothing is left at `target` then.
    """
    wanted = sha256 or told(
        pod.call("files.digest", {"path": source}, timeout_s=HASH_S).fields, "sha256", str, pod.name
    )
    if not _SHA256.fullmatch(wanted):  # it becomes part of a file's name here
        raise IntegrityError("E-COPY-006", f"pod {pod.name} gives a hash that is none", where=source, value=wanted)
    part = target.with_name(f".{target.name[:200]}.{wanted[:12]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        have = _fetch(pod, source, part, size, on_bytes)
        with part.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
        if have != size or found != wanted:
            part.unlink()
            raise IntegrityError(
                "E-COPY-003", "what arrived is not what the pod has, or it changed meanwhile", where=str(target),
                value=f"{have} bytes, sha256 {found[:16]}", expected=f"{size} bytes, sha256 {wanted[:16]}",
                fix="pull again",
            )  # fmt: skip
        part.replace(target)
    except OSError as e:
        raise LocalError("E-COPY-004", f"the file cannot be written: {e.strerror}", where=str(target)) from e


def _fetch(pod: Pod, source: str, part: Path, size: int, on_bytes: OnBytes) -> int:
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        have = os.fstat(fd).st_size
        if have > size:
            os.ftruncate(fd, 0)
            have = 0
        on_bytes(have)
        while have < size:
            limit = min(CHUNK_BYTES, size - have)
            chunk = pod.call("files.read", {"path": source, "offset": have, "limit": limit}, timeout_s=60.0).data
            if not chunk or len(chunk) > limit:
                break
            write_all(fd, chunk)
            have += len(chunk)
            on_bytes(len(chunk))
        return have
    finally:
        os.close(fd)
