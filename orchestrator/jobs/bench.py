"""The benchmark as a job: `orch bench SUITE...` in the words of a job file. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from orchestrator.jobs.jobfile import LoadedJob, made_job
from orchestrator.jobs.words import DEVICES, check_choice, check_suites, option
from workloads.contract.config.job import BENCH_SUITES, KERNEL_BENCHES


def bench_job(
    suites: Sequence[str],
    *,
    pod: str | None = None,
    quick: bool = False,
    device: str | None = None,
    seed: int = 0,
    python: str | None = None,
    write_thresholds: bool = False,
) -> LoadedJob:
    """The job of `orch bench`. UsageError for a suite or device that there is not; SpecErrors as for a job file."""
    check_suites("orch bench", suites, BENCH_SUITES, "E-BENCH-010")
    check_choice("orch bench", "--device", device, DEVICES)
    asked: dict[str, Any] = {"suites": list(dict.fromkeys(suites)) or list(KERNEL_BENCHES), "quick": quick}
    asked |= {"seed": seed, "write_thresholds": write_thresholds, **({} if device is None else {"device": device})}
    data = {"name": "bench", "kind": "bench", "bench": asked, **({"python": python} if python else {})}
    words = ["orch", "bench", *suites, *(["--quick"] if quick else []), *option("--device", device)]
    words += [*(option("--seed", str(seed)) if seed else []), *(["--write-thresholds"] if write_thresholds else [])]
    words += [*option("--pod", pod), *option("--python", python)]
    return made_job(data, shlex.join(words), name=None, pods=[pod] if pod else [])
