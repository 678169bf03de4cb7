"""Workers that tokenize parts into shards, each part in one of them, and what they have done so far.

Workers are processes of their own (spawned), end when their parent does, and leave a part half done when they are told
to stop. An error in one is raised here with its words. Called by `workloads.dataprep.prepare`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from workloads.contract.config.job import DataSpec
from workloads.contract.errors import ConflictError, OrchError, RemoteError
from workloads.data.blocks import SourceGone
from workloads.data.tokenizers import Tokenizer, load_tokenizer, token_dtype
from workloads.dataprep.origins import Origin, Piece, cut_at, open_origin
from workloads.dataprep.writer import ShardWriter

LOOK_S = 0.25
AGAIN = "type the command again: what is done is kept"
NICE = 5
DOCUMENTS, TOKENS, UNITS = 0, 1, 2
PR_SET_PDEATHSIG = 1
"""prctl(2): a worker that waits for work would not notice that its parent is gone"""


class StoppedError(Exception):
    """The part was left half done, as asked."""


@dataclass(frozen=True)
class Work:
    """What every worker is told. max_tokens: of one part."""

    data: DataSpec
    folder: Path
    origin_fingerprint: str
    max_tokens: int | None


@dataclass(frozen=True)
class Refusal:
    """An OrchError as it travels between processes."""

    kind: type[OrchError]
    code: str
    words: dict[str, Any]

    @classmethod
    def of(cls, e: OrchError) -> Refusal:
        words = {k: getattr(e, k) for k in ("what", "where", "value", "expected", "fix")}
        return cls(type(e), e.code, words)

    def error(self) -> OrchError:
        words = dict(self.words)
        return self.kind(self.code, words.pop("what"), **words)


Answer = dict[str, Any] | Refusal
Tell = Callable[[Sequence[int]], None]
"""Given [documents, tokens, units] that workers have done in this attempt."""


def run_parts(work: Work, parts: Sequence[int], workers: int, tell: Tell, stop: Callable[[], bool]) -> None:
    """Every part of `parts` made. StoppedError when `stop` said so first; OrchError as a worker met it.

    RuntimeError when a worker died.
    """
    context = get_context("spawn")
    counts, halt = context.Array("q", 3), context.Event()
    told = (work, os.getpid(), counts, halt)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, initializer=_begin, initargs=told)
    try:
        _drive({pool.submit(_make, part) for part in parts}, counts, tell, stop)
    except BrokenProcessPool as e:
        raise RuntimeError("a worker of `orch data prepare` died, maybe for want of memory") from e
    finally:
        halt.set()  # whoever still works leaves its part
        pool.shutdown(wait=True, cancel_futures=True)


def _drive(pending: set[Future[Answer]], counts: Any, tell: Tell, stop: Callable[[], bool]) -> None:
    while pending:
        done, pending = wait(pending, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            answer = future.result()
            if isinstance(answer, Refusal):
                raise answer.error()
        with counts.get_lock():
            now = list(counts)
        tell(now)
        if pending and stop():
            raise StoppedError


class _Worker:
    """In a worker: what it was told, opened once."""

    tokenizer: Tokenizer
    origin: Origin
    work: Work
    parent: int
    counts: Any
    halt: Any


_here = _Worker()


def _begin(work: Work, parent: int, counts: Any, halt: Any) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before it could be told
        os._exit(1)
    os.nice(NICE)
    _here.work, _here.parent, _here.counts, _here.halt = work, parent, counts, halt


def _opened() -> _Worker:
    if not hasattr(_here, "origin"):
        _here.tokenizer = load_tokenizer(_here.work.data.tokenizer)
        _here.origin = open_origin(_here.work.data)
        if _here.origin.fingerprint != _here.work.origin_fingerprint:
            raise ConflictError(
                "E-DATA-041", "the source changed while it was being prepared", where=_here.work.data.source,
                fix="prepare it again once nobody writes to it",
            )  # fmt: skip
    return _here


def _make(part: int) -> Answer:
    try:
        w = _opened()
        dtype = token_dtype(w.tokenizer.vocab_size).name
        with ShardWriter(w.work.folder, part, dtype, w.tokenizer.end_id) as writer:
            return writer.finish(_write(w, part, writer))
    except OrchError as e:
        return Refusal.of(e)
    except SourceGone as e:
        return Refusal(RemoteError, "E-DATA-046", {"what": str(e), "fix": AGAIN})


def _write(w: _Worker, part: int, writer: ShardWriter) -> int:
    """All documents of a part, or as many as its limit wants; the units that were read."""
    limit, counted, look_at, read = w.work.max_tokens, [0, 0, 0], 0.0, 0
    for piece in w.origin.pieces(part):
        _add(w, piece, writer)
        read = piece.done
        if time.monotonic() >= look_at:
            counted = _count(w, counted, [writer.documents, writer.tokens, read])
            look_at = time.monotonic() + LOOK_S
        if piece.last and limit is not None and writer.tokens >= limit:
            break
    _count(w, counted, [writer.documents, writer.tokens, read])
    return read


def _add(w: _Worker, piece: Piece, writer: ShardWriter) -> None:
    """A text that the tokenizer cannot take is left out, and told."""
    try:
        for text in _split(piece) if piece.text else ():
            writer.add(w.tokenizer.encode(text))
    except ValueError as e:
        print(f"warning: data: {w.origin.name}: {len(piece.text)} characters are left out: {e}", file=sys.stderr)
    if piece.last:
        writer.end()


def _split(piece: Piece) -> Iterator[str]:
    text = piece.text
    while (at := cut_at(text)) is not None:
        yield text[:at]
        text = text[at:]
    yield text


def _count(w: _Worker, before: list[int], now: list[int]) -> list[int]:
    """Add what was done since; leave when the parent is gone or says so."""
    if w.halt.is_set() or os.getppid() != w.parent:
        raise StoppedError
    with w.counts.get_lock():
        for k in (DOCUMENTS, TOKENS, UNITS):
            w.counts[k] += now[k] - before[k]
    return now


def workers_here(asked: int | None) -> int:
    """As many as asked for, else one a core that this process may use."""
    return asked or len(os.sched_getaffinity(0))
