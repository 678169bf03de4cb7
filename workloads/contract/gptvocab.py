"""GPT-2's vocabulary as one canonical file, whose bytes have one hash, wherever it came from.

A line a token: base64 of its bytes, a space, its rank (the `.tiktoken` format). What is imported as vocab.bpe and
encoder.json becomes the same bytes, so that a single published sha256 judges every copy. Reads what it is given and
writes nothing. Standard library only; called by `workloads.data.vocabulary` and by `orch data import`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from workloads.contract.errors import IntegrityError, LocalError
from workloads.contract.files import read_bytes_bounded

NAME = "gpt2"
END_ID = 50256
"""<|endoftext|>"""
SIZE = 50257
SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
"""Of the canonical file: what is published as r50k_base.tiktoken."""
MERGES, IDS = "vocab.bpe", "encoder.json"
FILE = "gpt2.tiktoken"
MAX_BYTES = 8 << 20
Ranks = Mapping[bytes, int]
"""A token's bytes to its rank, which is its id and, for merged ones, the order in which they are merged."""


def canonical(ranks: Ranks) -> bytes:
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def parse(data: bytes) -> dict[bytes, int]:
    """Ranks of a canonical file. ValueError for anything else."""
    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        token, _, rank = line.partition(b" ")
        if not rank.isdigit():
            raise ValueError(f"not a token and its rank: {line[:40]!r}")
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    return ranks


def from_merges(merges: bytes, ids: bytes) -> dict[bytes, int]:
    """Ranks out of vocab.bpe and encoder.json, as they were published in 2019. ValueError when they do not fit."""
    byte_of = _letters()
    ranks = {bytes([b]): i for i, b in enumerate(byte_of.values())}
    try:
        for line in merges.decode().split("\n")[1:-1]:
            first, second = line.split(" ")
            ranks[bytes(byte_of[c] for c in first + second)] = len(ranks)
        told = json.loads(ids)
        named = {bytes(byte_of[c] for c in token): i for token, i in told.items() if token != "<|endoftext|>"}
    except (KeyError, AttributeError, RecursionError) as e:
        raise ValueError(f"not GPT-2's letters: {e}") from e
    if named != ranks:
        raise ValueError(f"{IDS} names other tokens than {MERGES}")
    return ranks


def _letters() -> dict[str, int]:
    """How the published files write each byte, in the order of the ids: printable Latin-1 as it is, the rest after."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def checked(data: bytes, where: str) -> bytes:
    """`data`, when it is the canonical file. IntegrityError with `where` it was found when it is not."""
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise IntegrityError(
            "E-DATA-021", "this is not GPT-2's vocabulary, or it was damaged", where=where, value=f"sha256 {found}",
            expected=f"sha256 {SHA256}", fix="orch data import vocab.bpe encoder.json   (or r50k_base.tiktoken)",
        )  # fmt: skip
    return data


def read_import(paths: list[Path]) -> bytes:
    """The canonical file out of what a person has: vocab.bpe and encoder.json (or their folder), or a .tiktoken file.

    LocalError when a file cannot be read, IntegrityError when it is something else.
    """
    if len(paths) == 1 and paths[0].is_dir():
        paths = [paths[0] / MERGES, paths[0] / IDS]
    where = ", ".join(str(p) for p in paths)
    try:
        parts = [read_bytes_bounded(p, MAX_BYTES) for p in paths]
        if len(parts) == 2:
            swapped = paths[0].suffix == ".json"
            return checked(canonical(from_merges(*(reversed(parts) if swapped else parts))), where)
        return checked(parts[0] if len(parts) == 1 else b"", where)
    except OSError as e:
        raise LocalError(
            "E-DATA-020", f"the vocabulary cannot be read: {e.strerror}", where=where, value=e.filename,
            expected=f"{MERGES} and {IDS}, their folder, or a .tiktoken file",
            fix=f"orch data import PATH/{MERGES} PATH/{IDS}",
        ) from e  # fmt: skip
    except (ValueError, binascii.Error) as e:
        raise IntegrityError(
            "E-DATA-021", f"this is not GPT-2's vocabulary: {e}", where=where,
            expected=f"{MERGES} and {IDS}, their folder, or a .tiktoken file",
            fix="orch data import vocab.bpe encoder.json",
        ) from e  # fmt: skip
