"""Preparing shards: what is in them, that nothing but source and tokenizer decides it, and what interrupts it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.dataprep.corpus import SCRIPT, bytes_of, make, spec, start, text_folder
from tests.tokenizers.vocabularies import small_ranks, tokenizer_json
from workloads.contract import gptvocab
from workloads.contract.errors import ConflictError, LocalError, SpecError
from workloads.contract.process import ProcId, descendants
from workloads.contract.rundir import OrchHome
from workloads.data import vocabulary
from workloads.data.prepared import load_prepared
from workloads.data.sources import load_corpus
from workloads.data.tokenizers import _PATTERN, RankedTokenizer, load_tokenizer
from workloads.dataprep import origins
from workloads.dataprep.pool import StoppedError
from workloads.dataprep.prepare import Progress


def documents(folder: Path, tokenizer: str) -> list[str]:
    found = load_prepared(folder, tokenizer)
    coder, borders = load_tokenizer(tokenizer), [*found.starts(), len(found.tokens)]
    for stop in borders[1:]:
        assert found.tokens[stop - 1 : stop].tolist() == [found.end_id]
    return [coder.decode(found.tokens[a : b - 1]) for a, b in pairwise(borders)]


def test_shards_hold_the_documents_in_their_order(tmp_path: Path) -> None:
    text = text_folder(tmp_path / "text", files=3)
    tokenizer = str(tokenizer_json(tmp_path / "tokenizer.json"))
    seen: list[Progress] = []
    made = make(spec(text, tokenizer), tmp_path / "out", workers=2, tell=seen.append)
    files = sorted(p for p in text.iterdir())
    assert documents(tmp_path / "out", tokenizer) == [p.read_bytes().decode("utf-8", "replace") for p in files]
    assert made.index.documents == len(files) == 5
    assert made.parts == len(made.index.shards) == 1
    assert made.index.dtype == "uint16"
    assert seen[-1] == Progress(5, made.index.tokens, 1.0)
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    assert sorted(os.listdir(tmp_path / "out")) == ["index.json", "shard_00000.bin", "shard_00000.idx"]
    assert not (tmp_path / ".tmp_out").exists()


def test_bytes_are_those_that_the_trainer_reads_itself(tmp_path: Path) -> None:
    text = text_folder(tmp_path / "text")
    (text / "latin.txt").unlink()  # its one byte that is no UTF-8 becomes three
    make(spec(text), tmp_path / "out")
    assert np.array_equal(load_prepared(tmp_path / "out").tokens[:], load_corpus(spec(text), 1).tokens)


def test_bytes_that_are_no_text_are_refused_before_they_cost_hours(tmp_path: Path) -> None:
    """A few damaged characters are prepared; an encoding, or a disk image among the texts, is not."""
    text = text_folder(tmp_path / "text")  # one of its files has a byte that is no UTF-8
    make(spec(text), tmp_path / "fine")
    (text / "image").write_bytes(random.Random(1).randbytes(200_000))
    with pytest.raises(SpecError, match="of the characters are no UTF-8") as caught:
        make(spec(text), tmp_path / "out")
    assert caught.value.code == "E-DATA-054" and str(text) in (caught.value.fix or "")
    assert not (tmp_path / "out").exists()
    (text / "image").unlink()
    (text / "doc00.txt").write_bytes("Die Käuferin hörte über Straßen und Gärten.\n".encode("latin-1") * 8000)
    with pytest.raises(SpecError, match="in another encoding"):
        make(spec(text), tmp_path / "out")


def test_the_number_of_workers_decides_nothing(text: Path, shards: Path, tmp_path: Path) -> None:
    make(spec(text), tmp_path / "out", workers=2)
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


def test_a_limit_ends_every_part_with_a_document(text: Path, shards: Path, tmp_path: Path) -> None:
    made = make(spec(text), tmp_path / "out", max_tokens=900_000)
    assert 900_000 <= made.index.tokens < load_prepared(shards).index.tokens
    whole = [p.read_bytes().decode("utf-8", "replace") for p in sorted(text.iterdir())]
    assert set(documents(tmp_path / "out", "byte")) < set(whole)


@pytest.mark.parametrize(
    "at",
    [((1, 0.0),), pytest.param(((0, 0.0), (1, 0.0), (1, 0.1), (2_000_000, 0.0)), marks=pytest.mark.long)],
    ids=["once", "again and again"],
)
def test_killed_it_ends_with_the_same_bytes(
    text: Path, shards: Path, tmp_path: Path, at: tuple[tuple[int, float], ...]
) -> None:
    out, kills = tmp_path / "out", 0
    for least, wait_s in at:
        process = start(spec(text), out, tmp_path / "prepare.py")
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < least:
            pass
        time.sleep(wait_s)
        workers = descendants(process.pid)
        process.kill()
        process.communicate(timeout=600)
        kills += process.returncode == -signal.SIGKILL
        _wait_gone(workers)
        if out.exists():
            break
    assert kills
    with start(spec(text), out, tmp_path / "prepare.py") as process:
        told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert bytes_of(out) == bytes_of(shards)
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == ["out"]


def test_killed_between_the_index_and_its_name(text: Path, shards: Path, tmp_path: Path) -> None:
    """What such a kill leaves: everything is there, under the name of what is not finished."""
    first = make(spec(text), tmp_path / "out")
    staged = tmp_path / ".tmp_out"
    (tmp_path / "out").rename(staged)
    (staged / "basis.json").write_text(json.dumps(first.index.source["basis"]))
    again = make(spec(text), tmp_path / "out")
    assert again.workers == 0
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


KILLED = """
import os, sys
from pathlib import Path

def hook(event, args, left=[{left}]):
    written = any(Path({root!r}, name, "index.json").exists() for name in (".tmp_out", "out"))
    if written and event in ("os.remove", "os.rename"):
        if not left[0]:
            os.kill(os.getpid(), 9)
        left[0] -= 1

if __name__ == "__main__":
    sys.addaudithook(hook)
"""


def test_killed_before_any_of_the_last_moves_nothing_is_made_again(tmp_path: Path) -> None:
    data = spec(text_folder(tmp_path / "text", files=2, words=100))
    make(data, tmp_path / "whole")
    for left in range(30):
        root = tmp_path / str(left)
        root.mkdir()
        with start(data, root / "out", root / "prepare.py", before=KILLED.format(left=left, root=str(root))) as process:
            told = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, told
        assert make(data, root / "out").workers == 0, left
        assert bytes_of(root / "out") == bytes_of(tmp_path / "whole"), left
        assert not (root / ".tmp_out").exists()
    assert 3 < left < 29  # a part's row, the folder's name, and what goes with it


def test_a_stop_keeps_the_parts_that_are_done(text: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        make(spec(text), tmp_path / "out", workers=1, stop=lambda: bool(list(tmp_path.glob(".tmp_out/*.json"))[1:]))
    done = make(spec(text), tmp_path / "out")
    assert 1 <= done.kept_parts < done.parts == 4
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


@pytest.mark.long
def test_what_another_source_left_half_done_is_not_used(text: Path, shards: Path, tmp_path: Path) -> None:
    staged = tmp_path / ".tmp_out"
    with pytest.raises(StoppedError):
        make(spec(text_folder(tmp_path / "other", files=9, words=60_000, seed=5)), tmp_path / "out",
             stop=lambda: bool(list(staged.glob("shard_*.json"))))  # fmt: skip
    assert list(staged.glob("shard_*.json"))
    assert make(spec(text), tmp_path / "out").kept_parts == 0
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


def test_one_at_a_time(text: Path, tmp_path: Path) -> None:
    def second(p: Progress) -> None:
        with pytest.raises(ConflictError) as caught:
            make(spec(text), tmp_path / "out")
        assert caught.value.code == "E-DATA-045"
        refused.append(1)

    refused: list[int] = []
    make(spec(text), tmp_path / "out", tell=second)
    assert refused


def test_what_is_there_is_not_made_again_and_never_overwritten(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(spec(text), out)
    before = bytes_of(out)
    assert make(spec(text), out).found
    (tmp_path / "notes").mkdir()
    for data, place in ((spec(text, str(tokenizer_json(tmp_path / "t.json"))), out), (spec(text), tmp_path / "notes")):
        with pytest.raises(ConflictError) as caught:
            make(data, place)
        assert caught.value.code == "E-DATA-044"
    assert bytes_of(out) == before
    assert not list((tmp_path / "notes").iterdir())


@pytest.mark.long
def test_a_disk_that_is_full_is_told_and_what_is_done_is_kept(text: Path, shards: Path, tmp_path: Path) -> None:
    script = tmp_path / "prepare.py"
    script.write_text(SCRIPT)
    told = {"data": spec(text).model_dump(), "out": str(tmp_path / "out"), "workers": 1, "max_tokens": None}
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1100 && exec "$0" "$@"', sys.executable, str(script), json.dumps(told)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(Path(origins.__file__).parents[2])},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the shards cannot be written: File too large" in done.stderr
    assert not (tmp_path / "out").exists()
    assert make(spec(text), tmp_path / "out").parts == 4
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


def test_a_source_without_documents(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(SpecError) as caught:
        make(spec(tmp_path / "none"), tmp_path / "out")
    assert caught.value.code == "E-DATA-043"
    with pytest.raises(LocalError):
        make(spec(tmp_path / "absent"), tmp_path / "out")
    assert not (tmp_path / ".tmp_out").exists()


@pytest.mark.long
def test_a_long_file_comes_in_pieces_with_the_tokens_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "".join(f"line {k} of the theatre's long, long text\n{' ' * (k % 3)}" for k in range(230_000))
    path.write_text(text)
    pieces = list(origins.FileOrigin("text", path, [path]).pieces(0))
    assert len(pieces) > 2
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(p.text for p in pieces) == text
    assert pieces[-1].done == path.stat().st_size
    coder = RankedTokenizer("small", small_ranks(), _PATTERN, 300)
    parts = np.concatenate([coder.encode(p.text) for p in pieces])
    assert np.array_equal(parts, coder.encode(text))


def test_a_file_of_one_line_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("x" * 24_000_000)
    pieces = list(origins.FileOrigin("text", path, [path]).pieces(0))
    assert sum(len(p.text) for p in pieces) == 24_000_000
    assert max(len(p.text) for p in pieces) <= origins.MAX_PIECE_CHARS


@pytest.mark.long
def test_gpt2_from_end_to_end(gpt2_folder: Path, text: Path, home: OrchHome, tmp_path: Path) -> None:
    vocabulary.keep(home, gptvocab.read_import([gpt2_folder]))
    made = make(spec(text, "gpt2"), tmp_path / "out", workers=2)
    assert (made.index.vocab, made.index.end_id, made.index.dtype) == (50257, 50256, "uint16")
    assert documents(tmp_path / "out", "gpt2") == [
        p.read_bytes().decode("utf-8", "replace") for p in sorted(text.iterdir())
    ]


def _wait_gone(workers: list[ProcId]) -> None:
    until = time.monotonic() + 60
    while any(worker.alive() for worker in workers):
        assert time.monotonic() < until, "workers outlived the process that they worked for"
        time.sleep(0.05)
