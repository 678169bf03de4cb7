"""Where a pod's Ray dashboard listens and what opens it. The page asks for the cluster's token.

Called by `orch dashboard`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pods.pod import Pod
from workloads.contract.errors import ConflictError, RemoteError

TOKEN_BYTES = 4096
_CLUSTER = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Dashboard:
    pod: str
    port: int
    token_path: Path
    """on the pod"""


def find_dashboard(pod: Pod) -> Dashboard:
    """ConflictError when Ray is not up there: it is started with a run and stopped when it was idle for long."""
    ray = pod.call("runs.keeper").fields.get("ray")
    ray = ray if isinstance(ray, dict) else {}
    port, cluster, state = ray.get("dashboard_port"), ray.get("cluster"), str(ray.get("state"))
    if state != "up":
        raise ConflictError(
            "E-PODS-080", f"Ray is not up on pod {pod.name}: it is {state}", value=ray.get("error"),
            expected="a run that has not ended", fix="orch status   (Ray is started with a run, and stopped when idle)",
        )  # fmt: skip
    if type(port) is not int or not 1 <= port <= 65535 or not _CLUSTER.fullmatch(str(cluster)):
        raise RemoteError(
            "E-PODS-081", f"pod {pod.name} does not say where its dashboard is", value=f"{port} {cluster}"
        )
    return Dashboard(pod.name, port, pod.home.cluster(str(cluster)) / "token")


def read_token(pod: Pod, dashboard: Dashboard) -> str:
    answer = pod.call("files.read", {"path": str(dashboard.token_path), "offset": 0, "limit": TOKEN_BYTES})
    token = answer.data.decode(errors="replace").strip()
    if not re.fullmatch(r"[\x21-\x7e]{16,4096}", token):
        raise RemoteError("E-PODS-082", f"the token of pod {pod.name} cannot be read", where=str(dashboard.token_path))
    return token
