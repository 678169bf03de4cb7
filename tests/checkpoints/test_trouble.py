"""`trouble.jsonl`: written in any weather, read by offset, and any bytes in it give lines or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.saver import make_run
from workloads.contract.trouble import MAX_WAITING, Trouble, TroubleBook, Word, parse_trouble, read_troubles


def trouble(n: int, what: Word = Word.REJECTED, why: str = "a.bin is missing", kept: str | None = None) -> Trouble:
    return Trouble(what, f"step_{n:08d}", why, 2, 1.5, kept)


def test_lines_are_read_once_each_by_offset(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    book = TroubleBook(run)
    assert read_troubles(run) == ([], 0)
    first, second = trouble(1, kept="rejected_step_00000001_a2"), trouble(2, Word.UNSAVED)
    book.write(first)
    found, offset = read_troubles(run)
    assert found == [first]
    book.write(second)
    found, end = read_troubles(run, offset)
    assert found == [second] and read_troubles(run, end) == ([], end)
    assert read_troubles(run, end + 100)[0] == [first, second]  # shorter than it was: read anew
    told = "checkpoint step_00000001 was rejected: a.bin is missing (kept as rejected_step_00000001_a2)"
    assert first.sentence() == told


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    TroubleBook(run).write(trouble(1))
    with run.checkpoint_trouble.open("ab") as f:
        f.write(b'{"v":1,"what":"rej')
    found, offset = read_troubles(run)
    assert len(found) == 1
    TroubleBook(run).write(trouble(2))  # begins a line of its own
    assert [t.checkpoint for t in read_troubles(run, offset)[0]] == ["step_00000002"]


def test_what_the_disk_refuses_goes_with_a_later_line(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    book = TroubleBook(run)
    run.checkpoints.rmdir()
    for n in range(MAX_WAITING + 10):
        book.write(trouble(n))
    run.checkpoints.mkdir()
    book.write(trouble(999_999))
    found, _ = read_troubles(run)
    assert len(found) == MAX_WAITING and found[-1].checkpoint == "step_00999999"


PARTLY = """
import resource, signal, sys
import os
import subprocess
import sys
from pathlib import Path
from workloads.contract.rundir import RunDir
from workloads.contract.trouble import Trouble, TroubleBook, Word
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
book = TroubleBook(RunDir(Path(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
book.write(Trouble(Word.REJECTED, "step_00000001", "a.bin is missing", 1, 1.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
book.flush()
"""


def test_a_line_that_the_disk_took_in_part_is_written_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", PARTLY, str(run.path)], env=env, check=True, timeout=120)
    assert [t.checkpoint for t in read_troubles(run)[0]] == ["step_00000001"]


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    TroubleBook(run).write(trouble(1, why="\N{SKULL}\N{GRINNING FACE}" * 100_000))
    (found,), _ = read_troubles(run)
    assert len(found.why) == 1000


ANY = st.text(max_size=60).map(lambda t: f'{{"v":1,"what":"rejected","why":{t!r}}}'.encode())


@given(st.binary(max_size=300) | ANY)
def test_any_bytes_are_a_line_or_none(data: bytes) -> None:
    found = parse_trouble(data)
    assert found is None or isinstance(found.what, Word)
