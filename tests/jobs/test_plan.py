"""Plans as golden files: tests/golden/plan/<what>.json holds job, inventory and facts, and what comes of them.

ORCH_REGEN=1 writes `expect` anew; read the difference before it is committed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.jobs.code import CodeState
from orchestrator.jobs.interpreter import Interpreter
from orchestrator.jobs.plan import LaunchContext, Plan, make_plan
from pods.clusterid import cluster_id
from pods.facts import Gpu, PodFacts
from workloads.contract.config.inventory import Inventory
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import OrchError
from workloads.contract.rundir import OrchHome

GOLDEN = Path(__file__).parents[1] / "golden" / "plan"
CASES = sorted(GOLDEN.glob("*.json"))
PYTHON = Interpreter("/venv/bin/python", "3.12.3", "2.60.0", True)
FACTS = PodFacts("box", "boot", 8, 32_000, 30_000, 4000, 500_000, PYTHON.path, PYTHON.version)
CONTEXT = LaunchContext(
    run_id="demo-20261121T093000Z-00ff", source="/home/ada/job.yaml", created=1795253400.0, operator="ada@box",
    uid=1000, home=OrchHome(Path("/home/ada/.orch")), tree="/home/ada/.orch/orch/0123456789abcdef",
    cwd="/home/ada/work",
    env={"PATH": "/venv/bin:/usr/bin", "HOME": "/home/ada"}, rank_python=PYTHON, orch_python=PYTHON,
    orch_version="0.1.0", code=CodeState("c0ffee", True, b"diff"),
)  # fmt: skip


def gpus(count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(i, f"GPU-{i}{i}{i}{i}", "NVIDIA H200", 143_771, 0) for i in range(count))


def plan_of(case: dict[str, Any]) -> Plan:
    """job, inventory, facts (differences from an eight-CPU machine; `gpus` is a count) and context (likewise)."""
    job = JobSpec.model_validate_json(json.dumps({"name": "demo", **case["job"]}))
    inventory = Inventory.model_validate_json(json.dumps(case.get("inventory", {}))).with_local()
    changes = dict(case.get("facts", {}))
    changes["gpus"] = gpus(changes.get("gpus", 0))
    facts = dataclasses.replace(FACTS, **changes)
    context = dict(case.get("context", {}))
    for name in ("rank_python", "orch_python"):
        if name in context:
            context[name] = dataclasses.replace(PYTHON, **context[name])
    for name in ("notes", "brings"):
        context[name] = tuple(context.get(name, ()))
    if "home" in context:
        context["home"] = OrchHome(Path(context["home"]))
    return make_plan(job, inventory, dict.fromkeys(inventory.pods, facts), dataclasses.replace(CONTEXT, **context))


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    try:
        plan = plan_of(case)
    except OrchError as e:
        return {"exit": int(e.exit_code), "error": e.render().split("\n")}
    row: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    del row["run_json"]["job"]  # the models' own business
    return row


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_plans(path: Path) -> None:
    case = json.loads(path.read_text())
    got = outcome(case)
    if os.environ.get("ORCH_REGEN"):
        path.write_text(json.dumps({**case, "expect": got}, indent=1, ensure_ascii=False) + "\n")
        case = json.loads(path.read_text())
    assert got == case["expect"]


def test_there_are_cases() -> None:
    assert len(CASES) >= 15


def test_run_json_holds_the_whole_job_and_what_dry_run_prints_is_what_is_done() -> None:
    plan = plan_of({"job": {"env": {"A": "1", "HOME": "/elsewhere"}}})
    row = plan.run_json()
    job = JobSpec.model_validate_json(json.dumps(row["job"]))
    assert job == plan.spec
    assert row["env"] == {"PATH": "/venv/bin:/usr/bin", "HOME": "/elsewhere", "A": "1"}
    assert all(step in plan.render() for step in plan.steps())
    assert plan.resolved_config()["resources"] == {"ranks": 1, "gpus_per_rank": 0, "cpus_per_rank": 1}


def test_the_cluster_id_depends_on_what_makes_a_cluster_and_on_nothing_else() -> None:
    home = OrchHome(Path("/h"))
    one = cluster_id(["a", "b"], 1, home, "2.60.0")
    assert len(one) == 12 and int(one, 16) >= 0
    assert one == cluster_id(["b", "a"], 1, home, "2.60.0")
    others = {
        cluster_id(["a"], 1, home, "2.60.0"), cluster_id(["a", "b"], 2, home, "2.60.0"),
        cluster_id(["a", "b"], 1, OrchHome(Path("/i")), "2.60.0"), cluster_id(["a", "b"], 1, home, "2.60.1"),
    }  # fmt: skip
    assert len(others | {one}) == 5
    assert len(cluster_id(["a"], 1, OrchHome(Path("/\udcff")), "none")) == 12


@settings(max_examples=300, deadline=None)
@given(
    ranks=st.just("auto") | st.integers(1, 40),
    per_rank=st.just("auto") | st.integers(0, 9),
    cpus_per_rank=st.integers(1, 20),
    found=st.integers(0, 8),
    cpus=st.integers(1, 64),
)
def test_no_plan_ever_takes_more_than_there_is(
    ranks: Any, per_rank: Any, cpus_per_rank: int, found: int, cpus: int
) -> None:
    resources = {"ranks": ranks, "gpus_per_rank": per_rank, "cpus_per_rank": cpus_per_rank}
    job = {"kind": "command", "command": ["x"], "resources": resources}
    try:
        plan = plan_of({"job": job, "facts": {"cpus": cpus, "gpus": found}})
    except OrchError as e:
        assert e.code in ("E-PLAN-005", "E-PLAN-006") and e.fix
        return
    place = plan.placement
    assert place.ranks >= 1 and place.gpus <= found and place.ranks * place.cpus_per_rank <= cpus
    assert ranks in ("auto", place.ranks) and per_rank in ("auto", place.gpus_per_rank)
