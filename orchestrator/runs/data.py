"""A run of kind `data` as it is read: its verdict with its figures, as text or a document. Pure but for one file.

The verdict comes from a pod: only what has the right type is shown, and every text is made harmless first. Called by
`orch data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.judged import GO, NO_GO, document_head, number
from orchestrator.runs.reading import record_of
from orchestrator.runs.render import duration, harmless, one_line
from orchestrator.runs.views import RunView
from workloads.contract.files import try_read_json
from workloads.contract.records import RunVerdict
from workloads.contract.states import RunState

CHECKED = (
    "asked_source", "sources", "batches", "tokens", "documents", "tokens_per_s", "documents_per_s", "open_s",
    "first_s", "fetch", "head", "first_hash", "left_out", "no_utf8_share",
)  # fmt: skip
PREPARED = (
    "out", "source", "tokens", "documents", "shards", "bytes", "tokenizer", "vocab", "dtype", "fingerprint",
    "there_already", "parts", "kept_parts", "workers", "seconds",
)  # fmt: skip
MAX_ERROR_LINES = 12
MAX_REASONS = 8


@dataclass(frozen=True)
class Result:
    view: RunView
    task: str  # check, prepare
    verdict: RunVerdict | None  # None: it has not answered
    pod: str

    @property
    def data(self) -> Mapping[str, Any]:
        return self.verdict.data if self.verdict else {}

    def as_json(self) -> dict[str, Any]:
        """The document of `orch data ... --json`; every key of the task always present."""
        d, verdict = self.data, self.verdict
        return {
            **document_head(self.view, self.pod),
            "task": self.task,
            "verdict": verdict.verdict if verdict else None,
            "why": verdict.why if verdict else None,
            **{key: d.get(key) for key in (CHECKED if self.task == "check" else PREPARED)},
            "error": d.get("error"),
            **{key: d.get(key) for key in ("commit", "dirty", "command")},
            "dir": str(self.view.run.path),
        }

    def lines(self) -> list[str]:
        told = [("run", f"{self.view.run.run_id} on pod {self.pod}")]
        if self.verdict is not None:
            told += self._checked() if self.task == "check" else self._prepared()
        lines = [f"  {name:<10} {one_line(text)}" for name, text in told]
        if self.verdict is None:
            return lines
        error = self.data.get("error")
        text = error.get("text") if isinstance(error, dict) else None
        if isinstance(text, str):
            lines += ["", *(harmless(line) for line in text.split("\n")[:MAX_ERROR_LINES])]
        return [*lines, "", f"{self.verdict.verdict}: {one_line(self.verdict.why)}"]

    def _checked(self) -> list[tuple[str, str]]:
        d, fetch = self.data, _of(self.data, "fetch")
        beside = _left_out(d)
        used = d.get("sources")
        told = [("source", ", ".join(map(str, used)) if isinstance(used, list) and used else "none gave a batch")]
        if d.get("first_s") is None:
            return [*told, *beside]
        told += [
            ("text", repr(harmless(str(d.get("head"))))),
            ("ready", f"after {seconds(d.get('open_s'))}, the first batch {seconds(d.get('first_s'))} later"),
        ]
        told += beside
        if not fetch.get("p50_s") and fetch.get("p50_s") != 0:
            return told
        speed = f"{number(d.get('tokens_per_s'))} tokens/s"
        speed += f", {number(d.get('documents_per_s'))} documents/s" if d.get("documents_per_s") is not None else ""
        waits = ", ".join(f"{n} {seconds(fetch.get(k))}" for n, k in
                          (("p50", "p50_s"), ("p95", "p95_s"), ("longest", "longest_s")))  # fmt: skip
        told += [
            ("speed", f"{speed}, over {number(d.get('batches'))} batches"),
            ("fetches", f"{waits}; {number(fetch.get('stalls'))} above 2 s"),
        ]
        return told

    def _prepared(self) -> list[tuple[str, str]]:
        d = self.data
        told = [("folder", str(d.get("out")))]
        if d.get("shards") is None:
            return told
        mib = d.get("bytes")
        size = f", {number(mib / (1 << 20))} MiB" if isinstance(mib, int) else ""
        told += [
            ("shards", f"{number(d.get('shards'))}, {d.get('dtype')}{size}"),
            ("tokens", f"{number(d.get('tokens'))} of {number(d.get('documents'))} documents, by {d.get('tokenizer')}"),
            ("hash", str(d.get("fingerprint"))),
        ]
        if not d.get("there_already"):
            kept = d.get("kept_parts")
            more = f"; {number(kept)} of {number(d.get('parts'))} parts were there from before" if kept else ""
            told.append(("took", f"{seconds(d.get('seconds'))} with {number(d.get('workers'))} workers{more}"))
        return [*told, ("use", f"data: {{source: prepared, path: {d.get('out')}, tokenizer: {d.get('tokenizer')}}}")]


def result_of(view: RunView, pod: str) -> Result:
    """What `view` has answered; a verdict that the run's end contradicts is none."""
    job = view.info.get("job")
    asked = job.get("task") if isinstance(job, dict) else None
    task = "prepare" if isinstance(asked, dict) and asked.get("kind") == "prepare" else "check"
    row = try_read_json(view.run.verdict)
    verdict = record_of(RunVerdict, row) if row is not None else None
    if verdict is not None:
        ended = {GO: RunState.SUCCEEDED, NO_GO: RunState.FAILED}.get(verdict.verdict)
        if not view.ended or verdict.attempt != view.attempt or view.state != ended:
            verdict = None
    return Result(view, task, verdict, pod)


def seconds(value: object) -> str:
    """0.00123 as `1.2 ms`; longer ones as durations."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return f"{value * 1000:.2g} ms" if value < 0.1 else f"{value:.2f} s" if value < 60 else duration(value)


def _left_out(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of the text is not used, or is none; nothing where the pod did not say."""
    told = []
    row = d.get("left_out")
    if isinstance(row, dict):
        counts = {str(k): v for k, v in row.items() if type(v) is int and v > 0}
        most = sorted(counts.items(), key=lambda item: -item[1])[:MAX_REASONS]
        why = ", ".join(f"{number(n)} {reason}" for reason, n in most)
        total = sum(counts.values())
        told.append(("left out", f"{number(total)} document{'s' * (total != 1)}: {why}" if counts else "no document"))
    share = d.get("no_utf8_share")
    if isinstance(share, int | float) and 0 < share <= 1:
        told.append(("no UTF-8", f"{100 * share:.2g} % of the characters"))
    return told


def _of(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}
