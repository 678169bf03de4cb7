"""What a stream costs: open, resume at 90 %, documents and tokens a second, and what a step waits for.

    python -m tests.bench_streams [--mib 284] [--groups 1000] [--tokenizer byte]

Makes a Parquet file of random words in a temporary directory, reads it as one rank with 64 virtual shards, T = 1024 and
64 sequences a step, and prints a row for each figure. "Resume" is a new process' open, seek and first batch.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.data.corpora import saved, spec
from workloads.contract.config.job import DataSpec, TrainSpec
from workloads.data.feeds import open_feed, preload
from workloads.data.prefetch import Prefetcher
from workloads.data.stream import Feed, FeedState

GLOBAL_BATCH, SEQ = 64, 1024


def write(path: Path, mib: int, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pick = random.Random(1)
    words = [
        "".join(pick.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(pick.randint(2, 9))) for _ in range(20_000)
    ]
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        while path.stat().st_size < mib << 20:
            texts = [" ".join(pick.choices(words, k=pick.randint(50, 1500))) for _ in range(rows)]
            writer.write_table(pa.table({"text": texts}), row_group_size=rows)


def opened(data: DataSpec) -> Feed:
    return open_feed(data, TrainSpec(global_batch=GLOBAL_BATCH), rank=0, world_size=1)


def far(feed: Feed, share: float) -> FeedState:
    """A state with every shard at `share` of its blocks."""
    state = feed.batch(FeedState()).state
    blocks = feed._now.source.blocks // 64  # type: ignore[attr-defined]
    at = {v: {"parquet": [0, int(blocks * share), 0, 0]} for v in state.shards}
    return saved([FeedState(state.samples, at)])


def measured(data: DataSpec) -> dict[str, Any]:
    preload(data)
    began = time.perf_counter()
    feed = opened(data)
    row: dict[str, Any] = {"open_s": time.perf_counter() - began}
    state = far(feed, 0.9)
    began, cpu = time.perf_counter(), time.process_time()
    again = opened(data)
    batch = again.batch(state)
    row["resume_at_90_percent_s"] = time.perf_counter() - began
    row["resume_cpu_s"] = time.process_time() - cpu
    began, documents, batches = time.perf_counter(), 0, 200
    for _ in range(batches):
        batch = again.batch(batch.state)
        documents += batch.docs or 0
    took = time.perf_counter() - began
    row |= {"tokens_per_s": batches * GLOBAL_BATCH * SEQ / took, "docs_per_s": documents / took}
    loader = Prefetcher(again.batch, batch.state)
    for _ in range(100):
        loader.next()
        time.sleep(0.14)  # an H100 at 0.46 M tokens/s
    loader.close()
    row |= {"fetch_p50_s": loader.times().p50_s, "fetch_p95_s": loader.times().p95_s}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mib", type=int, default=284)
    parser.add_argument("--rows", type=int, default=1000, help="documents of a row group")
    parser.add_argument("--tokenizer", default="byte")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write(path, asked.mib, asked.rows)
        data = spec("parquet", path, seq_len=SEQ, shards=64, tokenizer=asked.tokenizer)
        row = {"mib": path.stat().st_size >> 20, "rows": asked.rows, "tokenizer": asked.tokenizer} | measured(data)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
