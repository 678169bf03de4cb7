"""Cell by cell: judge, write the row, beat; stop between two cells when asked to; at the end the verdict.

A cell that raises is a wrong cell. One that ends the process is found by the next attempt, which tries it once more
and then goes on behind it. Called by `workloads.parity.__main__`.
"""

from __future__ import annotations

import time

from workloads.contract.exitcodes import RankExit
from workloads.contract.states import Phase
from workloads.judging.book import Book, Key, Row
from workloads.parity.config import ParityConfig
from workloads.parity.matrix import Matrix, family_of, is_good, words
from workloads.parity.place import Place
from workloads.parity.result import GO, conclude
from workloads.runtime import Run
from workloads.runtime.fence import check_epoch
from workloads.runtime.rankenv import RankEnv


def judge_all(env: RankEnv, run: Run, config: ParityConfig, place: Place, book: Book) -> int:
    """The exit code. SpecError for cells that the matrix does not have; OSError when nothing can be written."""
    matrix = Matrix(config, place)
    cells = len(matrix.cells)
    book.keep(matrix.cells)
    if book.rows:
        print(f"going on behind the {len(book.rows)} of {cells} cells that are done", flush=True)
        run.beat(step=len(book.rows), steps=cells)
    todo = [key for key in matrix.cells if key not in book.rows]
    with matrix.ahead(todo):
        for key in todo:
            if run.asked_to_halt:
                return _halted(run, book, cells)
            began = time.perf_counter()
            _tell(_judge(matrix, book, key), len(book.rows), cells)
            run.beat(step=len(book.rows), steps=cells, step_time_s=time.perf_counter() - began)
            if matrix.broken:
                run.phase(Phase.PROGRESS, step=len(book.rows), steps=cells)  # written at once: a restart counts on it
                print("this cell left the device unusable for this process: a new one goes on behind it", flush=True)
                return 1
    book.rest()
    check_epoch(env)
    verdict = conclude(env, config, place, [book.rows[k] for k in matrix.cells], len(matrix.left_out))
    print(f"{verdict.verdict}: {verdict.why}", flush=True)
    run.done(cells, steps=cells)
    return int(RankExit.DONE if verdict.verdict == GO else RankExit.NO_GO)


def _judge(matrix: Matrix, book: Book, key: Key) -> Row:
    deaths = book.begin(key)
    row = matrix.judge(key) if deaths < Book.DEATHS else matrix.died(key, deaths)
    book.add(key, row)
    return row


def _tell(row: Row, done: int, cells: int) -> None:
    print(f"cell {done}/{cells}  {family_of(row)}  {row['case']}  {words(row)}", flush=True)
    if not is_good(row):
        print(f"  alone: {row['command']}", flush=True)


def _halted(run: Run, book: Book, cells: int) -> int:
    book.rest()
    print(f"halted between two cells: {len(book.rows)} of {cells} are done", flush=True)
    return run.halted(len(book.rows), checkpoint=book.files.rows)
