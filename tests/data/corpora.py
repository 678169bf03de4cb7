"""Small corpora on disk whose every document names itself, and feeds over them. For tests of streams."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from workloads.contract.config.job import DataSpec, TrainSpec
from workloads.data.feeds import open_feed
from workloads.data.stream import Batch, Feed, FeedState, batch_hash

SEQ = 32


def texts(count: int, seed: int = 0) -> list[str]:
    """`<17> beta gamma ...`: 10 to 400 bytes each, one of a kind."""
    pick = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "épsilon"]
    return [f"<{n}> " + " ".join(pick.choice(words) for _ in range(pick.randint(1, 60))) for n in range(count)]


def write_jsonl(folder: Path, count: int = 600, files: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(parts_of(texts(count), files)):
        rows = (json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) for n, t in enumerate(part))
        (folder / f"part{k}.jsonl").write_text("\n".join(rows) + ("\n" if k else ""))
    return folder


def write_packed(folder: Path, count: int = 600, files: int = 3) -> Path:
    """The same lines, packed: files that are read from their start."""
    for plain in sorted(write_jsonl(folder, count, files).iterdir()):
        (folder / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return folder


def write_parquet(folder: Path, count: int = 600, files: int = 2, rows: int = 50) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(parts_of(texts(count), files)):
        table = pa.table({"id": list(range(len(part))), "text": part})
        pq.write_table(table, folder / f"part{k}.parquet", row_group_size=rows)
    return folder


def parts_of(items: list[str], count: int) -> list[list[str]]:
    return [items[k * len(items) // count : (k + 1) * len(items) // count] for k in range(count)]


def spec(source: str, path: Path | str | None, **more: Any) -> DataSpec:
    """`path` of a hub's data set: the folder that it lies in."""
    where = {"path": None if path is None else str(path)} if source != "hub" else {"dataset": {"repo": str(path)}}
    row = {"source": source, **where, "seq_len": SEQ, "shards": 8, **more}
    return DataSpec.model_validate_json(json.dumps(row))


def feeds(data: DataSpec, world: int = 1, global_batch: int = 16) -> list[Feed]:
    train = TrainSpec(global_batch=global_batch)
    return [open_feed(data, train, rank=r, world_size=world) for r in range(world)]


def global_hash(parts: list[Batch]) -> str:
    return batch_hash(sum(float(b.hash_high) for b in parts), sum(float(b.hash_low) for b in parts))


def saved(states: list[FeedState]) -> FeedState:
    """All ranks' states through JSON, as a checkpoint joins them for a resume."""
    shards: dict[int, Any] = {}
    for state in states:
        shards |= {int(v): at for v, at in json.loads(json.dumps(dict(state.shards))).items()}
    return FeedState(states[0].samples, shards)


def run(
    data: DataSpec, steps: int, world: int = 1, state: FeedState | None = None, global_batch: int = 16
) -> tuple[list[str], FeedState]:
    """Hashes of global batches, and the state to save behind them."""
    ranks = feeds(data, world, global_batch)
    states, hashes = [state or FeedState()] * world, []
    for _ in range(steps):
        parts = [feed.batch(at) for feed, at in zip(ranks, states, strict=True)]
        states = [b.state for b in parts]
        hashes.append(global_hash(parts))
    return hashes, saved(states)
