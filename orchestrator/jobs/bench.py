"""The benchmark as a job: `orch bench SUITE...` in the words of a job file. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from orchestrator.jobs.jobfile import LoadedJob, made_job
from workloads.contract.config.job import BENCH_SUITES, KERNEL_BENCHES
from workloads.contract.errors import UsageError

DEVICES = ("auto", "cuda", "cpu")


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
    for suite in suites:
        if suite not in BENCH_SUITES:
            raise _unknown(suite, suites)
    if device not in (None, *DEVICES):
        near = "cuda" if device == "gpu" else next(iter(get_close_matches(str(device), DEVICES, 1, 0.5)), None)
        raise UsageError(
            "E-CLI-004", f"--device cannot be '{device}'", where="orch bench", value=device,
            expected="auto, cuda or cpu", did_you_mean=near, fix=f"--device {near or 'auto'}",
        )  # fmt: skip
    asked: dict[str, Any] = {"suites": list(dict.fromkeys(suites)) or list(KERNEL_BENCHES), "quick": quick}
    asked |= {"seed": seed, "write_thresholds": write_thresholds, **({} if device is None else {"device": device})}
    data = {"name": "bench", "kind": "bench", "bench": asked, **({"python": python} if python else {})}
    words = ["orch", "bench", *suites, *(["--quick"] if quick else []), *_option("--device", device)]
    words += [*(_option("--seed", str(seed)) if seed else []), *(["--write-thresholds"] if write_thresholds else [])]
    words += [*_option("--pod", pod), *_option("--python", python)]
    return made_job(data, shlex.join(words), name=None, pods=[pod] if pod else [])


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [name, value]


def _unknown(suite: str, suites: Sequence[str]) -> UsageError:
    near = next(iter(get_close_matches(suite, BENCH_SUITES, 1, 0.4)), None)
    right = [near if s == suite and near else s for s in suites if s != suite or near]
    return UsageError(
        "E-BENCH-010", f"there is no suite '{suite}'", where="orch bench", value=suite,
        expected="one or more of " + ", ".join(BENCH_SUITES), did_you_mean=near, fix=" ".join(["orch bench", *right]),
    )  # fmt: skip
