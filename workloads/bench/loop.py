"""Case by case: measure, write the row, beat; stop between two cases when asked to; at the end tables and the verdict.

A case that raises has failed. One that ends the process is found by the next attempt, which tries it once more and
then goes on behind it. Called by `workloads.bench.__main__`.
"""

from __future__ import annotations

import time

from workloads.bench.config import BenchConfig
from workloads.bench.matrix import Matrix, words
from workloads.bench.place import Place
from workloads.bench.result import GO, conclude
from workloads.contract.exitcodes import RankExit
from workloads.contract.states import Phase
from workloads.judging.book import Book, Key, Row
from workloads.runtime import Run
from workloads.runtime.fence import check_epoch
from workloads.runtime.rankenv import RankEnv


def measure_all(env: RankEnv, run: Run, config: BenchConfig, place: Place, book: Book) -> int:
    """The exit code. SpecError when there is nothing to measure; OSError when nothing can be written."""
    matrix = Matrix(config, place, book)
    count = len(matrix.cases)
    book.keep(matrix.cases)
    for suite in matrix.absent:
        print(f"suite {suite} has no case for this device, and is left out", flush=True)
    if book.rows:
        print(f"going on behind the {len(book.rows)} of {count} cases that are done", flush=True)
        run.beat(step=len(book.rows), steps=count)
    for key in [k for k in matrix.cases if k not in book.rows]:
        if run.asked_to_halt:
            return _halted(run, book, count)
        began = time.perf_counter()
        if not matrix.probed:
            _probe(matrix)
        _tell(_measure(matrix, book, key), len(book.rows), count)
        run.beat(step=len(book.rows), steps=count, step_time_s=time.perf_counter() - began)
        if matrix.broken:
            run.phase(Phase.PROGRESS, step=len(book.rows), steps=count)  # written at once: a restart counts on it
            print("this case left the device unusable for this process: a new one goes on behind it", flush=True)
            return 1
    book.rest()
    check_epoch(env)
    verdict = conclude(env, config, place, [book.rows[k] for k in matrix.cases], matrix.absent)
    print(f"{verdict.verdict}: {verdict.why}", flush=True)
    run.done(count, steps=count)
    return int(RankExit.DONE if verdict.verdict == GO else RankExit.NO_GO)


def _probe(matrix: Matrix) -> None:
    found = matrix.probe()
    print(
        f"memory: read {found.read_tbs:.3g} TB/s, copy {found.copy_tbs:.3g} TB/s, "
        f"empty launch {found.empty_us:.2g} us, L2 {found.l2_bytes >> 20} MiB",
        flush=True,
    )


def _measure(matrix: Matrix, book: Book, key: Key) -> Row:
    deaths = book.begin(key)
    row = matrix.measure(key) if deaths < Book.DEATHS else matrix.died(key, deaths)
    book.add(key, row)
    return row


def _tell(row: Row, done: int, count: int) -> None:
    print(f"case {done}/{count}  {row['suite']}  {row['case']}  {words(row)}", flush=True)


def _halted(run: Run, book: Book, count: int) -> int:
    book.rest()
    print(f"halted between two cases: {len(book.rows)} of {count} are done", flush=True)
    return run.halted(len(book.rows), checkpoint=book.files.rows)
