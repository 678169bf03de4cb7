"""Facts of several pods at once, what they mean, and the report of it. Changes nothing on a pod.

A pod that cannot be asked does not stop the others. Called by `orch pods check`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.inventory.finding import Finding, failed, size
from orchestrator.inventory.findings import judge
from orchestrator.runs.render import duration, one_line
from pods.access import open_pod
from pods.facts import Disk, PodFacts, collect
from pods.transport.fleet import each
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import OrchError
from workloads.contract.exitcodes import CliExit
from workloads.contract.rundir import OrchHome


@dataclass(frozen=True)
class Checked:
    pod: str
    facts: PodFacts | None = None
    findings: tuple[Finding, ...] = ()
    error: OrchError | None = None

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return int(self.error.exit_code)
        return int(CliExit.RUN_FAILED if failed(self.findings) else CliExit.OK)

    def as_json(self) -> dict[str, Any]:
        if self.error is not None or self.facts is None:
            return {"pod": self.pod, "ok": False, "error": self.error.as_dict() if self.error else None}
        findings = [dataclasses.asdict(f) for f in self.findings]
        return {
            "pod": self.pod, "ok": not failed(self.findings), "findings": findings,
            "facts": dataclasses.asdict(self.facts),
        }  # fmt: skip


def check(home: OrchHome, pods: Mapping[str, PodSpec]) -> list[Checked]:
    """All of `pods` at once, in their order."""

    def work(name: str) -> Checked:
        facts = ask(home, name, pods[name])
        return Checked(name, facts, tuple(judge(name, facts)))

    return [
        Checked(name, error=found) if isinstance(found, OrchError) else found
        for name, found in zip(pods, each(pods, work), strict=True)
    ]


def ask(home: OrchHome, name: str, spec: PodSpec) -> PodFacts:
    """The facts of one pod, over a connection of its own."""
    pod = open_pod(home, name, spec)
    root, python = (str(home.path), spec.python or sys.executable) if spec.local else (spec.root, spec.python)
    try:
        return collect(pod.transport, root=root, python=python)
    finally:
        pod.close()


def worst(checked: Sequence[Checked]) -> int:
    """Of several exit codes, the one that says most: refused, unreachable, then everything else, by number."""
    return max((c.exit_code for c in checked), default=0, key=lambda code: (code in (4, 5), code))


def lines(checked: Checked) -> list[str]:
    """The report of one pod: how it is, what is wrong and what to type, then what it is."""
    if checked.error is not None:
        return _unasked(checked.pod, checked.error)
    facts = checked.facts
    assert facts is not None
    told = [f"{checked.pod}  {_verdict(checked.findings)}"]
    for f in checked.findings:
        told.append(f"  {f.level}  {one_line(f.text)}")
        if f.fix:
            told.append(f"        fix: {one_line(f.fix)}")
    return [*told, *(f"  {label:<8} {one_line(text)}" for label, text in _rows(facts) if text)]


def _verdict(findings: Sequence[Finding]) -> str:
    count = Counter[str](f.level for f in findings)
    named = [("fail", "failure"), ("warn", "warning")]
    words = [f"{count[level]} {word}{'s' if count[level] > 1 else ''}" for level, word in named if count[level]]
    return ("not ok: " if count["fail"] else "ok, " if words else "ok") + ", ".join(words)


def _unasked(pod: str, error: OrchError) -> list[str]:
    word = {CliExit.UNREACHABLE: "unreachable", CliExit.REFUSED: "refused"}.get(error.exit_code, "could not be asked")
    return [f"{pod}  {word}", *(f"  {line}" for line in error.render().splitlines())]


def _rows(facts: PodFacts) -> list[tuple[str, str]]:
    return [
        ("gpus", _gpus(facts)),
        ("machine", _words(facts.hostname, facts.distribution, facts.arch, f"kernel {facts.kernel}", facts.libc,
                           facts.container, facts.uptime_s and f"up {duration(facts.uptime_s)}")),
        ("cpu", _cpus(facts)),
        ("memory", "" if not facts.ram_mib else f"{size(facts.ram_available_mib)} of {size(facts.ram_mib)} available"
                   + (" (limit of the container)" if facts.ram_limit_mib is not None else "")),
        ("disks", "; ".join(_disk(d) for d in _distinct(facts.disks))),
        ("python", ", ".join(f"{p.path} {p.version}" for p in facts.pythons[:4]) or "none"),
        ("tools", ", ".join([*facts.tools])),
        ("user", _words(facts.user or "", f"uid {facts.uid}", f"orch home {facts.orch_home}")),
        ("ssh", _ssh(facts)),
    ]  # fmt: skip


def _words(*parts: str | float | None) -> str:
    return ", ".join(str(p) for p in parts if p)


def _gpus(facts: PodFacts) -> str:
    if not facts.gpus:
        return "unknown" if facts.gpu_error else "none"
    kinds = Counter((g.name, g.memory_mib) for g in facts.gpus)
    models = ", ".join(f"{n} x {name} ({size(mib)})" for (name, mib), n in kinds.items())
    return _words(models, facts.driver and f"driver {facts.driver}", facts.cuda and f"CUDA {facts.cuda}")


def _cpus(facts: PodFacts) -> str:
    of = f" (of {facts.cpu_affinity}: quota of the container)" if facts.cpus < (facts.cpu_affinity or 0) else ""
    return _words(f"{facts.cpus} CPU{'s' if facts.cpus > 1 else ''}{of}", facts.cpu_model)


def _distinct(disks: Sequence[Disk]) -> list[Disk]:
    """One for each mount point, named by the first thing that lies on it."""
    return list({d.mount or d.path: d for d in reversed(disks)}.values())[::-1]


def _disk(disk: Disk) -> str:
    kind = f" ({disk.type}{', network' if disk.network else ''})" if disk.type else ""
    if disk.free_mib is None or disk.size_mib is None:
        return f"{disk.mount or disk.path}{kind} not asked"
    return f"{disk.mount or disk.path}{kind} {size(disk.free_mib)} free of {size(disk.size_mib)}"


def _ssh(facts: PodFacts) -> str:
    clock = ""
    if facts.clock_offset_s is not None and facts.connect_ms is not None:
        clock = f"clock {facts.clock_offset_s:+.3f} s ± {facts.clock_uncertainty_s or 0.0:.3f}"
    if facts.connect_ms is None:
        return ""
    return _words(f"connected in {facts.connect_ms:.0f} ms", f"round trip {facts.round_trip_ms or 0:.0f} ms", clock)
