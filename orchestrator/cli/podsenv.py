"""`orch pods bootstrap` and `orch pods gc`: the environment of a pod, now, and what nobody needs there any more.

Registered by `orchestrator.cli.pods`; several pods are worked on at once, and the exit code is that of the worst.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_pods
from orchestrator.cli.shared import Json, emit, hint, home, say
from workloads.contract.errors import OrchError, UsageError, escape

if TYPE_CHECKING:
    from pods.environment.ensure import EnvResult
    from pods.pod import Pod
    from workloads.contract.config.inventory import PodSpec

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Pods of the inventory.", autocompletion=complete_pods)
]
MaybeNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME...", help="Pods; all when none is named.", autocompletion=complete_pods),
]  # fmt: skip
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def bootstrap(
    names: Names,
    offline: Annotated[bool, typer.Option("--offline", help="Carry the wheels: the pod has no network.")] = False,
    requirements: Annotated[
        str | None, typer.Option("--requirements", metavar="FILE", help="A requirements.txt or pyproject.toml.")
    ] = None,
    python_version: Annotated[
        str | None, typer.Option("--python-version", metavar="3.12", help="3.11 or 3.12; default: what the pod has.")
    ] = None,
    torch: Annotated[
        str | None, typer.Option("--torch", metavar="SPEC", help="As torch==2.12.*; also ORCH_TORCH.")
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Have pods ready before the first launch: Python if they have none, and the environment. Can be run again."""
    source = None if requirements is None else Path(requirements).expanduser()

    def work(pod: Pod, spec: PodSpec, tell: Callable[[str], None]) -> dict[str, Any]:
        return _bootstrap(
            pod, spec, tell, source=source, python=python_version, torch=torch, offline=offline, show=not json
        )

    _each(names, work, json=json)


def gc(
    names: MaybeNames = None,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="30d", help="Not used for this long: 12h, 30d. At least an hour.")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove what no run needs from pods: old environments, code, wheels, uploads. Runs themselves stay."""
    older_s = _seconds(older_than)
    if not names:
        from pods.inventory import load_inventory

        names = list(load_inventory(home()).pods)

    def work(pod: Pod, spec: PodSpec, tell: Callable[[str], None]) -> dict[str, Any]:
        from pods.environment.collect import collect_garbage

        rows, kept = collect_garbage(pod, older_s, dry_run=dry_run)
        if not json:
            for row in rows:
                size, age = _size(row["size_bytes"]), _days(row["age_s"])
                tell(f"{escape(row['kind']):12} {size:>9}  {age:>6}  {escape(row['path'], 200)}")
            total = _size(sum(row["size_bytes"] for row in rows))
            tell(f"{'would free' if dry_run else 'freed'} {total} in {len(rows)} items; {kept} stay")
        return {"items": rows, "kept": kept}

    _each(names, work, json=json)


def _bootstrap(
    pod: Pod, spec: PodSpec, tell: Callable[[str], None], *, source: Path | None, python: str | None,
    torch: str | None, offline: bool, show: bool,
) -> dict[str, Any]:  # fmt: skip
    from pods.environment.ensure import ensure_environment, ensure_python
    from pods.environment.spec import load_requirements, wanted
    from pods.facts import collect
    from pods.pod import FarPod, NeedsPython

    if source is not None:
        load_requirements(source)  # a mistake in the file is told before a pod is asked
    began, stages = time.monotonic(), {}
    facts = collect(pod.transport, root=spec.root, python=spec.python)
    stages["look"] = time.monotonic() - began
    if isinstance(pod, FarPod):
        start = time.monotonic()
        try:
            pod.connect()
        except NeedsPython:
            ensure_python(pod.transport, facts, home(), tell)
            pod.connect()
        stages["python"] = time.monotonic() - start
    want = wanted(facts, source, python=python, torch=torch)
    tell(f"environment {want.hash}: Python {want.python}, {len(want.requirements.names)} requirements")
    result = ensure_environment(pod, facts, want, home(), tell, offline=offline)
    stages |= dict(result.stages)
    if show:
        tell(_told(result, stages))
    return _row(result, stages, time.monotonic() - began)


def _told(result: EnvResult, stages: dict[str, float]) -> str:
    times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
    size = result.marker.get("size_bytes")
    more = f", {_size(size)}" if isinstance(size, int) else ""
    return f"{'built' if result.built else 'was there'}: {escape(result.python, 300)}{more} ({times})"


def _row(result: EnvResult, stages: dict[str, float], seconds: float) -> dict[str, Any]:
    rounded = {stage: round(value, 3) for stage, value in stages.items()}
    packages = result.marker.get("freeze")
    return {
        "hash": result.hash, "python": result.python, "built": result.built, "seconds": round(seconds, 3),
        "stages": rounded, "packages": packages if isinstance(packages, list) else [],
    }  # fmt: skip


Work = Callable[["Pod", "PodSpec", Callable[[str], None]], dict[str, Any]]


def _each(names: Sequence[str], work: Work, *, json: bool) -> None:
    """Carry `work` out on every pod at once; the errors of some after the answers of the others."""
    from pods.access import find_spec, open_pod
    from pods.transport.fleet import each

    unique = list(dict.fromkeys(names))
    specs = {name: find_spec(home(), name) for name in unique}
    teller = _Teller(unique, quiet=json)

    def one(name: str) -> dict[str, Any]:
        pod = open_pod(home(), name, specs[name])
        try:
            return work(pod, specs[name], lambda text: teller.tell(name, text))
        finally:
            pod.close()

    results = dict(zip(unique, each(unique, one), strict=True))
    failed = {name: r for name, r in results.items() if isinstance(r, OrchError)}
    for name, error in failed.items():
        if len(unique) > 1:
            hint(f"{name}:")
        print(error.render(), file=sys.stderr)
    if json:
        emit(
            {"v": 1, "pods": {n: {"error": r.as_dict()} if isinstance(r, OrchError) else r for n, r in results.items()}}
        )
    if failed:
        raise typer.Exit(max(error.exit_code for error in failed.values()))


class _Teller:
    """Lines of several pods, each whole and with its name in front where there are several."""

    def __init__(self, names: Sequence[str], *, quiet: bool) -> None:
        self.width = max(map(len, names)) if len(names) > 1 else 0
        self.quiet, self.lock = quiet, threading.Lock()

    def tell(self, name: str, text: str) -> None:
        if self.quiet:
            return
        with self.lock:
            say(f"{name:{self.width}}  {text}" if self.width else text)
            sys.stdout.flush()


def _seconds(text: str) -> float:
    m = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if m is None:
        raise UsageError(
            "E-CLI-004", f"--older-than cannot be '{escape(text, 40)}'", value=text, expected="as 12h or 30d"
        )
    return float(int(m[1]) * SECONDS[m[2]])


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} d" if seconds >= 86400 else f"{seconds / 3600:.0f} h"
