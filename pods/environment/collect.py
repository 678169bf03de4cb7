"""Asking a pod to remove what nobody needs there. What it answers is checked: it is shown to a person."""

from __future__ import annotations

from typing import Any

from pods.pod import Pod
from workloads.contract.errors import RemoteError

GC_S = 1800.0


def collect_garbage(pod: Pod, older_s: float, *, dry_run: bool) -> tuple[list[dict[str, Any]], int]:
    """(what went, or would: kind, path, size_bytes, age_s; how many things stay)."""
    args = {"older_s": older_s, "dry_run": dry_run}
    rows: list[dict[str, Any]] = []
    found = pod.call("env.gc", args, timeout_s=GC_S).fields
    try:
        rows += [_row(item) for item in found["items"]]
        kept = int(found["kept"])
        code = pod.call("code.gc", {"older_than_s": older_s, "dry_run": dry_run}, timeout_s=GC_S).fields
        if code["objects"] or code["snapshots"]:
            store = {"kind": "code", "path": str(pod.home.code_store), "size_bytes": code["bytes"], "age_s": older_s}
            rows.append(_row(store))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise RemoteError("E-ENV-090", f"pod {pod.name} does not say what it removed", value=found) from e
    return rows, kept


def _row(item: Any) -> dict[str, Any]:
    return {
        "kind": str(item["kind"])[:20], "path": str(item["path"]), "size_bytes": int(item["size_bytes"]),
        "age_s": float(item["age_s"]),
    }  # fmt: skip
