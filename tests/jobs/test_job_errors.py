"""Bad job files and the blocks they give, as golden files: tests/golden/errors/job_<nn>_<what>.{yaml,txt}.

A first line `#: WORD...` in the YAML gives options (`--set K=V`, `--name N`). ORCH_REGEN=1 writes the texts anew; read
the difference before it is committed.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from orchestrator.jobs.jobfile import command_job, load_job, recipes
from workloads.contract.errors import LocalError, OrchError, SpecError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "errors"
CASES = sorted(GOLDEN.glob("job_*.yaml"))


def options(path: Path) -> tuple[list[str], str | None]:
    first = path.read_bytes().split(b"\n", 1)[0].decode(errors="replace")
    words = shlex.split(first.removeprefix("#:")) if first.startswith("#:") else []
    pairs = list(zip(words[::2], words[1::2], strict=True))
    return [v for k, v in pairs if k == "--set"], next((v for k, v in pairs if k == "--name"), None)


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_bad_job_files(case: Path) -> None:
    sets, name = options(case)
    with pytest.raises(OrchError) as e:
        load_job(case.name, sets=sets, name=name, cwd=GOLDEN)
    text = e.value.render() + "\n"
    expected = case.with_suffix(".txt")
    if os.environ.get("ORCH_REGEN"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert e.value.exit_code == 2
    assert "fix:" in text


def test_there_are_cases() -> None:
    assert len(CASES) >= 20


def test_recipes_are_good_jobs() -> None:
    assert "tiny" in recipes()
    for name, path in recipes().items():
        loaded = load_job(name, cwd=Path("/"))
        assert loaded.spec.name in (name, f"lm-{name}") and loaded.source == str(path)  # no name begins with a digit


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\n")
    with pytest.raises(SpecError) as spec:
        load_job("tinny", cwd=tmp_path)
    assert spec.value.did_you_mean == "tiny" and "tiny" in str(spec.value.expected)
    with pytest.raises(LocalError) as local:
        load_job("jbo.yaml", cwd=tmp_path)
    assert local.value.did_you_mean == "job.yaml" and str(tmp_path / "jbo.yaml") in str(local.value.where)
    with pytest.raises(SpecError) as spec:
        load_job(str(tmp_path), cwd=tmp_path)
    assert spec.value.fix == f"orch launch {tmp_path}/job.yaml"
    for ref in ("x" * 5000, "a\0b", ""):
        with pytest.raises(OrchError):
            load_job(ref, cwd=tmp_path)
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(SpecError):
        load_job("fifo.yaml", cwd=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\n")
    path.chmod(0)
    with pytest.raises(LocalError) as e:
        load_job("job.yaml", cwd=tmp_path)
    assert str(path) in str(e.value.where)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["python", "my_train.py", "--lr", "3e-4"], "my-train"),
        (["/usr/bin/python3.12", "-u", "-X", "dev", "dir/Big Model.py"], "big-model"),
        (["python", "-m", "pkg.sub.train"], "train"),
        (["python", "-m", "pkg.__main__"], "pkg"),
        (["python", "-c", "print()"], "python"),
        (["./run.sh", "x"], "run"),
        (["bash", "-e", "go_now.sh"], "go-now"),
        (["123"], "command-123"),
        (["ü"], "command"),
        ([""], "command"),
        (["torchrun", "--nproc=2", "t.py"], "t"),
        (["a" * 80], "a" * 39),
    ],
)
def test_names_of_commands(argv: list[str], name: str) -> None:
    assert command_job(argv, name=None, cwd=Path("/")).spec.name == name


def test_arguments_stay_whole() -> None:
    argv = ["./x", "", "a b", "\udcff", "new\nline", "--", "$(id)", "no", "*x"]
    loaded = command_job(argv, name="mine", sets=["resources.ranks=2"], cwd=Path("/"))
    assert loaded.spec.command == argv and loaded.source == "command line"
    assert loaded.spec.resources.ranks == 2


def test_a_command_line_that_is_wrong_points_at_its_options() -> None:
    with pytest.raises(UsageError) as usage:
        command_job(["x"], name="Bad Name", cwd=Path("/"))
    assert usage.value.did_you_mean == "bad-name" and usage.value.where == "--name"
    with pytest.raises(SpecError) as spec:
        command_job(["x"], name=None, sets=["resources.rank=2"], cwd=Path("/"))
    assert spec.value.where == "--set resources.rank=2" and spec.value.did_you_mean == "resources.ranks"


def test_overrides_and_name_reach_the_job() -> None:
    loaded = load_job("tiny", sets=["train.steps=7", "train.warmup_steps=2"], name="other", cwd=Path("/"))
    assert (loaded.spec.name, loaded.spec.train.steps) == ("other", 7)
    assert loaded.where("train.steps") == "--set train.steps=7"
    assert loaded.where("train.lr").startswith("recipe tiny:")
