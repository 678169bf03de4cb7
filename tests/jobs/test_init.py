"""`orch init`: files that work as they are, and nothing overwritten."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from orchestrator.jobs.init import write_templates
from orchestrator.jobs.jobfile import load_job
from orchestrator.jobs.launch import prepare
from pods.inventory import load_inventory
from pods.remote.stage import ensure_home
from workloads.contract.errors import ConflictError, LocalError
from workloads.contract.rundir import OrchHome


def test_the_templates_are_a_good_job_and_a_good_inventory(home: OrchHome, tmp_path: Path) -> None:
    written = write_templates(tmp_path / "new" / "folder", home)
    assert written == [home.inventory, tmp_path / "new" / "folder" / "job.yaml"]
    assert list(load_inventory(home).pods) == ["local"]
    loaded = load_job("job.yaml", cwd=written[1].parent)
    plan = prepare(loaded, run_id=None, home=home, cwd=tmp_path, environ={"PATH": "/usr/bin"}).plan
    assert plan.spec.train.steps == 300


def test_nothing_is_overwritten(home: OrchHome, tmp_path: Path) -> None:
    write_templates(tmp_path / "a", home)
    home.inventory.write_text("pods: {}\n")
    assert write_templates(tmp_path / "b", home) == [tmp_path / "b" / "job.yaml"]
    assert home.inventory.read_text() == "pods: {}\n"
    (tmp_path / "a" / "job.yaml").write_text("mine")
    with pytest.raises(ConflictError) as e:
        write_templates(tmp_path / "a", home)
    assert e.value.where == str(tmp_path / "a" / "job.yaml") and (tmp_path / "a" / "job.yaml").read_text() == "mine"


def test_a_dangling_link_counts_as_a_file(home: OrchHome, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError):
        write_templates(tmp_path, home)
    assert not (tmp_path / "elsewhere").exists() and not home.path.exists()


def test_a_place_that_is_no_directory_is_told(home: OrchHome, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError) as e:
        write_templates(tmp_path / "file", home)
    assert e.value.code == "E-INIT-002"


def test_what_could_not_be_written_whole_is_taken_away(home: OrchHome, tmp_path: Path) -> None:
    ensure_home(home)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # as a full disk: a few bytes, then an error
    try:
        with pytest.raises(LocalError) as e:
            write_templates(tmp_path / "a", home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.code == "E-INIT-002" and not home.inventory.exists()
    assert len(write_templates(tmp_path / "a", home)) == 2
