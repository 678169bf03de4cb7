"""What nobody needs goes; what a run that has not ended refers to stays, whatever its age."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pods.environment.collect import collect_garbage
from pods.remote import control
from tests.environment.conftest import Bench, spec_of
from workloads.contract.files import atomic_write_json
from workloads.contract.records import Ack, as_wire
from workloads.contract.rundir import OrchHome, RunDir

DAY = 86400.0


def old(path: Path, days: float) -> Path:
    when = time.time() - days * DAY
    for entry in (*path.glob("**/*"), path) if path.is_dir() else (path,):
        os.utime(entry, (when, when), follow_symlinks=False)
    return path


def run(home: OrchHome, name: str, state: str | None, env: str, tree: str, *, ended_days: float = 0.0) -> None:
    there = home.run(f"{name}-20260101T000000Z-0000")
    there.path.mkdir(parents=True)
    python = str(home.envs / env / "bin" / "python")
    row = {"pods": [{"name": "pod", "python": python, "orch_python": python}], "tree": str(home.tree(tree))}
    there.run_json.write_text(json.dumps(row))
    if state is not None:
        there.status.write_text(json.dumps({"state": state}))
        old(there.status, ended_days)


def env(home: OrchHome, name: str, days: float) -> Path:
    path = home.envs / name
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "tool").write_bytes(b"x" * 10_000)
    (path / "orch-env.json").write_text("{}")
    return old(path, days)


def tree(home: OrchHome, name: str, days: float) -> Path:
    path = home.tree(name)
    path.mkdir(parents=True)
    (path / "a.py").write_text("x")
    return old(path, days)


@pytest.fixture
def there(bench: Bench) -> OrchHome:
    home = OrchHome(bench.root)
    (home.path / "wheels").mkdir()
    for name, days in (("old-1-py3-none-any.whl", 40), ("new-1-py3-none-any.whl", 1), (".x.whl.0123.part", 40)):
        (home.path / "wheels" / name).write_bytes(b"x" * 5000)
        old(home.path / "wheels" / name, days)
    run(home, "goes-on", "running", "a" * 16, "t" * 16, ended_days=50)
    run(home, "just-staged", None, "b" * 16, "u" * 16)
    run(home, "ended-lately", "halted", "c" * 16, "v" * 16, ended_days=2)
    run(home, "ended-long-ago", "succeeded", "d" * 16, "w" * 16, ended_days=45)
    for k, letter in enumerate("abcdef"):
        env(home, letter * 16, 40 if letter != "f" else 3)
        tree(home, chr(ord("t") + k) * 16, 40)
    return home


def names(rows: list[dict[str, object]]) -> set[str]:
    return {Path(str(row["path"])).name for row in rows}


def test_what_goes_and_what_stays(bench: Bench, there: OrchHome) -> None:
    gone = {"d" * 16, "e" * 16, "w" * 16, "x" * 16, "y" * 16, "old-1-py3-none-any.whl", ".x.whl.0123.part"}
    before = sorted(p for p in there.path.rglob("*") if "remote" not in p.parts)
    rows, _ = collect_garbage(bench.pod, 30 * DAY, dry_run=True)
    assert names(rows) == gone
    assert sorted(p for p in there.path.rglob("*") if "remote" not in p.parts) == before
    assert all(row["size_bytes"] > 0 and row["age_s"] > 30 * DAY for row in rows)
    rows, kept = collect_garbage(bench.pod, 30 * DAY, dry_run=False)
    assert names(rows) == gone and kept > 0
    assert {p.name for p in there.envs.iterdir() if len(p.name) == 16} == {"a" * 16, "b" * 16, "c" * 16, "f" * 16}
    assert {p.name for p in there.trees.iterdir()} == {"t" * 16, "u" * 16, "v" * 16}
    assert {p.name for p in (there.path / "wheels").iterdir()} == {"new-1-py3-none-any.whl"}
    assert collect_garbage(bench.pod, 30 * DAY, dry_run=False)[0] == []


def test_nothing_of_the_last_hour_and_nothing_that_lives(bench: Bench, there: OrchHome) -> None:
    env(there, "0" * 16, 0.02)
    there.run("goes-on-20260101T000000Z-0000").run_json.write_text(f"torn {there.envs}/{'e' * 16}/bin/py")
    there.keeper.mkdir()
    there.keeper_record.write_text(json.dumps({"tree": str(there.tree("y" * 16)), "python": "/usr/bin/python3"}))
    rows, _ = collect_garbage(bench.pod, 0.0, dry_run=False)
    assert {"0" * 16, "e" * 16, "b" * 16}.isdisjoint(names(rows)), "young; named by a torn record; of a staged run"
    assert "y" * 16 not in names(rows), "the keeper runs from it"
    assert {"c" * 16, "d" * 16, "f" * 16} <= names(rows)


def resumed(run: RunDir, tree: Path, *, ok: bool | None) -> None:
    """`orch resume --code current` of an ended run; `ok`: its answer, None while there is none."""
    request = control.resume(run, who="ada", why="", tree=tree)
    if ok is not None:
        atomic_write_json(run.ack_of(request), as_wire(Ack(ok, "supervisor", time.time())))


def test_the_code_that_a_run_was_resumed_with_stays(bench: Bench, there: OrchHome) -> None:
    """Only the request to resume names it: run.json still says with what the run was launched."""
    lives, waits = there.run("ended-lately-20260101T000000Z-0000"), there.run("ended-long-ago-20260101T000000Z-0000")
    resumed(lives, there.tree("x" * 16), ok=True)
    lives.status.write_text(json.dumps({"state": "running"}))
    waits.status.write_text(json.dumps({"state": "failed"}))
    resumed(waits, there.tree("y" * 16), ok=None)
    old(waits.status, 45)
    rows, _ = collect_garbage(bench.pod, 30 * DAY, dry_run=False)
    assert there.tree("x" * 16).is_dir(), "a living run goes on from it"
    assert there.tree("y" * 16).is_dir(), "a run that was asked to resume will go on from it"
    assert {"d" * 16, "w" * 16}.isdisjoint(names(rows)), "what that run was launched with"
    [request] = waits.requests.iterdir()
    atomic_write_json(waits.ack_of(request), as_wire(Ack(False, "keeper", time.time(), "refused")))
    rows, _ = collect_garbage(bench.pod, 30 * DAY, dry_run=False)
    assert {"d" * 16, "w" * 16, "y" * 16} <= names(rows), "refused: it ended long ago"


def test_what_is_being_built_stays(bench: Bench, there: OrchHome) -> None:
    import fcntl

    with (there.envs / f"{'e' * 16}.lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        rows, _ = collect_garbage(bench.pod, 30 * DAY, dry_run=False)
    assert "e" * 16 not in names(rows) and (there.envs / ("e" * 16)).exists()


@pytest.mark.long
def test_a_real_environment_goes_whole(bench: Bench) -> None:
    spec = spec_of("idna", "iniconfig>=2", "packaging")
    result = bench.ensure(spec)
    assert collect_garbage(bench.pod, 0.0, dry_run=False)[0] == []
    old(Path(result.python).parents[1], 40)
    rows, _ = collect_garbage(bench.pod, 30 * DAY, dry_run=False)
    assert spec.hash in names(rows)
    assert bench.look(spec)["state"] != "ready"
    assert bench.ensure(spec).built
