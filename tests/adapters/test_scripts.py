"""Scripts of others under real shims: five lines at most, halted and killed, gone on with, held to an unbroken run."""

from __future__ import annotations

import difflib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapters.conftest import SCRIPTS, STEPS, WAIT_S, Make, halt, losses, rows, story
from tests.supervisor.direct import Desk
from tests.supervisor.runs import request
from tests.train.harness import make_run, rank_env
from workloads.contract.beats import BeatReader
from workloads.contract.files import read_json
from workloads.contract.manifest import committed, verify
from workloads.contract.rundir import step_of_checkpoint


def added(without: str, with_: str) -> list[str]:
    """Lines that the script has only with orch; an altered one counts, an empty one does not."""
    texts = [(SCRIPTS / name).read_text().splitlines() for name in (without, with_)]
    return [x[1:] for x in difflib.unified_diff(*texts, lineterm="", n=0) if x[:1] == "+" and x[1:].strip("+ b")]


def go_on(desk: Desk) -> None:
    request(desk.run, "resume", "efgh", why="go on")
    desk.until("succeeded", timeout_s=WAIT_S)


def check_halted(desk: Desk, stopped: int, ranks: int = 1) -> None:
    """Exit 75 on every rank, and an acknowledged checkpoint that verifies."""
    for rank in range(ranks):
        assert desk.rank(1, rank)["exit_code"] == 75, story(desk)
        ack = read_json(desk.run.halt_ack(rank))
        assert ack["step"] == stopped and ack["checkpoint"] == desk.run.checkpoint(stopped).name and ack["hash"]
    assert verify(desk.run.checkpoint(stopped), run_id=desk.run.run_id) == []
    assert int(losses(desk.run)[-1][0]) == stopped


def check_equal(desk: Desk, unbroken: Desk, stopped: int, last: int) -> None:
    """The resumed run went on at the next step, and its losses are those of the unbroken one, digit by digit."""
    unbroken.until("succeeded", timeout_s=WAIT_S)
    assert f"resume: step {stopped} from" in story(desk)
    assert [int(step) for step, _ in losses(desk.run)] == list(range(1, last + 1))
    assert losses(desk.run) == losses(unbroken.run)
    beats = BeatReader(desk.run.heartbeat(0), 0).read()
    resumed = [b for b in beats if b.attempt == 2 and b.msg == "progress" and b.get("step") is not None]
    assert resumed and all(b.get("step") > stopped for b in resumed) and any(b.get("loss") for b in resumed)


@pytest.mark.parametrize(
    ("without", "with_", "most"),
    [
        ("plain.py", "plain_orch.py", 4),
        ("with_accelerate.py", "with_accelerate_orch.py", 4),
        ("with_trainer.py", "with_trainer_orch.py", 3),
    ],
)
def test_it_takes_five_lines_at_most(without: str, with_: str, most: int) -> None:
    assert len(added(without, with_)) == most <= 5


def test_a_plain_script_is_halted_and_goes_on_as_if_it_never_was(make: Make) -> None:
    desk = make("plain_orch.py", str(STEPS), "0.02", name="plain")
    unbroken = make("plain_orch.py", str(STEPS), "0", name="unbroken")
    unbroken.until("running")
    stopped = halt(desk, 20)
    assert 20 <= stopped < STEPS
    check_halted(desk, stopped)
    go_on(desk)
    check_equal(desk, unbroken, stopped, STEPS)
    assert not desk.run.archived_csv(1).exists()  # nothing was made twice
    env = read_json(desk.run.env_json)
    assert env["device"] == "cpu" and {"python", "torch"} <= set(env["versions"]) and env["attempt"] == 2


@pytest.mark.long
def test_a_plain_script_that_is_killed_goes_on_from_its_last_checkpoint(make: Make) -> None:
    desk = make("plain_orch.py", str(STEPS), "0.02", name="killed", checkpoint={"every_steps": 25, "every_s": None})
    unbroken = make("plain_orch.py", str(STEPS), "0", name="unbroken")
    unbroken.until("running")
    desk.turn(lambda: rows(desk.run) >= 60, WAIT_S)
    os.kill(desk.pid(1, 0).pid, signal.SIGKILL)
    desk.until("succeeded", timeout_s=WAIT_S)
    assert desk.status["attempt"] == 2
    kept = [step_of_checkpoint(p.name) for p in committed(desk.run)]
    assert kept == [150, 125]
    lost = desk.run.archived_csv(1).read_text().splitlines()[1:]
    resumed = int(story(desk).split("resume: step ")[1].split()[0])
    assert resumed % 25 == 0 and resumed >= 50 and int(lost[0].split(",")[0]) == resumed + 1
    check_equal(desk, unbroken, resumed, STEPS)


@pytest.mark.long
def test_several_ranks_stop_at_the_same_step_and_go_on(make: Make) -> None:
    desk = make("ddp_orch.py", str(STEPS), "0.02", name="ranks", world=2)
    unbroken = make("ddp_orch.py", str(STEPS), "0", name="unbroken", world=2)
    unbroken.until("succeeded", timeout_s=WAIT_S)
    stopped = halt(desk, 20)
    check_halted(desk, stopped, ranks=2)
    names = {p.name for p in desk.run.checkpoint(stopped).iterdir()}
    assert {"model.pt", "optimizer.pt", "rng_rank0.json", "rng_rank1.json", "manifest.json"} <= names
    go_on(desk)
    check_equal(desk, unbroken, stopped, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.proof)])
def test_a_damaged_checkpoint_of_a_script_is_never_loaded(make: Make, all_of_them: bool) -> None:
    desk = make("plain_orch.py", str(STEPS), "0.02", name="damaged", checkpoint={"every_steps": 10, "every_s": None})
    stopped = halt(desk, 25)
    kept = committed(desk.run)
    assert len(kept) == 2 and kept[0] == desk.run.checkpoint(stopped)
    for path in kept if all_of_them else kept[:1]:
        data = bytearray((path / "model.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "model.pt").write_bytes(data)
    request(desk.run, "resume", "efgh", why="go on")
    status = desk.until("failed" if all_of_them else "succeeded", timeout_s=WAIT_S)
    if all_of_them:
        assert status["exit_codes"] == {"0": 77} and "E-TRAIN-005" in story(desk)
        assert rows(desk.run) == stopped  # nothing was made again, nothing was lost
    else:
        assert f"warning: checkpoint {kept[0].name} is not used" in story(desk)
        assert f"resume: step {step_of_checkpoint(kept[1].name)} from" in story(desk)
        assert [int(step) for step, _ in losses(desk.run)] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_script_with_accelerate(make: Make) -> None:
    desk = make("with_accelerate_orch.py", "4", "0.02", name="accelerate")  # 40 batches an epoch
    unbroken = make("with_accelerate_orch.py", "4", "0", name="unbroken")
    unbroken.until("running")
    stopped = halt(desk, 45)
    assert 45 <= stopped < 160 and stopped % 40
    check_halted(desk, stopped)
    go_on(desk)
    check_equal(desk, unbroken, stopped, 160)


@pytest.mark.long
def test_a_script_with_the_trainer_of_transformers(make: Make) -> None:
    desk = make("with_trainer_orch.py", str(STEPS), name="trainer")
    unbroken = make("with_trainer_orch.py", str(STEPS), name="unbroken")
    stopped = halt(desk, 20)
    assert 20 <= stopped < STEPS
    check_halted(desk, stopped)
    go_on(desk)
    check_equal(desk, unbroken, stopped, STEPS)
    assert (Path(desk.gang.spec.cwd) / "trainer_output" / f"checkpoint-{stopped}").is_dir()  # as the Trainer saves it


def test_what_the_trainer_of_transformers_writes_again_and_tells_seldom(make: Make) -> None:
    """A checkpoint that is kept is not the file that the Trainer writes; tokens/s are those of one step."""
    desk = make("with_trainer_orch.py", "20", "10", name="seldom")
    desk.until("succeeded", timeout_s=WAIT_S)
    kept = desk.run.checkpoint(20)
    assert verify(kept, run_id=desk.run.run_id) == []
    theirs = Path(desk.gang.spec.cwd) / "trainer_output" / "checkpoint-20"
    for path in theirs.iterdir():
        path.write_bytes(path.read_bytes()[::-1])  # in its place, as torch.save does when the step is saved again
    assert verify(kept, run_id=desk.run.run_id) == []

    header, *lines = (row.split(",") for row in desk.run.training_csv.read_text().splitlines())
    cells = [dict(zip(header, map(float, line), strict=True)) for line in lines]
    assert [row["step"] for row in cells] == [10, 20]
    assert [row["toks_per_s"] * row["step_time_s"] for row in cells] == pytest.approx([8 * 32] * 2)


FULL = """
import resource
import torch
from accelerate import Accelerator
from workloads.adapters.accelerate import AccelerateRun

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(300, 300)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
run = AccelerateRun(accelerator)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # stands for the full disk
assert run.save(1) is None
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert run.save(2) is not None
"""


def test_a_full_disk_does_not_end_a_training_with_accelerate(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    env = rank_env(run, 0, 1, 1, 29500)
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning: checkpoint of step 1 was not saved" in done.stderr and "File too large" in done.stderr
    assert verify(run.checkpoint(2), run_id=run.run_id) == []


@pytest.mark.parametrize("script", ["plain_orch.py"])
def test_outside_orch_a_script_runs_as_it_did(script: str, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    env = {k: v for k, v in os.environ.items() if not k.startswith("ORCH_")} | {"PYTHONPATH": root}
    argv = [sys.executable, str(SCRIPTS / script), "30", "0"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0 and "done 30" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
