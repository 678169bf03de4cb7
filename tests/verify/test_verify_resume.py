"""`orch verify-resume`: what it says of two ledgers, what it refuses, and the whole of it on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.verifyresume import short_job
from orchestrator.runs.ledgers import Row
from orchestrator.runs.source import LocalSource
from orchestrator.runs.verifyresume import (
    DIFFERENT,
    EQUAL,
    UNPROVEN,
    Kill,
    Made,
    Verified,
    compare,
    compare_moved,
    first_kill,
    plan_kills,
)
from tests.cli.conftest import Made as MadeRun
from tests.cli.conftest import Orch as Command
from tests.cli.conftest import make_run
from tests.local.conftest import CPUS, Orch, make_orch
from tests.local.test_train import SMALL
from tests.verify.test_ledgers import STEPS, next_up, rows, wire
from workloads.contract.errors import UsageError
from workloads.contract.rundir import OrchHome


def a_run(root: Path, found: list[Row], state: str = "succeeded") -> tuple[LocalSource, MadeRun]:
    home = OrchHome(root)
    made = make_run(home)
    made.status(state)
    made.run.ledger.write_bytes(wire(found))
    return LocalSource(home, made.run), made


def compared(tmp_path: Path, one: list[Row], other: list[Row], *, made: int = 1, state: str = "succeeded") -> Verified:
    first, second = a_run(tmp_path / "one", one)[0], a_run(tmp_path / "other", other, state)[0]
    kills = (Kill(5, (0, 1)),)
    return compare(
        first, second, (first.view(), second.view()), steps=STEPS, world=2, pod="local", seed=7, kills=kills,
        made=(Made(5, 6, 1, (0, 1)),) * made,
    )  # fmt: skip


def resumed(after: int = 4) -> list[Row]:
    """A ledger whose second attempt went on behind step `after`."""
    return rows()[:after] + rows(attempt=2)[after:]


def test_equal(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(), resumed())
    assert found.verdict == EQUAL and found.lines()[-1] == f"equal: {STEPS} batch hashes and losses, bit for bit"
    assert found.as_json()["kills"] == [{"planned": 5, "step": 6, "attempt": 1, "ranks": (0, 1)}]


def test_the_first_difference_with_both_rows(tmp_path: Path) -> None:
    other = resumed()
    other[6] = next_up(other[6])
    found = compared(tmp_path, rows(), other)
    assert found.verdict == DIFFERENT and found.as_json()["difference"]["step"] == 7
    told = found.lines()[-3:]
    assert told[0] == "different: step 7: another loss"
    assert rows()[6].loss in told[1] and other[6].loss in told[2] and "attempt 2" in told[2]


def test_a_step_that_came_out_otherwise_the_second_time(tmp_path: Path) -> None:
    source, made = a_run(tmp_path / "other", resumed())
    made.run.archived_ledger(1).write_bytes(wire([next_up(rows()[4])]) + b'{"torn')
    first = a_run(tmp_path / "one", rows())[0]
    view = replace(source.view())
    found = compare(
        first, source, (first.view(), view), steps=STEPS, world=1, pod="local", seed=7, kills=(Kill(5, (0,)),),
        made=(Made(5, 5, 1, (0,)),),
    )  # fmt: skip
    assert found.verdict == DIFFERENT and found.again == 1 and "made a second time" in found.lines()[-3]


def test_what_proves_nothing_is_not_equal(tmp_path: Path) -> None:
    late = compared(tmp_path / "late", rows(), rows(), made=0)
    assert late.verdict == UNPROVEN and "1 of 1 kills came too late" in late.lines()[-1]
    failed = compared(tmp_path / "failed", rows(), rows()[:4], state="failed")
    assert failed.verdict == UNPROVEN and "is failed" in failed.why and failed.difference is None
    over = compared(tmp_path / "over", rows(), rows())
    assert over.verdict == UNPROVEN and "no step was made after the kill behind step 6" in over.lines()[-1]


@pytest.mark.parametrize(
    ("second", "third", "verdict"), [(4, 6, EQUAL), (0, 6, UNPROVEN), (4, 0, UNPROVEN), (0, 0, UNPROVEN)]
)
def test_a_resume_that_loaded_no_checkpoint_proves_nothing(
    tmp_path: Path, second: int, third: int, verdict: str
) -> None:
    """The second attempt went on behind one step and was killed behind step 8, the third behind another."""
    ledger = (rows()[:second] + rows(attempt=2)[second:])[:third] + rows(attempt=3)[third:]
    first, (source, made) = a_run(tmp_path / "one", rows())[0], a_run(tmp_path / "other", ledger)
    made.status("succeeded", attempt=3)
    made.run.archived_ledger(1).write_bytes(wire(rows()[second:6]))
    made.run.archived_ledger(2).write_bytes(wire(rows(attempt=2)[max(second, third) : 8]))
    found = compare(
        first, source, (first.view(), source.view()), steps=STEPS, world=2, pod="local", seed=7,
        kills=(Kill(5, (0,)), Kill(7, (0,))), made=(Made(5, 6, 1, (0,)), Made(7, 8, 2, (0,))),
    )  # fmt: skip
    assert (found.verdict, found.difference) == (verdict, None)
    assert ("no checkpoint was loaded after the kill" in found.lines()[-1]) == (verdict == UNPROVEN)


def test_checkpoints_are_made_whatever_is_set_and_no_kill_comes_before_them(tmp_path: Path) -> None:
    sets = ["checkpoint.every_steps=null", "checkpoint.every_s=30"]
    job = short_job("tiny", sets, [], steps=60, kills=1, world=None).spec
    assert (job.checkpoint.every_steps, job.checkpoint.every_s) == (8, 30)
    first = first_kill(8)
    drawn = [plan_kills(1, 60, 1, seed, first=first)[0].step for seed in range(300)]
    assert (min(drawn), max(drawn)) == (17, 54)
    with pytest.raises(UsageError) as e:
        plan_kills(39, 60, 1, 0, first=first)
    assert e.value.code == "E-VERIFY-001" and e.value.fix == "--kills 38"
    with pytest.raises(UsageError) as e:
        plan_kills(1, 3, 1, 0, first=first_kill(1))
    assert e.value.fix == "--steps 60"


def test_another_world_size_goes_on_within_its_bound(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", rows())[0]
    near = [replace(r, world_size=1, loss=(r.value * (1 + 5e-6)).hex()) for r in rows()[5:]]
    far = [*near[:3], replace(near[3], loss=(near[3].value * (1 + 5e-5)).hex()), *near[4:]]
    for name, ledger, step in (("near", near, None), ("far", far, 9)):
        other = a_run(tmp_path / name, ledger)[0]
        moved = compare_moved(one, other, other.view(), world=1, after=5, steps=STEPS)
        assert (moved.difference.step if moved.difference else None) == step
        assert "1 rank " in moved.words() and "from step 5 on" in moved.words()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(OrchHome(tmp_path / "home"), tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("argv", "code"),
    [(("tiny", "--kills", "0"), "E-CLI-004"), (("tiny", "--world-sizes", "2"), "E-CLI-004"),
     (("tiny", "--seed", "x"), "E-CLI-004"), (("job.yaml",), "E-VERIFY-004")],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused_before_anything_runs(
    command: Command, tmp_path: Path, argv: tuple[str, ...], code: str
) -> None:
    (tmp_path / "job.yaml").write_text("name: mine\nkind: command\ncommand: [sleep, '1']\n")
    ran = command("verify-resume", *argv)
    assert ran.code == 2 and code in ran.err and ran.out == "", ran.err


Make = Callable[[], Orch]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(CPUS < 2, reason="two ranks need two CPUs")
def test_the_whole_of_it() -> None:
    orch = make_orch()
    try:
        argv = ("--kills", "1", "--steps", "100", "--seed", "11", "--world-sizes", "2,1")
        process = orch.popen("verify-resume", "tiny", *SMALL, *argv, "--json")
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, f"{out}\n{err}"
    finally:
        orch.remove()
    told = json.loads(out)
    assert told["verdict"] == EQUAL and told["world_size"] == 2 and len(told["kills"]) == 1
    assert [m["world_size"] for m in told["moved"]] == [1] and told["moved"][0]["difference"] is None
