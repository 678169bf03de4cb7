"""The public surface, frozen: commands, options, exit codes, JSON keys, heartbeat fields, and what `--help` imports.

ORCH_REGEN=1 writes `tests/golden/surface.json` anew. A change there is a change for everybody who scripts `orch`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.main import build
from workloads.contract import beats, exitcodes, states

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "surface.json"
HEAVY = ("torch", "ray", "datasets", "paramiko", "fabric", "pydantic", "numpy", "rich", "sqlite3", "yaml")


def leaves(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every command that does something, `pods add` among them."""
    found = []
    for name, command in group.commands.items():
        found += leaves(command, f"{prefix}{name} ") if hasattr(command, "commands") else [(prefix + name, command)]
    return found


def surface(status_keys: list[str]) -> dict[str, Any]:
    root: Any = typer.main.get_command(build())
    commands = {
        name: sorted(o for p in command.params for o in (p.opts if p.param_type_name == "option" else [f"<{p.name}>"]))
        for name, command in leaves(root)
    }
    return {
        "commands": commands,
        "cli_exit": {e.name: int(e) for e in exitcodes.CliExit},
        "rank_exit": {e.name: int(e) for e in exitcodes.RankExit},
        "run_states": [s.value for s in states.RunState],
        "rank_health": [s.value for s in states.RankHealth],
        "phases": [s.value for s in states.Phase],
        "status_json": status_keys,
        "heartbeat": {
            "required": ["ts", "msg", *beats._INTS],
            "optional": sorted(
                beats.OPTIONAL_INTS | beats.OPTIONAL_FLOATS | beats.OPTIONAL_TEXT | {"gate_branch_shares"}
            ),
        },
    }


def test_surface_is_what_it_was(orch, make):
    make()
    found = surface(list(orch("status", "--json").json["runs"][0]))
    if os.environ.get("ORCH_REGEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom orchestrator.cli.main import main\n"
        f"rc = main(['--help'])\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\nsys.exit(rc)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert "Usage: orch" in ran.stdout


def test_version_and_bare(orch):
    assert orch("--version").out.startswith("orch")
    bare = orch()
    assert bare.code == 0 and "Commands:" in bare.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(orch, make, shell):
    run = make().run.run_id
    env = {
        **orch.env(), "_ORCH_COMPLETE": f"complete_{shell}", "COMP_WORDS": "orch status ti", "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": "orch status ti", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    process = orch.start(env=env)
    out, err = process.communicate(timeout=120)
    assert "tiny" in out and run in out and err == ""


def test_doctor(orch, home):
    ran = orch("doctor", "--json")
    by_name = {c["name"]: c for c in ran.json["checks"]}
    assert ran.json["v"] == 1 and ran.code in (0, 3)
    assert by_name["names"]["level"] != "fail" and by_name["home"]["level"] == "ok"
    home.path.chmod(0o755)
    assert "chmod 700" in orch("doctor").out


def test_a_foreign_package_is_named(orch, tmp_path):
    intruder = tmp_path / "evil" / "kernels"
    intruder.mkdir(parents=True)
    (intruder / "__init__.py").write_text("")
    env = orch.env()
    env["PYTHONPATH"] = f"{intruder.parent}:{env['PYTHONPATH']}"
    process = orch.start("doctor", env=env)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3 and str(intruder) in out


def test_down_with_nothing_running(orch, home):
    home.keeper_record.unlink()
    assert orch("down").out == "nothing to stop: no keeper runs here\n"
    assert orch("down", "--json").json == {"v": 1, "stopped": False}
