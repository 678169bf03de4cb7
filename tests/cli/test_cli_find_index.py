"""Which run is meant, and an index that can be missing, locked, damaged or foreign."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3

import pytest

from orchestrator.cli.blocks import block_of
from orchestrator.runs.find import pick, resolve
from orchestrator.runs.index import IndexRow, list_runs, rebuild, record
from workloads.contract.errors import LocalError, UsageError
from workloads.contract.files import read_json
from workloads.contract.rundir import OrchHome


def row(run: str, present: bool = True) -> IndexRow:
    return IndexRow(run, run.rsplit("-", 2)[0], 0.0, "train", ("local",), present)


A = row("tiny-20261121T090000Z-aaaa")
B = row("tiny-20261121T080000Z-bbbb")
C = row("tiny-long-20261121T070000Z-cccc")
ROWS = [A, B, C]


@pytest.mark.parametrize(
    ("ref", "found"),
    [("latest", A), ("tiny", A), (B.run, B), ("tiny-20261121T08", B), ("tiny-l", C), ("tiny-long", C)],
)
def test_pick(ref, found):
    assert pick(ROWS, ref) == found


@pytest.mark.parametrize(
    ("rows", "ref", "code"),
    [
        (ROWS, "tiny-2026", "E-RUN-002"),
        (ROWS, "tinny", "E-RUN-001"),
        (ROWS, "", "E-RUN-001"),
        (ROWS, "../../etc", "E-RUN-001"),
        ([], "latest", "E-RUN-004"),
        ([row(A.run, False), B], A.run, "E-RUN-003"),
    ],
)
def test_pick_refuses(rows, ref, code):
    with pytest.raises(UsageError) as e:
        pick(rows, ref)
    assert e.value.code == code and e.value.exit_code == 2


def test_both_are_named():
    with pytest.raises(UsageError) as e:
        pick(ROWS, "tiny-2026")
    assert A.run in e.value.render() and B.run in e.value.render()


def test_nearest_is_named():
    with pytest.raises(UsageError) as e:
        pick(ROWS, "tinny")
    assert e.value.did_you_mean == "tiny"


def test_runs_on_disk_are_shown_without_having_been_recorded(home, make):
    made = make()
    assert [r.run for r in list_runs(home)] == [made.run.run_id]
    assert home.index.stat().st_mode & 0o777 == 0o600
    record(home, read_json(made.run.run_json))
    assert len(list_runs(home)) == 1


@pytest.mark.parametrize("damage", ["garbage", "torn", "foreign", "directory", "version"])
def test_damaged_index_is_made_anew(home, make, damage, capsys):
    made = make()
    list_runs(home)
    if damage == "garbage":
        home.index.write_bytes(b"not a database at all " * 100)
    elif damage == "torn":
        home.index.write_bytes(home.index.read_bytes()[:5000] + b"\0" * 50)
    elif damage == "directory":
        home.index.unlink()
        home.index.mkdir()
    else:
        with sqlite3.connect(home.index) as db:
            db.execute("PRAGMA user_version=99" if damage == "version" else "DROP TABLE runs")
        db.close()
    for suffix in ("-wal", "-shm"):
        home.index.with_name(home.index.name + suffix).unlink(missing_ok=True)
    assert [r.run for r in list_runs(home)] == [made.run.run_id]
    capsys.readouterr()
    assert [r.run for r in list_runs(home)] == [made.run.run_id]
    if damage != "directory":
        assert capsys.readouterr().err == "", "the first listing repaired it"


def test_locked_index_does_not_stop_a_command(home, make, capsys):
    made = make()
    list_runs(home)
    make("other")
    holder = sqlite3.connect(home.index, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert {r.name for r in list_runs(home)} == {"tiny", "other"}
    assert "locked" in capsys.readouterr().err
    holder.execute("ROLLBACK")
    holder.close()
    assert resolve(home, "tiny").run_id == made.run.run_id


def test_home_that_is_not_there(home):
    shutil.rmtree(home.path)
    assert list_runs(home) == []
    assert not home.path.exists(), "looking made nothing"


def test_unreadable_run_json_is_listed_by_its_id(home, make):
    made = make(created=1_795_000_000.0)
    made.run.run_json.write_bytes(b"{torn")
    found = list_runs(home)[0]
    assert (found.name, found.kind, found.created) == ("tiny", "unknown", 1_795_000_000.0)


def test_rebuild_counts(home, make):
    for i in range(3):
        make(f"r-{i}")
    os.makedirs(home.runs / ".tmp_half")
    os.makedirs(home.runs / "foreign")
    assert rebuild(home) == 3


def test_a_full_disk_loses_no_row_of_the_index(home, make, capsys):
    gone = make(name="gone").run
    list_runs(home)
    gone.path.rename(home.path / "elsewhere")
    make(name="new")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk
    try:
        assert [r.name for r in list_runs(home)] == ["new"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be used now" in capsys.readouterr().err
    assert {r.name for r in list_runs(home)} == {"new", "gone"}


def test_an_index_that_cannot_be_rebuilt_is_told(home, make):
    make()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(LocalError) as e:
            rebuild(home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.code == "E-INDEX-001"


def test_no_home_and_no_right_to_it_are_told_as_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        rebuild(OrchHome(tmp_path / "none"))
    assert isinstance(block_of(e.value), LocalError) and block_of(e.value).code == "E-CLI-010"
