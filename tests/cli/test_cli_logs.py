"""`orch logs`: byte-true, harmless, by rank, by time, following to the end."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.logs import LogReader, error_blocks, is_news, last_lines, tail_offset
from orchestrator.runs.render import decode, harmless
from orchestrator.runs.since import parse_since, place_of, start_of
from workloads.contract.beats import Beat
from workloads.contract.errors import UsageError
from workloads.contract.states import Phase


@given(st.text() | st.binary().map(decode))
def test_harmless_leaves_nothing_that_moves_a_cursor(text):
    out = harmless(text)
    assert all(c in "\n\t" or (c.isprintable() or ord(c) > 0x9F) for c in out)
    assert not set(out) & {"\x1b", "\r", "\x9b", "\u202e", "\u2066", "\u200f", "\u2028"}
    out.encode()
    assert harmless(out) == out


def test_all_ranks_and_one(orch, make):
    made = make()
    made.log(0, b"a\nb\n")
    made.log(1, b"c\n")
    assert orch("logs", "tiny").out == "[rank 0] a\n[rank 0] b\n[rank 1] c\n"
    assert orch("logs", "tiny", "--rank", "0", "-n", "1").out == "b\n"
    assert orch("logs", "tiny", "--json").json["ranks"][1] == {"rank": 1, "lines": ["c"], "left_out": False}
    wrong = orch("logs", "tiny", "--rank", "7")
    assert wrong.code == 2 and "E-RUN-005" in wrong.err and "0 to 1" in wrong.err


def test_escapes_are_shown_and_raw_is_raw(orch, make):
    made = make(world=1)
    hostile = b"\x1b]0;owned\x07red\x1b[31m\xff\xc2\x9b\n10%\r20%\r\n"
    made.log(0, hostile)
    out = orch("logs", "tiny").out
    assert out == "\\x1b]0;owned\\x07red\\x1b[31m\\xff\\x9b\n10%\n20%\n"
    process = orch.start("logs", "tiny", "--raw", text=False)
    assert process.communicate(timeout=120)[0] == hostile


def test_raw_is_byte_for_byte_in_lines_longer_than_a_reader_holds_and_at_an_end_without_newline(orch, make):
    made = make(world=1)
    data = b"x" * 200_000 + b"\n" + b"y" * 70_000 + b"\nno end"
    made.log(0, data)
    assert orch.start("logs", "tiny", "--raw", text=False).communicate(timeout=120)[0] == data


def test_a_last_line_without_end_is_shown(orch, make):
    make(world=1).log(0, b"one\ntwo")
    assert orch("logs", "tiny").out == "one\ntwo\n"


def test_follow_shows_everything_and_ends_with_the_run(orch, make):
    made = make()
    made.status("running", supervisor=made.supervised())
    made.log(0, b"before\n")
    process = orch.start("logs", "tiny", "-f")
    assert process.stdout.readline() == "[rank 0] before\n"
    made.log(1, b"half")
    time.sleep(0.5)
    made.log(1, b" and half\n")
    assert process.stdout.readline() == "[rank 1] half and half\n"
    made.run.rank_log(0).write_bytes(b"")  # truncated: a reader starts over
    time.sleep(0.5)
    made.log(0, b"anew\n")
    assert process.stdout.readline() == "[rank 0] anew\n"
    made.log(0, b"the end")
    made.status("succeeded")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "[rank 0] the end\n", "")


def test_following_a_run_that_waits_says_for_what_and_not_every_second(orch, make):
    made = make(world=1)
    process = orch.start("logs", "tiny", "-f")
    for n in range(20):
        made.status("queued", f"behind other-run, for {n} s", supervisor=made.supervised())
        time.sleep(0.2)
    made.status("queued", "needs 1 of 2 CPUs", supervisor=made.supervised())
    time.sleep(1)
    made.status("running", supervisor=made.supervised())
    made.log(0, b"at last\n")
    assert process.stdout.readline() == "at last\n"
    made.status("succeeded")
    out, err = process.communicate(timeout=120)
    first, second = err.splitlines()
    assert (process.returncode, out) == (0, "")
    assert first.startswith("queued: behind other-run, for ") and second == "queued: needs 1 of 2 CPUs"


def test_broken_pipe_is_silent(orch, make):
    made = make(world=1)
    made.log(0, b"line\n" * 200_000)
    process = orch.start("logs", "tiny")
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == -13


def test_interrupt_is_silent(orch, make):
    made = make(world=1)
    made.status("running", supervisor=made.supervised())
    made.log(0, b"x\n")
    process = orch.start("logs", "tiny", "-f")
    process.stdout.readline()
    process.send_signal(2)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "") and out in ("", "\n")


TRACE = """fine
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    boom()
ValueError: boom
fine again
[W123] UserWarning: careful
fine"""


def test_error_blocks():
    blocks = list(error_blocks(iter(TRACE.split("\n"))))
    assert [(b.line, len(b.lines)) for b in blocks] == [(2, 4), (7, 1)]


def test_errors_and_the_end_of_a_dead_rank(orch, make):
    made = make()
    made.status("failed", "rank 1 died")
    made.record(0, ended=time.time(), exit_code=0)
    made.record(1, ended=time.time(), signal=9)
    made.log(0, TRACE.encode() + b"\n")
    made.log(1, b"".join(b"quiet %d\n" % i for i in range(100)))
    out = orch("logs", "tiny", "--errors").out
    assert "--- rank 0, line 2\n" in out and "ValueError: boom\n" in out and "fine again" not in out
    assert "--- rank 1, its last lines (killed by signal 9)\nquiet 70\n" in out
    assert len(orch("logs", "tiny", "--errors", "--json").json["errors"]) == 3


@pytest.mark.parametrize(("line", "news"), [
    ("warning: checkpoint step_00000105 is not used: __0_0.distcp has 1000 bytes", True),
    ("error: the last checkpoint could not be saved", True),
    ("ld: error: undefined symbol", True),
    ("error[E-DATA-001]: no such file", True),
    ("step 3 | val error: 0.3", False),
    ("warnings: 0", False),
])  # fmt: skip
def test_what_speaks_of_an_error(line, news):
    assert is_news(line) is news


@pytest.mark.parametrize("args", [("-f", "--errors"), ("-f", "--json"), ("--raw", "--json")])
def test_clashing_options(orch, make, args):
    make()
    ran = orch("logs", "tiny", *args)
    assert ran.code == 2 and "E-CLI-007" in ran.err


def beat(ts: float, step: int, attempt: int = 1) -> Beat:
    return Beat(0, ts, Phase.PROGRESS, 0, 1, attempt, {"step": step})


def lines_of(*steps: int) -> list[tuple[int, int]]:
    return [((i + 1) * 10, step) for i, step in enumerate(steps)]


def test_place_of_one_attempt():
    lines, beats = lines_of(1, 2, 3, 4), [beat(t, t) for t in (1, 2, 3, 4)]
    assert place_of(lines, beats, 2.5) == 20
    assert place_of(lines, beats, 99) == 40
    assert place_of(lines, beats, 0.5) is None


def test_place_of_repeated_steps():
    lines = lines_of(1, 2, 3, 4, 3, 4, 5)
    beats = [beat(1, 2), beat(2, 4), beat(11, 3, 2), beat(12, 5, 2)]
    assert place_of(lines, beats, 1.5) == 20
    assert place_of(lines, beats, 3) == 40, "the end of attempt 1"
    assert place_of(lines, beats, 11.5) == 50


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_place_of_never_hides_what_came_later(lengths, data):
    """Attempts that go back a little each time: nothing printed after the moment is ever left out."""
    lines, beats, clock, step = [], [], 0.0, 0
    for attempt, length in enumerate(lengths, 1):
        step = max(0, step - data.draw(st.integers(0, 3)))
        for _ in range(length):
            step, clock = step + 1, clock + 1
            lines.append((len(lines) * 10 + 10, step, clock))
            beats.append(beat(clock + 0.1, step, attempt))
    moment = data.draw(st.integers(0, int(clock))) + 0.5
    place = place_of([(o, s) for o, s, _ in lines], beats, moment) or 0
    assert all(offset > place for offset, _, printed in lines if printed > moment)


def test_since_by_heartbeats(orch, make):
    made, now = make(world=1), time.time()
    made.status("running", supervisor=made.supervised())
    for i in range(10):
        made.beat(0, now - 100 + i * 10, step=i)
        made.log(0, b"step %d | loss 1\nnoise\n" % i)
    out = orch("logs", "tiny", "--since", "35s").out
    assert out.startswith("noise\nstep 7 | loss 1\n") and out.endswith("step 9 | loss 1\nnoise\n")
    assert orch("logs", "tiny", "--since", "1h").out.count("\n") == 20
    os.utime(made.run.rank_log(0), (now - 50, now - 50))
    assert orch("logs", "tiny", "--since", "10s").out == ""


def test_since_without_steps_says_so(orch, make):
    made = make(world=1)
    made.log(0, b"x\n")
    ran = orch("logs", "tiny", "--since", "10m")
    assert ran.out == "x\n" and "prints no steps" in ran.err


def test_since_attempt(make):
    made = make(world=1)
    for i, (step, attempt) in enumerate([(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]):
        made.beat(0, 100.0 + i, attempt=attempt, step=step)
        made.log(0, b"step %d | loss 1\n" % step)
    offset, note = start_of(made.run, 0, None, 2)
    assert note is None and made.run.rank_log(0).read_bytes()[offset:] == b"step 2 | loss 1\nstep 3 | loss 1\n"
    assert start_of(made.run, 0, None, 1) == (0, None)


@pytest.mark.parametrize("text", ["yesterday", "5mins", "-1s", "", "10", "2026-13-45", "1e9h", "9" * 40 + "s"])
def test_bad_times(text):
    with pytest.raises(UsageError) as e:
        parse_since(text, 0.0)
    assert e.value.code == "E-LOG-001"


def test_good_times():
    assert parse_since("10m", 1000.0) == 400.0
    assert parse_since("attempt", 0.0) is None
    assert parse_since("2026-11-21T09:30:00+00:00", 0.0) == parse_since("20261121T093000Z", 0.0)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_tail_is_the_tail(tmp_path_factory, data, lines):
    path = tmp_path_factory.mktemp("t") / "log"
    path.write_bytes(data)
    whole = data.split(b"\n")
    whole = whole[:-1] if whole[-1] == b"" else whole
    assert last_lines(path, lines) == [decode(line) for line in whole[-lines:]]
    assert tail_offset(path, 0) == len(data)


@given(st.lists(st.binary(max_size=60), max_size=12), st.integers(1, 40))
def test_reader_gives_every_byte_once(tmp_path_factory, pieces, limit):
    path = tmp_path_factory.mktemp("r") / "log"
    path.write_bytes(b"")
    reader, got = LogReader(path), []
    for piece in pieces:
        with path.open("ab") as f:
            f.write(piece)
        while reader.offset < path.stat().st_size:
            got += reader.read(limit=limit)
            assert reader.position <= path.stat().st_size
    got += reader.read(final=True)
    data = b"".join(pieces)
    whole = data.split(b"\n")
    assert got == (whole[:-1] if whole[-1] == b"" else whole)


def test_a_mishap_is_named_by_its_line_in_the_file(orch, make):
    made = make(world=1)
    made.log(0, b"fine\n" * 100 + b"ValueError: here\n" + b"fine\n" * 5)
    assert [e["line"] for e in orch("logs", "tiny", "--errors", "-n", "20", "--json").json["errors"]] == [101]


def test_a_hundred_megabytes_are_searched_in_a_moment():
    line = "x" * 1000
    began = time.process_time()
    assert list(error_blocks(line for _ in range(100_000))) == []
    assert time.process_time() - began < 2.0
