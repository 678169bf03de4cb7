"""A run on one screen, a list of runs, and the end of a run, as plain text. Pure: views in, text out.

Everything that came from a rank or a pod passes `render.one_line` or `render.table` on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.runs.index import IndexRow
from orchestrator.runs.render import (
    ago,
    brief,
    clip,
    clock,
    duration,
    figure,
    moment,
    one_line,
    program,
    progress,
    table,
)
from orchestrator.runs.views import RankView, RunView
from workloads.contract.records import Event
from workloads.contract.states import RESUMABLE, RankHealth, RunState

EVENTS_SHOWN = 8
RANKS_SHOWN = 16
SPEAKS_FOR_ITSELF = frozenset({RunState.RUNNING, RunState.SUCCEEDED})


def runs_table(views: Sequence[RunView], width: int = 0) -> str:
    """`orch status`: a line a run, and below it the reason where the state alone does not say enough.

    With a column for the pod when a run is on another machine.
    """
    far = any(v.sight is not None for v in views)
    header = ["RUN", *(["POD"] if far else []), "STATE", "STEP", "LOSS", "TOK/S", "ETA", "BEAT"]
    rows = [_row(v, far=far) for v in views]
    head, *lines = table(header, rows, right=range(len(header) - 5, len(header)), width=width).split("\n")
    told = [head]
    for view, line in zip(views, lines, strict=True):
        told.append(line)
        if view.sight is not None and _is_lost(view):
            told.append(clip(f"    {one_line(view.sight.words)}", width))
        if view.reason and (view.state not in SPEAKS_FOR_ITSELF or view.findings):
            told.append(clip(f"    {one_line(view.reason)}", width))
        if view.stand_in:
            told.append(clip(f"    {one_line(view.stand_in)}", width))
    return "\n".join(told)


def _row(v: RunView, *, far: bool) -> list[str]:
    pods = [v.sight.pod if v.sight else "local"] if far else []
    return [
        v.run.run_id,
        *pods,
        f"{v.state} when last seen" if _is_lost(v) else v.words,
        progress(v.figure("step"), v.figure("steps")),
        figure(v.figure("loss")),
        figure(v.figure("toks_per_s"), 3),
        "-" if v.stale_s is not None else brief(v.eta_s),
        "-" if v.ended else brief(_later(v.last_beat_age_s, v)),
    ]


def _is_lost(v: RunView) -> bool:
    """Its pod was seen once and cannot be asked now: how it stands is not known, only how it stood."""
    return v.sight is not None and v.sight.reachable is False and v.sight.seen > 0 and not v.sight.missing


def _later(age_s: float | None, v: RunView) -> float | None:
    """The age of something as of now, where `v` tells how it was when the pod was last seen."""
    return None if age_s is None else age_s + (v.stale_s or 0.0)


def index_table(rows: Sequence[IndexRow], states: Sequence[str], width: int = 0) -> str:
    """`orch runs`."""
    cells = [(r.run, s, moment(r.created), r.kind, ",".join(r.pods) or "-") for r, s in zip(rows, states, strict=True)]
    return table(("RUN", "STATE", "CREATED", "KIND", "PODS"), cells, width=width)


def screen(view: RunView, events: Sequence[Event], width: int = 0) -> str:
    """`orch status RUN`: state, figures, ranks, where the time went, what happened last, what to type next."""
    parts = [_head(view), _ranks(view), _stages(events), _events(events), _next(view)]
    return "\n\n".join("\n".join(clip(line, width) for line in part) for part in parts if part)


def _head(v: RunView) -> list[str]:
    run = v.run.run_id
    lines = [f"{run}  {v.words}", f"  {one_line(v.reason)}" if v.reason else ""]
    since = v.now - v.status.since if v.status else None
    facts: list[tuple[str, str]] = [
        ("state for", duration(_later(since, v))),
        ("attempt", f"{v.attempt or '-'}, restarts {v.status.restarts if v.status else 0}"),
        ("pods", f"{', '.join(v.pods) or '-'}, {v.world_size or '-'} rank{'' if v.world_size == 1 else 's'}"),
        ("step", progress(v.figure("step"), v.figure("steps"))),
        ("loss", figure(v.figure("loss"))),
        *((("held-out", figure(v.figure("eval_loss"))),) if v.figure("eval_loss") is not None else ()),
        ("tokens/s", figure(v.figure("toks_per_s"), 3)),
        ("eta", "-" if v.stale_s is not None else duration(v.eta_s)),
        ("last beat", ago(_later(v.last_beat_age_s, v))),
        ("checkpoint", "-" if v.checkpoint is None else f"step {v.checkpoint}"),
    ]
    if v.status and v.status.behind:
        facts.append(("behind", ", ".join(v.status.behind)))
    if v.stand_in:
        facts.append(("data", v.stand_in))
    if v.halt_asked and not v.ended:
        facts.append(("halt", "asked for"))
    facts += _places(v)
    return [line for line in lines if line] + [f"  {k:<11} {one_line(text)}" for k, text in facts]


def _places(v: RunView) -> list[tuple[str, str]]:
    if v.sight is None:
        return [("directory", str(v.run.path)), ("logs", str(v.run.logs))]
    return [("directory", v.sight.path), ("copy", str(v.run.path))]


def _ranks(v: RunView) -> list[str]:
    shown = _worst_first(v.ranks)[:RANKS_SHOWN]
    if not shown:
        return []
    rows = [(str(r.rank), r.pod, _health(r, v), _beat_age(r, v), r.verdict.why) for r in shown]
    text = table(("rank", "pod", "health", "last beat", ""), rows, right=(0,))
    more = len(v.ranks) - len(shown)
    return [f"  {line}" for line in text.splitlines()] + ([f"  and {more} more ranks"] if more else [])


def _health(rank: RankView, v: RunView) -> str:
    """How a rank does; of a pod that was not asked just now nobody can say, but only how it did."""
    if v.stale_s is None or v.ended:
        return rank.health.value
    return f"unknown; was {rank.health.value}"


def _beat_age(rank: RankView, v: RunView) -> str:
    return ago(_later(v.now - rank.beats[-1].ts, v)) if rank.beats else "-"


_ORDER = (RankHealth.DEAD, RankHealth.SILENT, RankHealth.SLOW, RankHealth.UNKNOWN, RankHealth.LIVE, RankHealth.STOPPED)


def _worst_first(ranks: Sequence[RankView]) -> list[RankView]:
    if len(ranks) <= RANKS_SHOWN:
        return list(ranks)
    return sorted(ranks, key=lambda r: (_ORDER.index(r.health), r.rank))


def stages(events: Sequence[Event]) -> list[tuple[str, float]]:
    """(stage, seconds) of the newest attempt that has any, in order."""
    found = [e for e in events if e.what == "stage" and isinstance(e.data.get("seconds"), int | float)]
    newest = max((e.attempt for e in found), default=0)
    return [(str(e.data.get("stage")), float(e.data["seconds"])) for e in found if e.attempt == newest]


def _stages(events: Sequence[Event]) -> list[str]:
    times = stages(events)
    if not times:
        return []
    return ["  where the time went: " + ", ".join(f"{one_line(name)} {duration(s)}" for name, s in times)]


def _events(events: Sequence[Event]) -> list[str]:
    told = [f"  {clock(e.ts)}  {event_words(e)}" for e in events if e.what != "stage"]
    return told[-EVENTS_SHOWN:]


def event_words(e: Event) -> str:
    """One event in one line."""
    change = f"{e.frm} -> {e.to}" if e.frm and e.to else (e.to or "")
    rule, rung = (str(e.data.get(k, "")) for k in ("rule", "rung"))
    of = f"{rule} [{rung}]" if rung else rule
    head = change if e.what == "state" and change else " ".join(filter(None, (e.what, change or of)))
    return one_line(f"{head}: {e.why}" if e.why else head)


def next_lines(view: RunView) -> list[tuple[str, str]]:
    """(what to type, what it does), fitting the state."""
    run, orch = view.run.run_id, program()
    if (kind := view.info.get("kind")) in _JUDGED:
        return _next_of_judged(view, str(kind), f"{orch} {kind} --run {run}")
    if not view.ended:
        dump = [(f"{orch} dump {run}", "the stack of every rank")] if view.ranks else []
        return [
            (f"{orch} status {run}", "how it goes"),
            (f"{orch} logs {run} -f", "what the ranks print"),
            *dump,
            (f"{orch} halt {run}", "checkpoint and stop"),
        ]
    lines = [(f"{orch} status {run}", "all about it"), (f"{orch} logs {run}", "what the ranks printed")]
    if view.state == RunState.FAILED:
        lines.append((f"{orch} logs {run} --errors", "errors alone"))
    if view.state in RESUMABLE:
        lines.append((f"{orch} resume {run}", "go on from the newest checkpoint"))
    return lines


_JUDGED = {
    "parity": ("its verdict, cell by cell", "stop it between two cells", "judge the rest"),
    "bench": ("its table, case by case", "stop it between two cases", "measure the rest"),
    "decode": ("what was said, and the figures", "stop it; answered turns are kept", "answer the rest"),
    "data": ("what was found, or made", "stop it; parts that are done are kept", "go on with the rest"),
}
"""What is said of the end, a halt and a resume of the kinds that have a command of their own."""


def _next_of_judged(view: RunView, kind: str, again: str) -> list[tuple[str, str]]:
    run, orch = view.run.run_id, program()
    answer, halt, rest = _JUDGED[kind]
    lines = [(again, answer if view.ended else "back to it")]
    if not view.ended:
        return [*lines, (f"{orch} halt {run}", halt)]
    lines.append((f"{orch} logs {run}", "what the rank printed"))
    return [*lines, (f"{orch} resume {run}", rest)] if view.state == RunState.HALTED else lines


def _next(view: RunView) -> list[str]:
    return next_block(next_lines(view))


def next_block(lines: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(command) for command, _ in lines), default=0)
    return [f"  {command:<{width}}   {what}" for command, what in lines]


def first_last_loss(path: Path) -> tuple[str, str] | None:
    """The loss of the first and the last row of training.csv, as written; None when there are none."""
    from workloads.contract.files import read_tail

    try:
        with path.open("rb") as f:
            head = f.read(8192).split(b"\n")
        tail = [line for line in read_tail(path, 8192).split(b"\n") if line]
    except OSError:
        return None
    names = head[0].decode(errors="replace").split(",")
    if "loss" not in names or len(head) < 2 or not head[1] or not tail:
        return None
    at = names.index("loss")
    cells = [line.decode(errors="replace").split(",") for line in (head[1], tail[-1])]
    if any(len(row) <= at for row in cells):
        return None
    return cells[0][at], cells[1][at]


def ending(view: RunView, took_s: float | None) -> list[str]:
    """What is said when a followed run ends, without the log of a dead rank."""
    lines = [f"{view.run.run_id}  {view.state}" + (f" after {duration(took_s)}" if took_s is not None else "")]
    if view.reason:
        lines.append(f"  {one_line(view.reason)}")
    loss = first_last_loss(view.run.training_csv)
    facts: list[tuple[str, str]] = []
    if view.figure("step") is not None:
        facts.append(("steps", progress(view.figure("step"), view.figure("steps"))))
    if loss is not None:
        facts.append(("loss", f"{_rounded(loss[0])} -> {_rounded(loss[1])}"))
    if view.checkpoint is not None:
        at = str(view.run.checkpoint(view.checkpoint).relative_to(view.run.path))
        facts.append(("checkpoint", f"{view.sight.path if view.sight else view.run.path}/{at}"))
    facts += _places(view)
    lines += [f"  {k:<11} {one_line(text)}" for k, text in facts]
    return [*lines, "", *next_block(next_lines(view))]


def _rounded(text: str) -> str:
    try:
        return figure(float(text))
    except ValueError:
        return one_line(text, 40)


def ending_json(view: RunView, took_s: float | None) -> dict[str, Any]:
    """The document of `orch launch --follow --json`."""
    loss = first_last_loss(view.run.training_csv)
    return {
        "v": 1,
        "runs": [view.as_json()],
        "dir": str(view.run.path),
        "seconds": None if took_s is None else round(took_s, 3),
        "first_loss": loss[0] if loss else None,
        "last_loss": loss[1] if loss else None,
        "checkpoint": None if view.checkpoint is None else str(view.run.checkpoint(view.checkpoint)),
    }
