"""The decode kernels assemble for GPUs before SM 9.0, which none of our machines has: compiled, never run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.parametrize(("capability", "shared_kib"), [(89, 99), (80, 163)])
def test_every_variant_assembles_and_fits(capability: int, shared_kib: int, tmp_path: Path) -> None:
    """cp.async.bulk and programmatic dependent launch came with SM 9.0: with either, ptxas refuses."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.offline", str(capability), str(shared_kib)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {m["kernel"] for m in made} == {
        *("split_kernel", "combine_kernel", "decode_kernel", "reduce_kernel", "append_kernel")
    }
    assert max(m["shared_bytes"] for m in made) <= shared_kib << 10
