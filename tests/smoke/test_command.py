"""`orch smoke` as a person has it: on files of any trainer and on runs that there are; baselines; reports; refusals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Made, Orch
from workloads.contract.files import atomic_write_json

ROWS = 250


def rows(seed: int = 0, *, n: int = ROWS, rate: float = 50_000.0, drop: float = 0.0, learn: float = 1.0) -> str:
    """training.csv of a steady run: 1 % of noise, a loss that falls by about a nat times `learn`."""
    rng = random.Random(seed)
    lines = ["step,loss,lr,toks_per_s,grad_norm,step_time_s,dt_fetch_s"]
    for step in range(1, n + 1):
        tps = rate * (1 - drop) * rng.gauss(1.0, 0.01)
        loss = 5.0 - learn * step / n + rng.gauss(0, 0.02)
        lines.append(f"{step},{loss!r},0.001,{tps!r},1.0,{2048 / tps!r},0.002")
    return "\n".join(lines) + "\n"


def file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


def finished(make: Callable[..., Made], text: str, *, steps: int = ROWS, lr: float = 1e-3, **env: Any) -> Made:
    """A run that has succeeded, with these rows."""
    made = make(world=1, kind=env.pop("kind", "train"))
    row = json.loads(made.run.run_json.read_text())
    row["job"] = {"name": "tiny", "train": {"steps": steps, "lr": lr}}
    row |= {"code": {"commit": "a" * 40, "dirty": False}, "versions": {"orch": "0.1.0"}, "gpus_per_rank": 0}
    atomic_write_json(made.run.run_json, row)
    versions = {"python": "3.11.9", "torch": env.pop("torch", "2.13.0")}
    atomic_write_json(made.run.env_json, {"v": 1, "device": "cpu", "cpus": 2, "versions": versions, **env})
    made.run.training_csv.write_text(text)
    made.beat(0, 1.0, step=steps, loss=4.0)
    made.status("succeeded", "all 1 ranks ended well")
    return made


def test_files_of_any_trainer_are_judged(orch: Orch, tmp_path: Path) -> None:
    file(tmp_path, "training.csv", rows())
    ran = orch("smoke", "--csv", "training.csv", "--min-tps", "40000", "--json")
    assert ran.code == 0 and ran.err == "" and ran.json["verdict"] == "go"
    assert {g["gate"]: g["verdict"] for g in ran.json["gates"]} == {
        "rows": "pass", "loss": "pass", "tokens/s": "pass", "fetches": "pass",
    }  # fmt: skip
    told = orch("smoke", "--csv", "training.csv", "--min-tps", "60000")
    assert told.code == 1 and "tokens/s" in told.out and ">= 60000" in told.out and "FAILED" in told.out
    assert told.out.rstrip().endswith("no-go: 1 of 4 gates failed: tokens/s")


def test_beats_alone_are_judged_and_tell_of_gates(orch: Orch, tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": i, "loss": 5 - i / 150, "toks_per_s": 9e3, "gate_entropy_mean": 0.2}) for i in range(150)
    ]
    file(tmp_path, "beats.jsonl", "\n".join(lines) + '\n{"step": 150, "lo')
    ran = orch("smoke", "--heartbeat", "beats.jsonl")
    assert ran.code == 1 and "1 of 5 gates failed: gate entropy" in ran.out
    assert "1 line is torn" in ran.out and "there is no training.csv" in ran.out


def test_a_run_that_there_is(orch: Orch, make: Callable[..., Made]) -> None:
    made = finished(make, rows())
    document = orch("smoke", "--run", made.run.run_id, "--json").json
    assert document["verdict"] == "go" and document["run"] == made.run.run_id and document["rows"] == ROWS
    assert document["machine"] == {"device": "cpu", "world_size": 1, "cpus": 2} and document["commit"] == "a" * 40
    assert document["gates"][0]["gate"] == "run"
    made.status("failed", "rank 0 exited with 1")
    ran = orch("smoke", "--run", "tiny")
    assert ran.code == 1 and "1 of 5 gates failed: run" in ran.out and "rank 0 exited with 1" in ran.out
    made.status("running", "")
    assert orch("smoke", "--run", "tiny").code == 0  # as far as it is


def test_a_run_without_rows_is_no_go(orch: Orch, make: Callable[..., Made]) -> None:
    made = make()
    made.status("succeeded")
    ran = orch("smoke", "--run", made.run.run_id)
    assert ran.code == 1 and "there is no row of a step" in ran.out and "rows, loss" in ran.out


def test_a_baseline_finds_a_drop_of_three_percent_and_lets_the_same_pass(
    orch: Orch,
    make: Callable[..., Made],
    tmp_path: Path,
) -> None:
    for seed in range(3):
        made = finished(make, rows(seed))
        ran = orch("smoke", "--run", made.run.run_id, "--save-baseline", "base.json")
        assert ran.code == 0 and f"baseline: base.json ({seed + 1} run" in ran.out
    again = orch("smoke", "--run", made.run.run_id, "--save-baseline", "base.json", "--json").json
    assert again["saved"] == "base.json"
    saved = json.loads((tmp_path / "base.json").read_text())
    assert len(saved["runs"]) == 3  # the same run takes its own place
    assert saved["machine"]["device"] == "cpu" and saved["runs"][0]["commit"] == "a" * 40
    assert saved["runs"][0]["versions"]["torch"] == "2.13.0" and len(saved["runs"][0]["blocks"]) == 20

    same = finished(make, rows(10))
    ran = orch("smoke", "--run", same.run.run_id, "--compare-baseline", "base.json", "--json")
    assert ran.code == 0 and ran.json["baseline"]["good"] and ran.json["baseline"]["tolerance_percent"] == 2
    slow = finished(make, rows(11, drop=0.03), torch="2.14.0")
    ran = orch("smoke", "--run", slow.run.run_id, "--compare-baseline", "base.json")
    assert ran.code == 1 and "regression: slower by" in ran.out and "torch: 2.13.0 then, 2.14.0 now" in ran.out
    ran = orch("smoke", "--run", slow.run.run_id, "--compare-baseline", "base.json", "--tolerance", "5%")
    assert ran.code == 0 and "clean: slower by" in ran.out and "within 5 %" in ran.out
    dull = finished(make, rows(12, learn=0.5))
    ran = orch("smoke", "--run", dull.run.run_id, "--compare-baseline", "base.json")
    assert ran.code == 1 and "the loss is higher by more than 2 %" in ran.out


def test_what_cannot_be_compared_is_refused_by_name(
    orch: Orch,
    make: Callable[..., Made],
    tmp_path: Path,
) -> None:
    first = finished(make, rows())
    assert orch("smoke", "--run", first.run.run_id, "--save-baseline", "base.json").code == 0

    def compared(made: Made) -> Any:
        ran = orch("smoke", "--run", made.run.run_id, "--compare-baseline", "base.json")
        assert "GATE" in ran.out and "go: " in ran.out  # the gates are told all the same
        return ran

    ran = compared(finished(make, rows(), lr=2e-3))
    assert ran.code == 6 and "E-SMOKE-005" in ran.err and "another job: train.lr" in ran.err
    ran = compared(finished(make, rows(), device="cuda:0", gpu="NVIDIA H200"))
    assert ran.code == 6 and "another kind of machine: device, gpu, cpus" in ran.err
    ran = compared(finished(make, rows(n=200)))
    assert ran.code == 6 and "E-SMOKE-004" in ran.err and "fix:   --steps 250" in ran.err
    ran = compared(first)
    assert ran.code == 6 and "E-SMOKE-003" in ran.err
    short = finished(make, rows(n=99))
    ran = orch("smoke", "--run", short.run.run_id, "--save-baseline", "new.json")
    assert ran.code == 1 and "no baseline is kept of a run that is no-go" in ran.err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("[" * 9999, "no JSON"),
        ('{"v":1}', "no baseline of orch smoke"),
        ('{"v":1,"what":"baseline of orch smoke","job":{},"machine":{},"runs":[]}', "1 to 21 runs"),
    ],
)
def test_a_file_that_is_no_baseline_is_found_before_anything_is_launched(
    orch: Orch,
    tmp_path: Path,
    text: str,
    why: str,
) -> None:
    file(tmp_path, "base.json", text)
    for option in ("--compare-baseline", "--save-baseline"):
        ran = orch("smoke", "tiny", option, "base.json")
        assert ran.code == 3 and "E-SMOKE-001" in ran.err and why in ran.err
    assert (tmp_path / "base.json").read_text() == text


def test_a_report_of_one_page(orch: Orch, make: Callable[..., Made], tmp_path: Path) -> None:
    made = finished(make, rows())
    path = Path(orch("smoke", "--run", made.run.run_id, "--file-report", "--json").json["report"])
    assert path.parent == tmp_path / "reports" and path.name.endswith(
        " Test Engineer Report - Smoke of tiny on local v1.md"
    )
    text = path.read_text()
    heads = ["Verdict", "Objectives", "Environment", "Exact commands", "Results", "Evidence"]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == heads
    assert "**go: 4 of 5 gates passed; 1 not judged**" in text
    assert f"orch smoke --run {made.run.run_id} --file-report --json" in text and str(made.run.training_csv) in text
    assert len(text.splitlines()) < 70
    again = Path(orch("smoke", "--run", made.run.run_id, "--file-report", "--json").json["report"])
    assert again.name.endswith("v2.md") and "It replaces version 1 of the same day." in again.read_text()


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        ((), 2, "E-SMOKE-010"),
        (("tiny", "--run", "tiny"), 2, "E-SMOKE-010"),
        (("--csv", "x.csv", "--steps", "5"), 2, "E-SMOKE-010"),
        (("--csv", "not-there.csv"), 3, "E-SMOKE-008"),
        (("tiny", "--steps", "many"), 2, "E-CLI-004"),
        (("tiny", "--min-tps", "fast"), 2, "E-CLI-004"),
        (("tiny", "--tolerance", "lots"), 2, "E-CLI-004"),
        (("tiny", "--save-baseline", "no/such/place.json"), 3, "E-SMOKE-002"),
        (("tiny", "--compare-baseline", "not-there.json"), 3, "E-SMOKE-001"),
        (("tniy",), 2, "did you mean: tiny"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(orch: Orch, args: tuple[str, ...], code: int, word: str) -> None:
    ran = orch("smoke", *args)
    assert ran.code == code and word in ran.err, ran.err


def test_kinds_without_steps_are_refused(orch: Orch, make: Callable[..., Made], tmp_path: Path) -> None:
    made = make(kind="parity")
    ran = orch("smoke", "--run", made.run.run_id)
    assert ran.code == 2 and "E-SMOKE-009" in ran.err
    file(tmp_path, "job.yaml", "name: p\nkind: parity\n")
    ran = orch("smoke", "job.yaml")
    assert ran.code == 2 and "E-SMOKE-006" in ran.err
    file(tmp_path, "job.yaml", "name: c\nkind: command\ncommand: [python, x.py]\n")
    ran = orch("smoke", "job.yaml", "--steps", "100")
    assert ran.code == 2 and "E-SMOKE-007" in ran.err
