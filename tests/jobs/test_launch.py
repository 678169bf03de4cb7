"""Launching: looking touches nothing, the rename is the submission, the same id is the same run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.jobs.jobfile import command_job, load_job
from orchestrator.jobs.launch import prepare, submit
from orchestrator.jobs.site import LocalSite, local_env
from orchestrator.runs.index import list_runs, record
from pods.keeper.client import KeeperClient, running
from pods.remote.stage import LEFTOVER_AGE_S, Staged, ensure_home
from tests.jobs.conftest import content, make_plan_for, prepared_for, set_state
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import ConflictError, LocalError, OrchError, SpecError, UsageError
from workloads.contract.rundir import OrchHome, make_run_id

ROOT = Path(__file__).parents[2]


def tree_of(home: OrchHome) -> list[str]:
    return sorted(str(p.relative_to(home.path)) for p in home.path.rglob("*")) if home.path.exists() else []


def test_preparing_touches_nothing(home: OrchHome, tmp_path: Path) -> None:
    plan = make_plan_for(home, tmp_path, "sh", "-c", "true")
    assert plan.run_id.startswith("demo-") and "sh -c true" in plan.render()
    assert tree_of(home) == [] and not home.path.exists()


def test_a_run_directory_is_born_whole(home: OrchHome, tmp_path: Path) -> None:
    plan = make_plan_for(home, tmp_path)
    ensure_home(home)
    run = home.run(plan.run_id)
    assert Staged(run, home).commit(plan.run_json(), plan.resolved_config(), b"diff")
    assert content(run.run_json)["run"] == plan.run_id
    assert content(run.resolved_config)["resources"] == {"ranks": 1, "gpus_per_rank": 0, "cpus_per_rank": 1}
    assert run.code_diff.read_bytes() == b"diff"
    assert all(p.is_dir() for p in run.skeleton())
    for path in [run.path, *run.path.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert [p.name for p in home.runs.iterdir()] == [plan.run_id]


def test_of_many_launches_with_one_id_one_makes_the_run(home: OrchHome, tmp_path: Path) -> None:
    plan = make_plan_for(home, tmp_path)
    ensure_home(home)
    run = home.run(plan.run_id)

    def commit(_: int) -> bool:
        return Staged(run, home).commit(plan.run_json(), plan.resolved_config(), b"x" * 100_000)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(commit, range(16))) == [False] * 15 + [True]
    assert [p.name for p in home.runs.iterdir()] == [plan.run_id]


def test_something_foreign_in_the_place_of_a_run_is_not_called_a_run(home: OrchHome, tmp_path: Path) -> None:
    plan = make_plan_for(home, tmp_path)
    ensure_home(home)
    run = home.run(plan.run_id)
    run.path.mkdir()
    (run.path / "diary.txt").write_text("mine")
    with pytest.raises(ConflictError):
        Staged(run, home).commit(plan.run_json(), plan.resolved_config(), b"")
    assert (run.path / "diary.txt").read_text() == "mine" and len(list(home.runs.iterdir())) == 1


SUBMIT = """
import os, signal, sys
from pathlib import Path
from orchestrator.jobs.jobfile import command_job
from orchestrator.jobs.launch import prepare, submit
from workloads.contract.rundir import OrchHome
home, run_id, last = OrchHome(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
loaded = command_job(["true"], name="demo", cwd=Path.cwd())
prepared = prepare(loaded, run_id=run_id, home=home, cwd=Path.cwd(), environ=os.environ)
submit(prepared, lambda stage, s: os.kill(os.getpid(), signal.SIGKILL) if stage == last else None)
"""


def killed_after(home: OrchHome, run_id: str, stage: str) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", SUBMIT, str(home.path), run_id, stage]
    return subprocess.run(argv, env=env, timeout=60, check=False).returncode


def test_killed_between_the_stages_it_leaves_nothing_or_a_whole_run(home: OrchHome) -> None:
    run_id = make_run_id("demo")
    assert killed_after(home, run_id, "tree") == -signal.SIGKILL
    assert list(home.runs.iterdir()) == [] and list_runs(home) == []
    assert killed_after(home, run_id, "run directory") == -signal.SIGKILL
    run = home.run(run_id)
    assert [p.name for p in home.runs.iterdir()] == [run_id]
    assert content(run.run_json)["run"] == run_id and all(p.is_dir() for p in run.skeleton())
    assert [r.run for r in list_runs(home)] == [run_id]
    assert Path(str(content(run.run_json)["tree"])).is_dir()


def test_killed_at_any_moment_it_leaves_nothing_or_a_whole_run(home: OrchHome) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for i in range(6):
        run_id = make_run_id("demo")
        argv = [sys.executable, "-c", SUBMIT, str(home.path), run_id, "run directory"]
        process = subprocess.Popen(argv, env=env)
        time.sleep(0.25 + 0.1 * i)
        process.kill()
        process.wait(timeout=120)
        for path in home.runs.glob("demo-*") if home.runs.exists() else []:
            assert content(path / "run.json")["run"] == path.name
            assert all(p.is_dir() for p in home.run(path.name).skeleton())


def test_the_same_id_twice_is_one_run_and_wakes_a_keeper(home: OrchHome, tmp_path: Path) -> None:
    run_id = make_run_id("demo")
    killed_after(home, run_id, "run directory")
    run = home.run(run_id)
    before, rows = run.run_json.read_bytes(), list_runs(home)
    set_state(run, "succeeded")  # so that the keeper has nothing to start
    stages: list[str] = []
    again = prepared_for(home, tmp_path, "false", run_id=run_id)
    assert not submit(again, lambda stage, s: stages.append(stage))
    assert again.run == run and stages == ["keeper"]
    assert run.run_json.read_bytes() == before and list_runs(home) == rows, "nor is it the latest by this"
    assert running(home) is not None
    KeeperClient(home).down()


def test_an_id_that_another_pod_has_is_refused(home: OrchHome, tmp_path: Path) -> None:
    """Before anything is asked: the pod named here would know nothing of the run, and make another."""
    home.path.mkdir(exist_ok=True)
    home.inventory.write_text("pods: {gpu1: {ssh: root@198.51.100.7}}\n")
    far, here = make_run_id("demo"), make_run_id("demo")
    record(home, {"run": far, "created": time.time()}, "gpu1")
    with pytest.raises(ConflictError) as e:
        prepared_for(home, tmp_path, run_id=far)
    assert e.value.code == "E-LAUNCH-011" and "on pod gpu1" in e.value.what and "--pod gpu1 " in str(e.value.fix)
    home.run(here).path.mkdir(parents=True)
    there = command_job(["true"], name="demo", pods=["gpu1"], cwd=tmp_path)
    with pytest.raises(ConflictError) as e:
        prepare(there, run_id=here, home=home, cwd=tmp_path, environ={})
    assert e.value.code == "E-LAUNCH-011" and "--pod local " in str(e.value.fix)
    home.run(here).path.rmdir()  # it is gone: the id is free
    with pytest.raises(OrchError) as other:
        prepare(there, run_id=here, home=home, cwd=tmp_path, environ={})
    assert other.value.code == "E-SSH-011"  # not pinned
    home.inventory.write_text("pods: {gpu2: {ssh: root@198.51.100.7}}\n")
    with pytest.raises(ConflictError) as e:
        prepared_for(home, tmp_path, run_id=far)
    assert "orch status" in str(e.value.fix) and "gpu1" in str(e.value.expected)


def test_a_launch_that_made_nothing_changes_no_row(home: OrchHome) -> None:
    home.path.mkdir(exist_ok=True)
    run, lost = make_run_id("demo", 1_790_000_000.0), make_run_id("demo", 1_790_000_100.0)
    record(home, {"run": run, "created": 5.0, "kind": "command"}, "gpu1")
    for ident in (run, lost):  # of the other one the row was lost
        record(home, {"run": ident, "created": time.time(), "kind": "command"}, "gpu1", created=False)
    assert {r.run: r.created for r in list_runs(home)} == {run: 5.0, lost: 1_790_000_100.0}


def test_old_leftovers_are_removed_and_young_ones_stay(home: OrchHome, tmp_path: Path) -> None:
    ensure_home(home)
    old, young = home.runs / ".tmp_old", home.runs / ".tmp_young"
    for path in (old, young):
        (path / "logs").mkdir(parents=True)
    past = time.time() - LEFTOVER_AGE_S - 60
    os.utime(old, (past, past))
    plan = make_plan_for(home, tmp_path)
    assert Staged(home.run(plan.run_id), home).commit(plan.run_json(), plan.resolved_config(), b"")
    assert not old.exists() and young.exists()


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        home = OrchHome(disk / "home")
        plan = make_plan_for(OrchHome(tmp_path / "elsewhere"), tmp_path)
        with pytest.raises(LocalError) as low:  # the plan sees it first
            make_plan_for(home, tmp_path)
        assert low.value.code == "E-PLAN-011"
        ensure_home(home)
        with pytest.raises(LocalError) as full:
            Staged(home.run(plan.run_id), home).commit(plan.run_json(), plan.resolved_config(), b"x" * 1_000_000)
        assert os.strerror(errno.ENOSPC) in full.value.what and full.value.fix
        assert list(home.runs.iterdir()) == []
        with pytest.raises(LocalError):
            LocalSite(command_job(("true",), name="demo", cwd=tmp_path), PodSpec(local=True), home, tmp_path, {}).bring(
                lambda stage: None  # orch's own files do not fit
            )
        assert list(home.runs.iterdir()) == [] and list(home.trees.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError) as e:
        ensure_home(OrchHome(tmp_path / "file" / "home"))
    assert e.value.code == "E-HOME-001" and e.value.fix


@pytest.mark.parametrize("run_id", ["x", "demo-20261121T000000Z", "demo-20261121T000000Z-00FF", "../etc", ""])
def test_what_is_no_run_id_is_refused(home: OrchHome, tmp_path: Path, run_id: str) -> None:
    with pytest.raises(UsageError) as e:
        make_plan_for(home, tmp_path, run_id=run_id)
    assert e.value.code == "E-LAUNCH-001" and str(e.value.fix).startswith("--id demo-")


def test_an_id_of_another_name_is_refused(home: OrchHome, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        make_plan_for(home, tmp_path, run_id="other-20261121T000000Z-00ff")
    assert e.value.fix == "--name other"


def test_a_missing_workdir_is_told(home: OrchHome, tmp_path: Path) -> None:
    loaded = command_job(["true"], name="demo", sets=["workdir=nowhere"], cwd=tmp_path)
    with pytest.raises(SpecError) as e:
        prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={})
    assert e.value.where == "--set workdir=nowhere" and str(tmp_path / "nowhere") in str(e.value.fix)
    (tmp_path / "nowhere").mkdir()
    assert prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={}).plan.context.cwd == str(
        tmp_path / "nowhere"
    )


def test_a_python_that_is_none_is_told(home: OrchHome, tmp_path: Path) -> None:
    loaded = command_job(["true"], name="demo", sets=["python=/bin/false"], cwd=tmp_path)
    with pytest.raises(LocalError) as e:
        prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={})
    assert e.value.code == "E-PLAN-008"


def test_more_cpus_than_this_machine_has(home: OrchHome, tmp_path: Path) -> None:
    loaded = command_job(["true"], name="demo", sets=["resources.ranks=4096"], cwd=tmp_path)
    with pytest.raises(SpecError) as e:
        prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={})
    assert e.value.code == "E-PLAN-006" and e.value.where == "--set resources.ranks=4096"


def test_a_pod_that_is_not_known_is_told_as_it_was_typed(home: OrchHome, tmp_path: Path) -> None:
    loaded = command_job(["true"], name="demo", pods=["locl"], cwd=tmp_path)
    with pytest.raises(SpecError) as e:
        prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={})
    assert (e.value.code, e.value.where, e.value.fix) == ("E-PLAN-001", "--pod locl", "--pod local")
    loaded = command_job(["true"], name="demo", pods=["gpubox"], cwd=tmp_path)
    with pytest.raises(SpecError) as e:
        prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={})
    assert e.value.fix == "orch pods add gpubox user@host[:port]"


def test_a_bad_inventory_is_told_with_its_lines(home: OrchHome, tmp_path: Path) -> None:
    ensure_home(home)
    home.inventory.write_text("pods:\n  big: {ssh: ada@big, prot: 22}\n  Bad: {local: true}\n  both: {}\n")
    with pytest.raises(OrchError) as e:
        make_plan_for(home, tmp_path)
    text = e.value.render()
    assert "pods.big.prot is not a known key" in text and f"{home.inventory}:2" in text
    assert "a pod is either `local: true` or has `ssh: user@host`" in text and f"{home.inventory}:4" in text
    assert f"{home.inventory}:3" in text and e.value.exit_code == 2


def test_what_of_the_shell_reaches_a_rank() -> None:
    shell = {
        "PATH": "/usr/bin", "HOME": "/h", "LANG": "C.UTF-8", "USER": "ada", "RAY_ADDRESS": "x", "SECRET": "s",
        "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": "/mine", "ORCH_HOME": "/o", "SHELL": "/bin/sh", "TMPDIR": "/t",
    }  # fmt: skip
    command = command_job(["true"], name="demo", cwd=Path("/")).spec
    env = local_env(command, "/venv/bin/python", shell)
    assert env == {
        "PATH": "/venv/bin:/usr/bin", "HOME": "/h", "LANG": "C.UTF-8", "USER": "ada", "LOGNAME": "ada",
        "SHELL": "/bin/sh", "TMPDIR": "/t", "PYTHONPATH": "/mine",
    }  # fmt: skip
    train = load_job("tiny", cwd=Path("/")).spec
    assert "PYTHONPATH" not in local_env(train, "/venv/bin/python", shell)
    assert local_env(train, "python3", {})["PATH"].startswith("/usr/local/bin")


def test_the_virtual_environment_of_the_shell_runs_commands(home: OrchHome, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    loaded = command_job(["true"], name="demo", cwd=tmp_path)
    plan = prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={"VIRTUAL_ENV": str(tmp_path)}).plan
    pod = plan.run_json()["pods"][0]
    assert (pod["python"], pod["orch_python"]) == (str(tmp_path / "bin" / "python"), sys.executable)
    assert plan.run_json()["env"]["PATH"].startswith(str(tmp_path / "bin") + ":")


def test_nothing_heavy_is_imported() -> None:
    heavy = "torch ray datasets paramiko fabric"
    code = (
        "import sys, orchestrator.jobs.launch, pods.remote.control, orchestrator.jobs.init\n"
        f"print([m for m in {heavy.split()!r} if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
