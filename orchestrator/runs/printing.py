"""Printing logs: a selection of ranks and lines, whole or as it grows, made harmless unless asked raw.

What lies on disk already is printed rank by rank, since its lines carry no time; what comes while following is
printed by arrival. More than one rank: each line is prefixed `[rank k]`. Called by `orch logs`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from orchestrator.runs.logs import LogReader, error_blocks, iter_lines, last_lines, lines_before, log_ranks, tail_offset
from orchestrator.runs.render import decode, harmless, moment, one_line
from orchestrator.runs.since import parse_since, start_of
from orchestrator.runs.source import FAR_POLL_S, ONWARD, Contact, FarSource, Source, as_source, fetch
from orchestrator.runs.views import RunView
from orchestrator.runs.waiting import pulse, waker_of
from pods.remote.runfiles import name_in
from workloads.contract.errors import OrchError, UsageError
from workloads.contract.rundir import RunDir
from workloads.contract.states import RankHealth, RunState

POLL_S = 0.2
DEAD_RANK_LINES = 30
JSON_LINES = 10_000
SILENT_S = 2.0
NO_RANKS_YET = frozenset({RunState.QUEUED, RunState.PREPARING, RunState.STARTING, RunState.RESUMING})


Note = Callable[[str], None]


@dataclass(frozen=True)
class Selection:
    """Which lines of which ranks. `starts`: rank to the byte offset where it begins."""

    source: Source
    starts: dict[int, int]
    lines: int | None
    raw: bool

    @property
    def run(self) -> RunDir:
        return self.source.run

    @classmethod
    def of(
        cls,
        run: RunDir | Source,
        *,
        ranks: Sequence[int] | None,
        since: str | None,
        lines: int | None,
        raw: bool,
        note: Note,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Selection:
        """UsageError for a rank that the run does not have or a time that is none.

        Of a run on a pod what is needed is fetched first: the last lines alone with `lines`, else whole logs. When that
        cannot be done, what was fetched before is shown, and `note` says so.
        """
        source = as_source(run)
        if isinstance(source, FarSource) and source.reachable is None:
            _fetch(source, {}, note)
        view = source.view()
        chosen = _ranks(view, ranks)
        moment = parse_since(since, view.now) if since is not None else None
        extra: dict[str, int | None] = {
            name_in(source.run, source.run.rank_log(k)): None if since is not None else lines for k in chosen
        }
        if since is not None:
            extra |= {name_in(source.run, source.run.heartbeat(k)): None for k in chosen}
        _fetch(source, extra, note, on_bytes)
        if (
            source.far
            and view.sight
            and not view.sight.reachable
            and not any(source.run.rank_log(k).exists() for k in chosen)
        ):
            note(f"note: the copy here has no log of it; the logs are on pod {source.pod}")
        starts = {k: source.floor(source.run.rank_log(k)) for k in chosen}
        if since is not None:
            for rank in chosen:
                at, told = start_of(source.run, rank, moment, view.attempt or 1)
                starts[rank] = max(starts[rank], at)
                if told:
                    note(f"note: {told}")
        if lines is not None:
            starts = {k: max(at, tail_offset(source.run.rank_log(k), lines)) for k, at in starts.items()}
        elif any(starts[k] and starts[k] == source.floor(source.run.rank_log(k)) for k in chosen):
            note("note: the beginning of the log is not in the copy here")
        return cls(source, starts, lines, raw)

    def prefix(self, rank: int) -> str:
        return f"[rank {rank}] " if len(self.starts) > 1 else ""

    def names(self) -> dict[str, int | None]:
        """The logs, as they are asked for while following: what comes after that which is here."""
        return {name_in(self.run, self.run.rank_log(k)): ONWARD for k in self.starts}


def _fetch(
    source: Source, extra: dict[str, int | None], note: Note, on_bytes: Callable[[int], None] | None = None
) -> None:
    if not isinstance(source, FarSource) or source.reachable is False:
        return  # nothing to fetch; or that it cannot be was told a moment ago
    try:
        fetch(source, "status", extra, on_bytes)
    except OrchError as e:
        sight = source.view().sight
        if sight is None or not sight.seen:
            raise
        note(f"note: {one_line(e.what)}; shown is {('the copy of ' + moment(sight.seen)) if sight.seen else 'nothing'}")


def _ranks(view: RunView, wanted: Sequence[int] | None) -> list[int]:
    there = log_ranks(view.run, view.world_size)
    foreign = [k for k in wanted or [] if k not in there]
    if foreign:
        has = f"0 to {there[-1]}" if len(there) > 1 else "0"
        raise UsageError(
            "E-RUN-005", f"run {view.run.run_id} has no rank {foreign[0]}", where="--rank", value=foreign[0],
            expected=f"a rank from {has}", fix=f"orch status {view.run.run_id}",
        )  # fmt: skip
    return sorted(set(wanted or there))


def print_logs(chosen: Selection) -> None:
    """What is here now."""
    printer = _Printer(chosen)
    for rank, start in chosen.starts.items():
        for line in iter_lines(chosen.run.rank_log(rank), start, ends=chosen.raw):
            printer.line(rank, line)
    printer.flush()


def follow_logs(chosen: Selection) -> None:
    """What is there and what comes, until the run has ended and everything was shown."""

    def say(text: str) -> None:
        print(text.strip(), file=sys.stderr)

    printer, source = _Printer(chosen), chosen.source
    readers = {k: LogReader(chosen.run.rank_log(k), at, chosen.raw) for k, at in chosen.starts.items()}
    waker, contact, silence = waker_of(source), Contact(source, say), _Silence(say)
    while True:
        more = contact.refresh("status", chosen.names())
        view = source.view()  # before reading: what is written before the end is then read
        silence.note(view, time.monotonic(), broken=_show_new(printer, readers, final=False))
        if view.over and not more:
            _show_new(printer, readers, final=True)
            return
        waker.look(view.supervised, time.monotonic(), say)
        if not more:
            time.sleep(FAR_POLL_S if source.far else POLL_S)


def _show_new(printer: _Printer, readers: dict[int, LogReader], *, final: bool) -> bool:
    """Whether there was anything new."""
    busy, shown = True, False
    while busy:
        busy = False
        for rank, reader in readers.items():
            for line in reader.read(final=final):
                printer.line(rank, line)
                busy = shown = True
    printer.flush()
    return shown


class _Silence:
    """Says why a followed run prints nothing, when it is one that has no ranks yet; again when that changes."""

    def __init__(self, say: Note) -> None:
        self._say, self._since, self._told = say, time.monotonic(), ""

    def note(self, view: RunView, now: float, *, broken: bool) -> None:
        if broken or view.state not in NO_RANKS_YET:
            self._since, self._told = now, "" if broken else self._told
            return
        words = pulse(view)
        same = re.sub(r"\d+", "", words)  # not each second that it waits
        if now - self._since >= SILENT_S and same != self._told:
            self._say(words)
            self._told = same


class _Printer:
    """Writes lines to stdout: harmless text, or with `raw` the bytes themselves, with their own ends."""

    def __init__(self, chosen: Selection) -> None:
        self.chosen = chosen
        self.bytes: BinaryIO | None = sys.stdout.buffer if chosen.raw else None

    def line(self, rank: int, line: bytes) -> None:
        prefix = self.chosen.prefix(rank)
        if self.bytes is not None:
            end = b"" if not prefix or line.endswith(b"\n") else b"\n"  # of one rank: byte for byte
            self.bytes.write(prefix.encode() + line + end)
            return
        for part in harmless(decode(line.removesuffix(b"\r"))).split("\n"):
            sys.stdout.write(f"{prefix}{part}\n")

    def flush(self) -> None:
        sys.stdout.flush()


def print_errors(chosen: Selection) -> None:
    """Tracebacks, errors and warnings, with their line numbers; and the end of every rank that died."""
    found = False
    for entry in _errors(chosen):
        found = True
        where = f"line {entry['line']}" if entry["line"] else "its last lines"
        print(f"--- rank {entry['rank']}, {where}" + (f" ({entry['why']})" if entry["why"] else ""))
        for line in entry["lines"]:
            print(harmless(line))
    if not found:
        print("no error or warning was found in the logs", file=sys.stderr)


def _errors(chosen: Selection) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for rank, start in chosen.starts.items():
        path = chosen.run.rank_log(rank)
        skipped = lines_before(path, start) if not chosen.source.floor(path) else 0
        for b in error_blocks(decode(line) for line in iter_lines(path, start)):
            entries.append({"rank": rank, "line": skipped + b.line, "why": None, "lines": list(b.lines)})
    for view in chosen.source.view().ranks:
        if view.health is RankHealth.DEAD and view.rank in chosen.starts:
            path = chosen.run.rank_log(view.rank)
            lines = last_lines(path, DEAD_RANK_LINES, chosen.source.floor(path))
            entries.append({"rank": view.rank, "line": None, "why": view.verdict.why, "lines": lines})
    return entries


def logs_json(chosen: Selection, *, errors: bool) -> dict[str, Any]:
    """`{"v":1,"run","ranks":[{"rank","lines","left_out"}]}` or, for errors, `{"v":1,"run","errors":[...]}`."""
    if errors:
        return {"v": 1, "run": chosen.run.run_id, "errors": _errors(chosen)}
    ranks = []
    for rank, start in chosen.starts.items():
        path = chosen.run.rank_log(rank)
        begin = max(start, tail_offset(path, JSON_LINES))
        lines = [decode(line) for line in iter_lines(path, begin)]
        ranks.append({"rank": rank, "lines": lines, "left_out": begin > start})
    return {"v": 1, "run": chosen.run.run_id, "ranks": ranks}
