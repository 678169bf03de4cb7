"""`python -m workloads.export RUN_DIR CHECKPOINT|newest OUT fp32|bf16`: started by `orch export` where the run lies.

One JSON object on standard output: what was written, or the error; nothing else goes there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from workloads.contract.errors import IntegrityError, LocalError, OrchError, SpecError
from workloads.contract.manifest import newest_verified
from workloads.contract.rundir import RunDir, step_of_checkpoint

NEWEST = "newest"


def main(argv: list[str]) -> int:
    out = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print
    run, checkpoint, target, dtype = argv
    try:
        from workloads.export.write import export

        done = export(_checkpoint(RunDir(Path(run)), checkpoint), Path(target), dtype)
        answer = {
            "run": done.run, "step": done.step, "parameters": done.parameters, "dir": str(done.folder),
            "files": [vars(f) for f in done.files],
        }  # fmt: skip
    except OrchError as e:
        answer = {"error": e.as_dict(), "exit": int(e.exit_code)}
    except ImportError as e:
        missing = LocalError(
            "E-EXPORT-007", f"this Python lacks what an export needs: {e}", where=sys.executable,
            fix=f"{sys.executable} -m pip install safetensors",
        )  # fmt: skip
        answer = {"error": missing.as_dict(), "exit": int(missing.exit_code)}
    os.write(out, json.dumps(answer).encode() + b"\n")
    return 1 if "error" in answer else 0


def _checkpoint(run: RunDir, wanted: str) -> Path:
    if wanted != NEWEST:
        if step_of_checkpoint(wanted) is None or not run.checkpoint(step_of_checkpoint(wanted) or 0).is_dir():
            there = sorted(p.name for p in run.checkpoints.glob("step_*"))[-8:] if run.checkpoints.is_dir() else []
            raise SpecError(
                "E-EXPORT-002", f"run {run.run_id} has no checkpoint of this name", where="--checkpoint", value=wanted,
                expected=", ".join(there) or "none is there", fix=f"orch export {run.run_id}   (the newest one)",
            )  # fmt: skip
        return run.checkpoints / wanted
    found, rejected = newest_verified(run)
    if found is None:
        kind = IntegrityError if rejected else SpecError
        why = f"none of {len(rejected)} verifies: {rejected[0][1]}" if rejected else "it has none yet"
        raise kind(
            "E-EXPORT-001", f"run {run.run_id} has no checkpoint to export: {why}", where=str(run.checkpoints),
            fix=f"orch status {run.run_id}",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
