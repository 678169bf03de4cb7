"""Gathers what `why` is told from: events, records, beats, the dump and the log of the rank that was sick first.

Of a run on a pod the bytes that are missing are fetched first, bounded; where the pod cannot be asked the copy is all
there is. Writes nothing into a run. Called by `orch why`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.runs.events import EVENTS_TAIL_BYTES, read_events
from orchestrator.runs.logs import last_lines
from orchestrator.runs.reading import record_of
from orchestrator.runs.source import Source, fetch
from orchestrator.runs.views import RunView, read_record, tail_beats
from orchestrator.runs.why import Facts
from orchestrator.runs.whyfigures import Evidence
from orchestrator.runs.whysick import Suspect, dump_of, last_fall, suspect_of
from orchestrator.runs.whywork import CheckpointSeen
from pods.remote.runfiles import kind_of, name_in
from pods.remote.stacktext import main_thread, threads_of
from workloads.contract.errors import OrchError
from workloads.contract.files import read_tail, try_read_json
from workloads.contract.health import Rule
from workloads.contract.manifest import committed, look, read_manifest, verify
from workloads.contract.records import Event, HaltAck
from workloads.contract.rundir import RunDir, step_of_checkpoint

EVENTS_BYTES = 4 * EVENTS_TAIL_BYTES
EVENT_LINES = 4000
LOG_LINES = 30
LEDGER_LINES, LEDGER_BYTES = 4000, 1 << 20
BEATS_BYTES = 512 << 10
DUMP_BYTES = 512 << 10
STACK_LINES = 14
MAX_CHECKPOINTS = 5
HASH_BYTES = 16 << 20  # more takes longer than a person waits: then the sizes are compared
_HEADER = "=== orch stack dump "
_DUMP = re.compile(r"(watchdog_)?stackdump_rank(\d{1,6})_(\d{8}T\d{6}Z)\.txt")


def gather(source: Source, *, cached: bool = False) -> Facts:
    """Everything that `why.tell` needs. The pod was asked for the status of the run before (`look_at`)."""
    ask = source.far and not cached and source.view().stale_s is None
    if ask:
        _fetch(source, {name_in(source.run, source.run.events): EVENT_LINES})
    view = source.view()
    events = tuple(read_events(source.run, EVENTS_BYTES))
    suspect = suspect_of(view, events)
    before = last_fall(events, view.attempt or 0)
    if ask and suspect is not None:
        _fetch(source, _wanted(source.run, suspect, events))
    return Facts(
        view=view, events=events, suspect=suspect, before=before, evidence=_evidence(source, view, suspect, events),
        checkpoints=tuple(_checkpoints(source)), acks=_acks(view), cut=bool(events) and events[0].seq > 0,
    )  # fmt: skip


def _fetch(source: Source, extra: Mapping[str, int | None]) -> None:
    """More of the run's files; without them less is told."""
    with contextlib.suppress(OrchError):
        fetch(source, "status", {n: lines for n, lines in extra.items() if kind_of(n) is not None})


def _wanted(run: RunDir, suspect: Suspect, events: tuple[Event, ...]) -> dict[str, int | None]:
    wanted: dict[str, int | None] = {}
    if suspect.rank is not None:
        wanted[name_in(run, run.rank_log(suspect.rank))] = LOG_LINES
        for name in _files_of(dump_of(events, suspect.attempt)):
            if (m := _DUMP.fullmatch(name)) and int(m[2]) == suspect.rank:
                wanted[name_in(run, run.stackdumps / name)] = None
    if suspect.rule == Rule.NAN:
        wanted[name_in(run, run.ledger)] = LEDGER_LINES
    return wanted


def _evidence(source: Source, view: RunView, suspect: Suspect | None, events: tuple[Event, ...]) -> Evidence:
    if suspect is None or suspect.rank is None or suspect.rank >= max(view.world_size, 1):
        return Evidence()
    run, rank = source.run, suspect.rank
    beats = tuple(b for b in tail_beats(run, rank, BEATS_BYTES) if b.attempt == suspect.attempt)
    record = read_record(run, suspect.attempt, rank)
    stack, of = _stack(run, suspect, events, record.pid if record is not None else None)
    not_finite = _not_finite(run, suspect.attempt) if suspect.rule == Rule.NAN else None
    return Evidence(record, beats, stack, of, _log(source, suspect), not_finite)


def _not_finite(run: RunDir, attempt: int) -> int | None:
    """The step at which the newest steps of this attempt without a finite loss or gradient begin. None: not known."""
    began: int | None = None
    with contextlib.suppress(OSError):
        for line in read_tail(run.ledger, LEDGER_BYTES).splitlines():
            try:
                row = json.loads(line)
                mine = row["attempt"] == attempt and type(row["step"]) is int
                finite = math.isfinite(float.fromhex(row["loss"])) and row.get("skipped") is not True
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                continue
            began = None if finite or not mine else row["step"] if began is None else began
    return began


def _log(source: Source, suspect: Suspect) -> tuple[str, ...]:
    """The last lines as they were when the rank ended, if an event kept them; else those of its log."""
    kept = (suspect.exit or {}).get("lines")
    if isinstance(kept, list) and kept:
        return tuple(str(line) for line in kept[-LOG_LINES:])
    assert suspect.rank is not None
    path = source.run.rank_log(suspect.rank)
    return tuple(last_lines(path, LOG_LINES, source.floor(path)))


def _stack(run: RunDir, suspect: Suspect, events: tuple[Event, ...], pid: int | None) -> tuple[tuple[str, ...], str]:
    """(lines, which dump they are of): of the keeper's answer, or of the newest dump file of the rank."""
    rank, dump = suspect.rank, dump_of(events, suspect.attempt)
    assert rank is not None
    request = dump.data.get("request") if dump is not None else None
    if isinstance(request, str) and kind_of(f"requests/{request}") is not None:
        answer = try_read_json(RunDir.ack_of(run.requests / request)) or {}
        told = _group_text(answer.get("data"), rank)
        if told and dump is not None:
            return stack_lines(told, pid), f"from the dump for {dump.data.get('by') or 'a person'}"
    path = _newest_dump(run, rank)
    if path is None:
        return (), ""
    with contextlib.suppress(OSError):
        return stack_lines(read_tail(path, DUMP_BYTES).decode(errors="replace"), pid), path.name
    return (), ""


def _group_text(data: Any, rank: int) -> str:
    groups = data.get("groups") if isinstance(data, dict) else None
    for group in groups if isinstance(groups, list) else ():
        ranks = group.get("ranks") if isinstance(group, dict) else None
        if isinstance(ranks, list) and rank in ranks and isinstance(group.get("text"), str):
            return str(group["text"])
    return ""


def _files_of(dump: Event | None) -> list[str]:
    files = dump.data.get("files") if dump is not None else None
    return [str(f).rsplit("/", 1)[-1] for f in files[:64]] if isinstance(files, list) else []


def _newest_dump(run: RunDir, rank: int) -> Path | None:
    try:
        names = [p.name for p in run.stackdumps.iterdir()]
    except OSError:
        return None
    dumps = [(m[3], m[1] or "", n) for n in names if (m := _DUMP.fullmatch(n)) and int(m[2]) == rank]
    sized = [n for _, _, n in sorted(dumps) if _size(run.stackdumps / n)]
    return run.stackdumps / sized[-1] if sized else None


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def stack_lines(text: str, pid: int | None = None) -> tuple[str, ...]:
    """The thread that runs the program, innermost frame first, of the newest dump of a process in a file of them.

    `pid`: of the rank, whose helpers share its file. What shows no stack (state D) is given as it is.
    """
    blocks = text.split(_HEADER)
    mine = [b for b in blocks if pid is not None and f" pid={pid} " in b.split("\n", 1)[0]]
    block = (mine or blocks)[-1].partition("\n")[2] if len(blocks) > 1 else text
    main = main_thread(threads_of(block))
    if main is None:
        found = [line.rstrip() for line in block.split("\n") if line.strip()]
    else:
        found = [f'File "{f.file}", line {f.line or "?"} in {f.function}' for f in main.frames]
    more = len(found) - STACK_LINES
    return tuple(found[:STACK_LINES] + ([f"... and {more} more frames"] if more > 0 else []))


def _acks(view: RunView) -> tuple[HaltAck, ...]:
    found = []
    for r in view.ranks:
        row = try_read_json(view.run.halt_ack(r.rank))
        ack = record_of(HaltAck, row) if row is not None and row.get("attempt") == view.attempt else None
        if ack is not None:
            found.append(ack)
    return tuple(found)


def _checkpoints(source: Source) -> list[CheckpointSeen]:
    """The newest checkpoints, newest first; no more than needed to find one that can be used."""
    found: list[CheckpointSeen] = []
    try:
        paths = committed(source.run)[:MAX_CHECKPOINTS]
    except OSError:
        return found
    for path in paths:
        step = step_of_checkpoint(path.name) or 0
        found.append(_check(path, step, source.run.run_id, here=not source.far))
        if found[-1].problem is None:
            break
    return found


def _check(path: Path, step: int, run_id: str, *, here: bool) -> CheckpointSeen:
    manifest, problems = look(path, run_id=run_id) if here else read_manifest(path)
    if manifest is None:
        return CheckpointSeen(step, problems[0])
    if not here:
        return CheckpointSeen(step)
    if sum(f.size for f in manifest.files) > HASH_BYTES:
        return CheckpointSeen(step, checked="sizes")
    problems = verify(path, run_id=run_id)
    return CheckpointSeen(step, problems[0] if problems else None, "bytes")
