"""What git says of the code, bounded, and nothing where there is no git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.jobs import code
from orchestrator.jobs.code import CUT, CodeState, code_state


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("one\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return tmp_path


def git(directory: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=directory, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_a_clean_repository(repository: Path) -> None:
    assert code_state(repository) == CodeState(git(repository, "rev-parse", "HEAD"), False, b"")


def test_changes_are_in_the_difference_and_new_files_make_it_dirty(repository: Path) -> None:
    (repository / "a.py").write_text("two\n")
    state = code_state(repository)
    assert state.dirty and b"-one" in state.diff and b"+two" in state.diff
    git(repository, "checkout", "-q", "a.py")
    (repository / "new.py").write_text("x")
    assert code_state(repository) == CodeState(git(repository, "rev-parse", "HEAD"), True, b"")


def test_no_repository_and_no_commit(tmp_path: Path) -> None:
    assert code_state(tmp_path) == CodeState()
    git(tmp_path, "init", "-q")
    assert code_state(tmp_path) == CodeState()
    assert code_state(tmp_path / "nowhere") == CodeState()


def test_a_long_difference_is_cut(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MAX_DIFF_BYTES", 1000)
    (repository / "a.py").write_text("line\n" * 10_000)
    state = code_state(repository)
    assert state.dirty and state.diff.endswith(CUT) and len(state.diff) == 1000 + len(CUT)


def test_the_repositorys_own_programs_are_not_run(repository: Path) -> None:
    trap = repository / "trap.sh"
    trap.write_text("#!/bin/sh\ntouch sprung\n")
    trap.chmod(0o755)
    for key in ("diff.external", "core.fsmonitor", "core.pager", "diff.x.textconv", "diff.x.command"):
        git(repository, "config", key, str(trap))
    (repository / ".gitattributes").write_text("*.py diff=x\n")
    (repository / "a.py").write_text("two\n")
    assert b"+two" in code_state(repository).diff
    assert not (repository / "sprung").exists()
