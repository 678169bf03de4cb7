"""What recorded dumps say in a few words, and which ranks belong together. Texts: `dumps/`, of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.remote.dumpgroups import RankDump, group
from pods.remote.stacktext import main_thread, normalised, shape, summary, threads_of, where

DUMPS = Path(__file__).parent / "dumps"
REDUCE = "faulthandler311_all_reduce"
HEADER = "=== orch stack dump run=r rank={0} attempt=1 pid={1} utc=x by=y why=z ===\nproc: python, state S (sleeping)\n"


def recorded(name: str) -> str:
    return (DUMPS / f"{name}.txt").read_text()


def of(rank: int, name: str, pid: int = 0, **kw: object) -> RankDump:
    text = HEADER.format(rank, pid or 100 + rank) + (recorded(name) if name else "")
    return RankDump(rank, pid or 100 + rank, "faulthandler", "f", text, **kw)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (REDUCE, "all_reduce at train.py:13"),
        ("faulthandler311_loader", "next(loader) at data.py:10"),
        ("faulthandler311_loader_worker", "__getitem__ at data.py:6"),
        ("faulthandler311_regex", "re.match at train.py:8"),
        ("faulthandler312_queue", "queue.get at q.py:7"),
        ("pyspy_loader", "next(loader) at data.py:10"),
        ("pyspy_regex", "re.match at train.py:8"),
        ("c_stuck", ""),
    ],
)
def test_the_call_and_the_line_of_the_users_code(name: str, said: str) -> None:
    assert where(recorded(name)) == where(HEADER.format(3, 41) + recorded(name)) == said


def test_both_tools_say_the_same_of_one_stack() -> None:
    assert shape(recorded("pyspy_loader")) == shape(recorded("faulthandler311_loader"))
    assert shape(recorded("pyspy_regex")) == shape(recorded("faulthandler311_regex"))


def test_the_main_thread_is_found_among_others() -> None:
    threads = threads_of(recorded("faulthandler311_loader"))
    main = main_thread(threads)
    assert len(threads) == 3 and main is threads[2] and main.frames[-1].function == "<module>"
    spied = threads_of(recorded("pyspy_loader"))
    assert [t.name for t in spied] == ["MainThread", "QueueFeederThread", "QueueFeederThread"]
    worker_took_it = recorded("faulthandler311_loader").replace("Current thread", "Thread", 1)
    worker_took_it = worker_took_it.replace("Thread 0x00007fbbdb", "Current thread 0x00007fbbdb", 1)
    assert where(worker_took_it) == "next(loader) at data.py:10"


def stack(*frames: tuple[str, int, str]) -> str:
    lines = "".join(f'  File "{file}", line {line} in {function}\n' for file, line, function in frames)
    return "Current thread 0x00007f (most recent call first):\n" + lines


LIB = "/usr/lib/python3.12"
TORCH = "/opt/venv/lib/python3.12/site-packages/torch"
USER = ("/home/u/train.py", 212, "step")


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([USER], "step at train.py:212"),
        ([("/home/u/train.py", 7, "<module>")], "train.py:7"),
        ([(f"{LIB}/threading.py", 9, "wait"), (f"{LIB}/threading.py", 8, "join"), USER],
         "threading.join at train.py:212"),
        ([("<frozen importlib._bootstrap>", 1, "_find_and_load"), USER], "import at train.py:212"),
        ([(f"{TORCH}/_tensor.py", 5, "backward"), USER], "backward at train.py:212"),
        ([(f"{TORCH}/x.py", 5, "barrier"), (f"{TORCH}/utils/_contextlib.py", 4, "decorate_context"), USER],
         "barrier at train.py:212"),
        ([(f"{LIB}/multiprocessing/connection.py", 5, "recv"), (f"{TORCH}/worker.py", 3, "_worker_loop")],
         "_worker_loop at worker.py:3"),
        ([(f"{LIB}/selectors.py", 5, "select")], "select at selectors.py:5"),
        ([(f"{LIB}/re/__init__.py", 166, "match"), ("<string>", 3, "<module>")], "re.match at <string>:3"),
        ([("/o/orch/ab12/workloads/runtime/run.py", 9, "should_halt"), USER], "should_halt at train.py:212"),
        ([("/o/orch/ab12/workloads/train/loop.py", 9, "step")], "step at loop.py:9"),
        ([("/home/u/pkg/__init__.py", 9, "go")], "go at pkg/__init__.py:9"),
    ],
)  # fmt: skip
def test_depths_of_libraries_are_passed_over(frames: list[tuple[str, int, str]], said: str) -> None:
    assert where(stack(*frames)) == said


@pytest.mark.parametrize(
    "text",
    ["", "Thread", "Current thread 0x1 (most recent call first):\n  <no Python frame>\n", "\x00\n" * 50,
     '  File "a.py", line 3 in f\n', 'Thread 1 (idle): "MainThread"\n', "    f (x.py:3)\n"],
)  # fmt: skip
def test_odd_texts_say_nothing(text: str) -> None:
    assert (where(text), shape(text)) == ("", ())


def test_a_line_that_is_not_known_is_left_out() -> None:
    assert where('Current thread 0x1 (most recent call first):\n  File "a.py", line ??? in f\n') == "f at a.py"


def test_seven_wait_for_one() -> None:
    dumps = [of(r, "faulthandler311_loader" if r == 3 else REDUCE) for r in range(8)]
    groups = group(dumps)
    assert [(g.ranks, g.where) for g in groups] == [
        ((3,), "next(loader) at data.py:10"),
        ((0, 1, 2, 4, 5, 6, 7), "all_reduce at train.py:13"),
    ]
    told = summary((g.ranks, g.where) for g in groups)
    assert told == "7 ranks in all_reduce at train.py:13; rank 3 in next(loader) at data.py:10"


def test_the_depths_of_workers_and_other_threads_separate_no_ranks() -> None:
    moved = recorded(REDUCE) + 'Thread 0x9 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", '
    moved += 'line 9 in wait\n  File "/usr/lib/python3.11/threading.py", line 3 in _bootstrap\n'
    first = of(0, REDUCE)
    second = RankDump(1, 101, "faulthandler", "f", HEADER.format(1, 101) + moved)
    assert len(group([first, second])) == 1
    short = group([first, of(0, REDUCE, 7, is_rank=False), of(1, REDUCE)])
    assert [g.ranks for g in short] == [(0,), (1,)]  # one worker is missing


def test_a_rank_without_a_stack_is_told_by_its_state() -> None:
    stopped = RankDump(1, 5, "none", "f", HEADER.format(1, 5), "no dump: state T (stopped), not signalled", "T")
    spied = of(2, "pyspy_regex", state="T")
    late = RankDump(4, 6, "none", "", "", "it gave nothing within 4 s")
    groups = group([of(0, REDUCE), stopped, spied, of(3, REDUCE), late])
    assert summary((g.ranks, g.where) for g in groups) == (
        "ranks 0, 3 in all_reduce at train.py:13; rank 1: no dump: state T; "
        "rank 2 in re.match at train.py:8 (state T); rank 4: no stack: it gave nothing within 4 s"
    )


def test_a_stopped_worker_makes_its_rank_the_odd_one() -> None:
    worker = RankDump(1, 77, "none", "f", HEADER.format(1, 77), "no dump: state T", "T", is_rank=False)
    fine = of(0, "faulthandler311_loader_worker", 66, is_rank=False)
    groups = group([of(0, "faulthandler311_loader"), fine, of(1, "faulthandler311_loader"), worker])
    assert groups[1].where == "next(loader) at data.py:10, its pid 77 in state T"


def test_the_workers_of_a_torchrun_speak_for_it() -> None:
    agent = stack(
        (f"{LIB}/site-packages/torch/distributed/elastic/agent.py", 9, "_invoke_run"),
        ("/v/bin/torchrun", 8, "<module>"),
    )
    dumps = [RankDump(0, 1, "faulthandler", "f", HEADER.format(0, 1) + agent)]
    dumps += [of(0, "faulthandler311_loader" if w == 2 else REDUCE, 10 + w, worker=w, is_rank=False) for w in range(5)]
    (only,) = group(dumps)
    told = "torchrun: 4 workers in all_reduce at train.py:13, worker 2 in next(loader) at data.py:10"
    assert only.where == told and summary([(only.ranks, only.where)]) == f"rank 0: {told}"


def test_many_places_stay_one_readable_line() -> None:
    groups = [([r], f"f at a.py:{r}") for r in range(40)] + [(list(range(40, 60)), "g at b.py:1")]
    told = summary(groups)
    assert told.startswith("20 ranks in g at b.py:1; ") and told.endswith("; 33 more places") and len(told) < 300


def test_an_answer_is_bounded_and_of_one_line_where_it_should_be() -> None:
    evil = 'Current thread 0x1 (most recent call first):\n  File "/h/\x1b[2J\u202e.py", line 3 in ' + "f" * 5000 + "\n"
    (only,) = group([RankDump(0, 1, "faulthandler", "f", evil)])
    assert len(only.where) <= 200 and only.where.isprintable() and normalised(evil)
