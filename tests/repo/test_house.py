"""The house: our names are ours, what must stay light is light, a bare pod is enough, figures have rows."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from runbooks import evidence

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "pods", "workloads", "kernels")
STDLIB_ONLY = ("pods/keeper", "pods/remote", "workloads/shim", "workloads/contract", "workloads/runtime/site")
MAY_USE_PYDANTIC = "workloads/contract/config"


def test_nobody_elses_package_answers_to_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, [])) <= {"orch-runs"}, name
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        assert Path(spec.origin).resolve() == ROOT / name / "__init__.py"


def imports_of(path: Path) -> set[str]:
    """First components of every absolute import anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", STDLIB_ONLY)
def test_what_runs_on_a_bare_pod_needs_the_standard_library_only(folder: str) -> None:
    allowed = set(sys.stdlib_module_names) | set(PACKAGES)
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        extra = {"pydantic"} if path.is_relative_to(ROOT / MAY_USE_PYDANTIC) else set()
        extra |= {"sitecustomize"} if path.stem == "sitecustomize" else set()  # it hands on to the next one
        assert imports_of(path) <= allowed | extra, path


@pytest.mark.parametrize("module", ["pods.keeper.__main__", "workloads.shim.__main__", "workloads.runtime"])
def test_it_really_imports_without_site_packages(module: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_imports_of_the_whole_project_go_one_way() -> None:
    exe = Path(sys.executable).with_name("lint-imports")
    if not exe.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(exe), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_speaks_of_a_machine_or_registry_by_name() -> None:
    """No absolute path of somebody's checkout and no package index in anything that is committed."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    words = ("pythonhosted", "pypi" + ".org", "registry.npmjs", "/home/runner")
    offenders = [
        f"{name}: {word}"
        for name in tracked
        if (ROOT / name).is_file()
        for word in words
        if word in (ROOT / name).read_text(errors="replace") and name != "tests/repo/test_house.py"
    ]
    assert offenders == []


def test_readmes_show_only_figures_that_have_a_row() -> None:
    assert evidence.BLOCK.search((ROOT / "README.md").read_text())
    for path in evidence.documents():
        text = path.read_text()
        assert evidence.rebuilt(text) == text, f"{path.relative_to(ROOT)}: run `make evidence`"


@pytest.mark.parametrize("missing", ["commit", "machine", "date", "command"])
def test_a_figure_without_its_origin_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    row = {"case": "x", "value": 1, "unit": "s", "machine": "m", "date": "d", "commit": "c" * 40, "command": "make x"}
    del row[missing]
    (tmp_path / "cli.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    with pytest.raises(evidence.EvidenceError, match=missing):
        evidence.rebuilt("<!-- evidence: cli -->\n<!-- /evidence -->")
