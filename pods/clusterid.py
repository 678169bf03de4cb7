"""The id of a Ray cluster: the same pods, owner, home and Ray version are the same cluster. Pure.

Called by the plan; the keeper and the supervisor read it from run.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from workloads.contract.rundir import OrchHome


def cluster_id(pods: Iterable[str], uid: int, home: OrchHome, ray_version: str) -> str:
    """12 hex digits. `ray_version` is `none` where Ray is not installed."""
    text = "\0".join([*sorted(pods), str(uid), str(home.path), ray_version])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
