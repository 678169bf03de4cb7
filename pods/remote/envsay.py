"""What went wrong when an environment was built: from uv's words to an error with something to type. Pure."""

from __future__ import annotations

import re

from workloads.contract.errors import IntegrityError, OrchError, RemoteError, SpecError

_NETWORK = re.compile(
    r"error sending request|dns error|failed to lookup address|connection refused|network is unreachable|tcp connect"
    r"|timed out|connect error|no route to host|could not connect|request failed after|certificate"
    r"|failed to fetch|http status (server|client) error", re.I
)  # fmt: skip
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
MAX_REASON_CHARS = 400


def harmless(text: str) -> str:
    """Without the user name and password of a URL."""
    return _CREDENTIALS.sub("***@", text)


def last_line(text: str) -> str:
    lines = [x.strip() for x in harmless(text).splitlines() if x.strip()]
    return lines[-1] if lines else ""


def explain(stage: str, output: str, exit_code: int, *, log: str, offline: bool) -> OrchError:
    """The error of a stage that failed. `output`: what it printed, `exit_code` negative for a signal."""
    text = " ".join(harmless(output).split())
    at = max(text.rfind("error: "), text.rfind("× "))
    reason = (text[at:] if at >= 0 else last_line(output)).removeprefix("error: ").removeprefix("× ")
    reason = reason[:MAX_REASON_CHARS] or f"exit code {exit_code}"
    if exit_code == -9:
        return RemoteError(
            "E-ENV-030", f"{stage} was killed on the pod", where=log, value="signal 9",
            expected="enough memory: the pod's limit may be too small", fix=f"read {log} on the pod, and run it again",
        )  # fmt: skip
    if "Hash mismatch" in text or "hash mismatch" in text:
        return IntegrityError(
            "E-ENV-031", "a package is not the one that the requirements give the hash of", where=log, value=reason,
            fix="find out why before you change the hash: a package of the same version never changes",
        )  # fmt: skip
    if "No space left on device" in text or "os error 28" in text or "Disk quota exceeded" in text:
        return RemoteError(
            "E-ENV-032", "the pod's disk is full", where=log, value=reason,
            fix="orch pods gc NAME, or give the pod a `root` on a larger disk in pods.yaml",
        )  # fmt: skip
    if "No solution found" in text or "unsatisfiable" in text:
        fix = "change the requirements" + ("; or leave out --offline" if offline else "")
        return SpecError("E-ENV-033", "the requirements cannot be met", where=log, value=reason, fix=fix)
    if "Failed to build" in text or "build backend" in text:
        return RemoteError(
            "E-ENV-034", "a package without a wheel cannot be built on the pod", where=log, value=reason,
            fix="pin a version that has a wheel, or install what its build needs on the pod",
        )  # fmt: skip
    if _NETWORK.search(text):
        return RemoteError(
            "E-ENV-035", "the pod cannot reach a package registry", where=log, value=reason,
            expected="a registry, by UV_DEFAULT_INDEX or PIP_INDEX_URL in the pod's environment if it has its own",
            fix="orch pods bootstrap NAME --offline   (carries the wheels from here)",
        )  # fmt: skip
    return RemoteError("E-ENV-036", f"{stage} failed on the pod", where=log, value=reason, fix=f"read {log} there")
