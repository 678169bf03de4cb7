"""Reading prepared shards: any window, nothing damaged, hashed once, and never under another tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.vocabularies import tokenizer_json
from workloads.contract.errors import IntegrityError, MissingDataError, OrchError
from workloads.contract.rundir import OrchHome
from workloads.data.prepared import ShardedTokens, ensure_verified, load_prepared
from workloads.data.shardfiles import read_index


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), a=st.integers(0, 45), n=st.integers(0, 45))
def test_windows_run_over_shards(sizes: list[int], a: int, n: int) -> None:
    whole = np.arange(sum(sizes), dtype="<u2")
    borders = np.cumsum(sizes)[:-1]
    tokens = ShardedTokens(np.split(whole, borders))
    assert len(tokens) == len(whole)
    assert tokens[a : a + n].tolist() == whole[a : a + n].tolist()
    assert tokens[a : a + n].dtype == np.uint16


def flip(path: Path) -> None:
    """One bit, with size and times as before: what a disk or a copy does, not what a person does."""
    st = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("name", ["shard_00000.bin", "shard_00003.bin", "shard_00002.idx"])
def test_a_damaged_shard_is_refused_by_its_name(folder: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(folder / name)
    with pytest.raises(IntegrityError) as caught:
        load_prepared(folder, "byte")
    assert caught.value.code == "E-DATA-033"
    assert name in caught.value.what


def test_files_are_hashed_once_and_again_when_they_changed(folder: Path) -> None:
    index = read_index(folder)
    assert ensure_verified(folder, index) == 8
    assert ensure_verified(folder, index) == 0
    os.utime(folder / "shard_00001.bin")
    assert ensure_verified(folder, index) == 1
    flip(folder / "shard_00001.bin")
    load_prepared(folder)  # size and time are those of the bytes that were hashed
    with pytest.raises(IntegrityError):
        load_prepared(folder, verify=True)


def test_a_damage_is_not_forgotten(folder: Path) -> None:
    flip(folder / "shard_00001.bin")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            load_prepared(folder)


def test_a_home_that_takes_no_files_costs_only_the_memory_of_it(folder: Path, home: OrchHome) -> None:
    home.path.write_text("a file, and no folder")
    assert ensure_verified(folder, read_index(folder)) == 8
    assert ensure_verified(folder, read_index(folder)) == 8


def test_of_several_ranks_one_hashes(folder: Path, home: OrchHome) -> None:
    """Real processes at once; their sum of hashed files is that of one."""
    code = (
        "import sys, pathlib; from workloads.data.prepared import ensure_verified; "
        "from workloads.data.shardfiles import read_index; f = pathlib.Path(sys.argv[1]); "
        "print(ensure_verified(f, read_index(f)))"
    )
    env = {**os.environ, "ORCH_HOME": str(home.path), "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", code, str(folder)]
    ranks = [subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = sorted(int(rank.communicate(timeout=600)[0]) for rank in ranks)
    assert told == [0, 0, 8]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"dtype": "float32"}, {"shards": []}, {"vocab": 70000}, {"end_id": 256}, {"tokenizer": 7},
        {"shards": [{"name": "../../etc/passwd", "tokens": 1, "documents": 1, "sha256": "0" * 64,
                     "idx_sha256": "0" * 64}]},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_that_is_wrong_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "uint8", **change}))
    with pytest.raises(IntegrityError) as caught:
        load_prepared(folder)
    assert caught.value.code == "E-DATA-031"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_an_index_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(IntegrityError):
        load_prepared(folder)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        load_prepared(tmp_path)
    assert caught.value.code == "E-DATA-030"
    assert "orch data prepare" in caught.value.render()


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for other in ("gpt2", str(tokenizer_json(tmp_path / "tokenizer.json"))):
        with pytest.raises(OrchError) as caught:
            load_prepared(folder, other)
        assert caught.value.code == "E-DATA-032"
    assert load_prepared(folder, "byte").vocab == 256


def test_the_fingerprint_is_that_of_the_tokens(folder: Path, shards: Path) -> None:
    before = load_prepared(shards).fingerprint
    path = folder / "index.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "source": {"moved": "from elsewhere"}}))
    assert load_prepared(folder).fingerprint == before
    path.write_text(json.dumps({**row, "shards": row["shards"][::-1]}))
    assert load_prepared(folder).fingerprint != before


def test_ready_at_once_the_second_time(folder: Path) -> None:
    load_prepared(folder)
    began = time.monotonic()
    found = load_prepared(folder)
    window = found.tokens[len(found.tokens) - 100 :]
    assert len(window) == 100
    assert time.monotonic() - began < 1.0  # the goal for any position, on any clock
