"""A decode run as it is read: what was said, turn by turn, and the figures, as text or a document.

Rows and summary come from a pod: only what has the right type is used, and every text is made harmless before it is
shown. Pure but for reading two files. Called by `orch decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.judged import Row, document_head, number, read_rows
from orchestrator.runs.render import duration, harmless, one_line
from orchestrator.runs.views import RunView
from workloads.contract.files import try_read_json
from workloads.contract.states import RunState

MAX_PROMPT = 300
MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    view: RunView
    rows: tuple[Row, ...]
    summary: Mapping[str, Any] | None  # None: it has not ended well
    pod: str

    def as_json(self) -> dict[str, Any]:
        """The document of `orch decode --json` and `--out`; every key always present."""
        return {
            **document_head(self.view, self.pod),
            "summary": None if self.summary is None else dict(self.summary),
            "dir": str(self.view.run.path),
            "turns": [dict(r) for r in self.rows],
        }

    def lines(self) -> list[str]:
        """For a person: every turn with its figures, then those of the whole."""
        if not self.rows:
            return [f"{self.view.run.run_id}  no turn was answered"]
        told = []
        for row in self.rows:
            told += turn_lines(row)
        told += [f"  {k:<11} {one_line(v)}" for k, v in self.facts()]
        return [*told, "", _total(self.summary)] if self.summary is not None else told

    def facts(self) -> list[tuple[str, str]]:
        first = ("run", f"{self.view.run.run_id} on pod {self.pod}")
        last = ("directory", str(self.view.run.path))
        if self.summary is None:
            return [first, last]
        s, e = self.summary, _of(self.summary, "environment")
        near = _of(s, "agreement")
        policy = f" {s['kv_policy']}" if s.get("kv_policy") else ""
        commit = f"{s.get('commit')}{', with uncommitted changes' if s.get('dirty') else ''}"
        told = [
            ("model", f"{_weights(_of(s, 'weights'))}, {number(s.get('parameters'))} parameters, {s.get('dtype')}"),
            ("backend", f"{s.get('backend')}{policy}; a step is {s.get('step')}; replies made {s.get('repeats')} x"),
            ("reads", f"{_mib(s.get('bytes_a_token'))} a token: {s.get('bytes_how')}"),
            ("memory", memory_words(_of(s, "memory"))),
            *([("agreement", agreement_words(near))] if near else []),
            ("device", f"{e.get('gpu')}, driver {e.get('driver')}" if e.get("device") == "cuda" else "CPU"),
            ("software", f"Python {e.get('python')}, torch {e.get('torch')}, triton {e.get('triton')}"),
            ("code", f"commit {commit}"),
            ("command", str(s.get("command"))),
        ]
        return [first, *told, last]


def result_of(view: RunView, pod: str) -> Result:
    summary = try_read_json(view.run.decode_summary)
    good = summary is not None and summary.get("run") == view.run.run_id and view.state == RunState.SUCCEEDED
    return Result(view, read_rows(view.run.decode_rows), summary if good else None, pod)


def turn_lines(row: Row) -> list[str]:
    """Prompt, reply and figures of one turn, and an empty line."""
    text = harmless(str(row.get("text"))).split("\n")
    return [
        f"{row.get('case')}  > {one_line(str(row.get('prompt')), MAX_PROMPT)}",
        *(f"     {line}" for line in text),
        f"     [{figures(row)}]",
        "",
    ]


def figures(row: Row) -> str:
    parts = [f"{number(row.get('tokens'))} tokens, {number(row.get('tokens_per_s'))} tokens/s{_share(row)}"]
    prefill = row.get("prefill_s")
    if isinstance(prefill, int | float):
        parts.append(f"prompt of {number(row.get('prompt_tokens'))} read in {duration(prefill)}")
    if near := _of(row, "agreement"):
        parts.append(agreement_words(near))
    return one_line("; ".join(parts))


def _share(row: Mapping[str, Any]) -> str:
    ratio = row.get("ratio")
    return f" ({100 * ratio:.0f} % of the read limit)" if isinstance(ratio, float) else ""


def agreement_words(near: Mapping[str, Any]) -> str:
    same = near.get("same_token")
    share = f"{100 * same:.1f} %" if isinstance(same, int | float) else "-"
    return (
        f"{share} of {number(near.get('steps'))} steps find the plain cache's token likeliest, logits off by at most "
        f"{number(near.get('max_logit_difference'), 3)} (largest logit {number(near.get('largest_logit'), 3)})"
    )


def memory_words(held: Mapping[str, Any]) -> str:
    words = {
        "weights": "weights", "cache": "cache", "torch_peak": "torch at most", "device_used": "device in use",
        "process_rss": "process in RAM",
    }  # fmt: skip
    return ", ".join(f"{name} {_mib(held[key])}" for key, name in words.items() if key in held)


def _total(summary: Mapping[str, Any]) -> str:
    read = summary.get("prefill_tokens_per_s")
    prompts = f"; prompts read at {number(read)} tokens/s" if isinstance(read, int | float) else ""
    turns = summary.get("turns")
    return one_line(
        f"{number(turns)} turn{'' if turns == 1 else 's'}, {number(summary.get('tokens'))} tokens: "
        f"{number(summary.get('tokens_per_s'))} tokens/s{_share(summary)}{prompts}"
    )


def _weights(told: Mapping[str, Any]) -> str:
    match told.get("kind"):
        case "random":
            return f"random weights, seed {told.get('seed')}"
        case "checkpoint":
            return f"run {told.get('run')}, step {told.get('step')}"
        case _:
            return str(told.get("path"))


def _mib(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return f"{number(round(value / MIB, 2))} MiB"


def _of(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}
