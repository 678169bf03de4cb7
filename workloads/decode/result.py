"""What a decode run leaves: a row a turn in `decode.jsonl`, and the figures over all of them in `decode.json`.

Called by `workloads.decode.loop`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workloads.contract.files import atomic_write_json
from workloads.decode import figures
from workloads.decode.agreement import agreement
from workloads.decode.config import DecodeConfig
from workloads.decode.place import Place
from workloads.decode.speakers import Said
from workloads.decode.weights import Loaded
from workloads.judging.book import Key, Row
from workloads.runtime.rankenv import RankEnv

VERSION = 1


@dataclass(frozen=True)
class Turn:
    """conversation and turn from 0; earlier: prompts and replies before it; cache_bytes: of all layers, used or not."""

    conversation: int
    turn: int
    prompt: Sequence[int]
    earlier: Sequence[Sequence[int]]
    said: Said
    step: str
    cache_bytes: int


def row_of(
    key: Key, turn: Turn, config: DecodeConfig, place: Place, loaded: Loaded, samples: Sequence[Sequence[int]]
) -> Row:
    """The row of a turn. Times are the median over the repeats (the lower one of two)."""
    asked, model, said = config.asked, loaded.model, turn.said
    cached = asked.backend != "full"
    held = figures.memory(place.device, figures.tensor_bytes(model), turn.cache_bytes)
    decode_s = statistics.median_low(said.decode_s)
    prefill_s = None if said.prefill_s is None else statistics.median_low(said.prefill_s)
    reads = figures.bytes_a_token(
        model, config.policy, said.before + len(turn.prompt), len(said.ids), cached=cached
    )  # fmt: skip
    rate = len(said.ids) / decode_s
    limit = None if place.read_tbs is None else place.read_tbs * 1e12 / reads
    near = None
    if config.policy is not None:
        near = agreement(model, config.policy, turn.earlier, turn.prompt, said.ids).as_row()
    return {
        "v": VERSION, "suite": key[0], "case": key[1], "conversation": turn.conversation, "turn": turn.turn,
        "prompt": config.conversations[turn.conversation][turn.turn], "text": loaded.tokenizer.decode(said.ids),
        "ids": said.ids, "ended": said.ids[-1] in loaded.eos,
        "before": said.before, "prompt_tokens": len(turn.prompt), "tokens": len(said.ids),
        "backend": asked.backend, "kv_policy": None if config.policy is None else str(config.policy),
        "step": turn.step, "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "prefill_s": prefill_s, "decode_s": decode_s, "tokens_per_s": rate,
        "prefill_runs_s": said.prefill_s, "decode_runs_s": said.decode_s,
        "bytes_a_token": reads, "bytes_how": figures.how_bytes(cached=cached),
        "read_tbs": place.read_tbs, "limit_tokens_per_s": limit, "ratio": None if limit is None else rate / limit,
        "memory": held, "memory_steps": samples, "agreement": near,
        "commit": config.commit, "command": config.command, **place.environment(),
    }  # fmt: skip


def summarize(env: RankEnv, config: DecodeConfig, place: Place, loaded: Loaded, rows: Sequence[Row]) -> str:
    """Write `decode.json`; its figures in one line. OSError when it cannot be written."""
    tokens, seconds = sum(r["tokens"] for r in rows), sum(r["decode_s"] for r in rows)
    prefill = [r for r in rows if r["prefill_s"] is not None]
    near = [r["agreement"] for r in rows if r["agreement"] is not None]
    asked, steps = config.asked, sum(a["steps"] for a in near)
    document: dict[str, Any] = {
        "v": VERSION, "run": env.run_id, "attempt": env.attempt, "ts": time.time(),
        "weights": loaded.origin, "tokenizer": loaded.tokenizer.name, "parameters": _parameters(loaded),
        "backend": asked.backend, "kv_policy": rows[0]["kv_policy"], "dtype": rows[0]["dtype"],
        "step": rows[0]["step"], "repeats": asked.repeats, "seed": asked.seed, "temperature": asked.temperature,
        "turns": len(rows), "conversations": len(config.conversations), "tokens": tokens, "decode_s": seconds,
        "tokens_per_s": tokens / seconds,
        "prefill_tokens_per_s": _prefill_rate(prefill),
        "bytes_a_token": round(sum(r["bytes_a_token"] * r["tokens"] for r in rows) / tokens),
        "bytes_how": rows[0]["bytes_how"], "read_tbs": place.read_tbs,
        "ratio": _ratio(rows, seconds),
        "memory": {k: max(r["memory"][k] for r in rows) for k in rows[0]["memory"]},
        "agreement": None if not near else {
            "steps": steps,
            "same_token": sum(a["same_token"] * a["steps"] for a in near) / steps,
            "max_logit_difference": max(a["max_logit_difference"] for a in near),
            "largest_logit": max(a["largest_logit"] for a in near),
        },
        "environment": place.environment(), "commit": config.commit, "dirty": config.dirty, "command": config.command,
        "pod": config.pod,
    }  # fmt: skip
    atomic_write_json(env.run.decode_summary, document)
    share = "" if document["ratio"] is None else f", {100 * document['ratio']:.0f} % of the read limit"
    return f"{len(rows)} turns, {tokens} tokens, {document['tokens_per_s']:.4g} tokens/s{share}"


def _parameters(loaded: Loaded) -> int:
    return sum(p.numel() for p in loaded.model.parameters())


def _prefill_rate(rows: Sequence[Row]) -> float | None:
    return sum(r["prompt_tokens"] for r in rows) / sum(r["prefill_s"] for r in rows) if rows else None


def _ratio(rows: Sequence[Row], seconds: float) -> float | None:
    """The least time that all these tokens could have taken over the time that they took."""
    if any(r["limit_tokens_per_s"] is None for r in rows):
        return None
    return float(sum(r["tokens"] / r["limit_tokens_per_s"] for r in rows) / seconds)
