"""How fast documents become tokens on this machine: `python -m tests.bench_tokenizers [FOLDER WITH GPT-2's FILES]`.

Tokens a second of one worker (by CPU time, so that a busy machine says the same), on the standard library's files;
then `prepare` as a whole, by wall clock, with one worker and with one a core.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.tokenizers.vocabularies import gpt2_files, tokenizer_json
from workloads.contract.config.job import DataSpec
from workloads.contract.gptvocab import read_import
from workloads.contract.rundir import OrchHome
from workloads.data.tokenizers import load_tokenizer
from workloads.data.vocabulary import keep
from workloads.dataprep.origins import open_origin
from workloads.dataprep.prepare import Asked, prepare

MAX_CHARS = 6_000_000


def encode(name: str, texts: list[str]) -> str:
    tokenizer = load_tokenizer(name)
    tokenizer.encode(texts[0])
    began, wall = time.process_time(), time.perf_counter()
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    chars = sum(map(len, texts))
    rates = f"{tokens / cpu:12,.0f} tokens/s of CPU time ({tokens / wall:,.0f} by wall clock)"
    return f"{rates}, {chars / tokens:.2f} characters a token"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="orch-tok-") as root:
        folder = Path(root)
        os.environ["ORCH_HOME"] = str(folder / "home")
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else gpt2_files(folder)
        keep(OrchHome(folder / "home"), read_import([given]))
        origin, texts, held = open_origin(DataSpec()), [], 0
        for piece in (p for part in range(origin.parts) for p in origin.pieces(part)):
            if held > MAX_CHARS:
                break
            texts.append(piece.text)
            held += len(piece.text)
        whole = "".join(texts)
        path = tokenizer_json(folder / "tokenizer.json", vocab_size=8192, text=whole[:1_000_000])
        print(f"{len(texts)} documents, {held} characters, {len(os.sched_getaffinity(0))} cores")
        for name in ("byte", "gpt2", str(path)):
            print(f"encode  {Path(name).name:<15} {encode(name, texts)}")
        for workers in sorted({1, len(os.sched_getaffinity(0))}):
            began = time.perf_counter()
            data = DataSpec(tokenizer="gpt2")
            made = prepare(Asked(data, folder / f"out{workers}", workers), lambda p: None, lambda: False)
            took = time.perf_counter() - began
            rate = made.index.tokens / took
            print(f"prepare gpt2, {workers} workers: {made.index.tokens} tokens in {took:.1f} s, {rate:,.0f}/s")


if __name__ == "__main__":
    main()
