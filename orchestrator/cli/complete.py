"""What the shell offers after TAB for RUN, JOB and POD. Never prints, never fails: that would spoil a prompt."""

from __future__ import annotations

MAX_OFFERED = 40


def complete_runs(incomplete: str) -> list[str]:
    """`latest`, names and ids that begin with what was typed, newest first."""
    from orchestrator.runs.index import list_runs
    from workloads.contract.rundir import OrchHome

    rows = [r for r in list_runs(OrchHome.from_env(), note=lambda _: None) if r.present]
    words = dict.fromkeys(["latest"] * bool(rows) + [r.name for r in rows] + [r.run for r in rows])
    return [w for w in words if w.startswith(incomplete)][:MAX_OFFERED]


def complete_jobs(incomplete: str) -> list[str]:
    """Recipes, and job files beside the cursor."""
    from pathlib import Path

    from orchestrator.jobs.jobfile import recipes

    folder = Path(incomplete).parent if "/" in incomplete else Path()
    try:
        files = [str(p) for p in sorted(folder.iterdir()) if p.suffix in (".yaml", ".yml")]
    except OSError:
        files = []
    return [w for w in [*recipes(), *files] if w.startswith(incomplete)][:MAX_OFFERED]


def complete_pods(incomplete: str) -> list[str]:
    """Names of the inventory."""
    from pods.inventory import load_inventory
    from workloads.contract.errors import OrchError
    from workloads.contract.rundir import OrchHome

    try:
        names = list(load_inventory(OrchHome.from_env()).pods)
    except OrchError:
        return []
    return [n for n in names if n.startswith(incomplete)][:MAX_OFFERED]
