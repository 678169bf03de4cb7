"""Streams of documents: every world size, every resume and every epoch see exactly what they should."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.corpora import SEQ, feeds, run, spec, texts, write_jsonl, write_parquet
from workloads.contract.config.job import DataSpec, TrainSpec
from workloads.contract.errors import IntegrityError, MissingDataError, OrchError, SpecError
from workloads.data import hub
from workloads.data.feeds import open_feed
from workloads.data.stream import FeedState

KINDS = {"jsonl": write_jsonl, "parquet": write_parquet}
STEPS = 60  # several epochs of every shard


@pytest.fixture(scope="module", params=KINDS)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def unbroken(corpus: tuple[str, Path]) -> list[str]:
    return run(spec(*corpus), STEPS)[0]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_world_size_sees_the_same_global_batches(
    corpus: tuple[str, Path], unbroken: list[str], world: int
) -> None:
    assert len(set(unbroken)) == STEPS
    assert run(spec(*corpus), STEPS, world)[0] == unbroken


def test_resumes_with_other_world_sizes_go_on_exactly(corpus: tuple[str, Path], unbroken: list[str]) -> None:
    found: list[str] = []
    state = None
    for world, steps in [(2, 7), (4, 13), (1, 1), (8, 20), (2, STEPS - 41)]:
        more, state = run(spec(*corpus), steps, world, state)
        found += more
    assert found == unbroken


def test_a_resume_before_the_first_batch_changes_nothing(corpus: tuple[str, Path], unbroken: list[str]) -> None:
    _, state = run(spec(*corpus), 9)
    for _ in range(3):
        _, state = run(spec(*corpus), 0, 2, state)
    assert run(spec(*corpus), 3, 4, state)[0] == unbroken[9:12]


def shard_text(data: Any, shard: int, windows: int) -> list[str]:
    """The documents of one shard, one after the other, as its windows give them."""
    feed = feeds(data, 8, 8)[shard]
    state, rows = FeedState(), []
    for _ in range(windows):
        batch = feed.batch(state)
        state = batch.state
        rows.append(batch.x_BT[0])
    return np.concatenate(rows).tobytes().decode(errors="replace").split("\0")


def test_every_document_comes_once_an_epoch_whole_and_in_another_order(corpus: tuple[str, Path]) -> None:
    known = {t.split(">")[0] + ">": t for t in texts(600)}
    seen: Counter[str] = Counter()
    for shard in range(8):
        found = shard_text(spec(*corpus), shard, 1500)[:-1]  # the last one is cut
        names = [t.split(">")[0] + ">" for t in found]
        assert all(t == known[name] for t, name in zip(found, names, strict=True))
        size = len(set(names))
        epochs = [names[i : i + size] for i in range(0, len(names) - size, size)]
        assert len(epochs) >= 2
        assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
        assert all(a != b for a, b in pairwise(epochs))
        assert epochs[0] != sorted(epochs[0])
        seen.update(epochs[0])
    assert sorted(seen) == sorted(known) and set(seen.values()) == {1}


def test_targets_are_the_input_shifted_and_windows_follow_each_other(corpus: tuple[str, Path]) -> None:
    feed, state = feeds(spec(*corpus), 8, 8)[3], FeedState()
    before = None
    for _ in range(20):
        batch = feed.batch(state)
        state = batch.state
        assert batch.x_BT.shape == batch.y_BT.shape == (1, SEQ)
        assert np.array_equal(batch.x_BT[:, 1:], batch.y_BT[:, :-1])
        assert before is None or before == batch.x_BT[0, 0]
        before = batch.y_BT[0, -1]


@pytest.mark.parametrize(("world", "global_batch", "key"), [(3, 18, "data.shards"), (4, 6, "train.global_batch")])
def test_ranks_that_do_not_divide_are_refused(
    corpus: tuple[str, Path], world: int, global_batch: int, key: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(key)) as e:
        feeds(spec(*corpus), world, global_batch)
    assert e.value.code == "E-DATA-008"


def test_ranks_that_do_not_divide_what_was_trained_on_are_refused_and_those_that_do_are_named(
    corpus: tuple[str, Path],
) -> None:
    _, state = run(spec(*corpus), 5, 1, global_batch=6)
    assert state.samples == 30
    with pytest.raises(SpecError, match="30 samples") as e:
        run(spec(*corpus), 1, 4, state, global_batch=8)
    assert e.value.code == "E-DATA-017"
    assert str(e.value.expected).endswith("ranks: 1, 2") and str(e.value.fix).startswith("resources.ranks: 2 ")
    assert run(spec(*corpus), 9, 1, state, global_batch=8)[0] == run(spec(*corpus), 9, 2, state, global_batch=8)[0]


def test_a_changed_corpus_has_another_fingerprint(tmp_path: Path) -> None:
    folder = write_jsonl(tmp_path / "a")
    before = feeds(spec("jsonl", folder))[0].fingerprint
    copy = write_jsonl(tmp_path / "b")
    assert feeds(spec("jsonl", copy))[0].fingerprint == before
    path = copy / "part1.jsonl"
    path.write_text(path.read_text().replace("alpha", "ALPHA", 1))
    assert feeds(spec("jsonl", copy))[0].fingerprint != before
    path.rename(copy / "other.jsonl")
    assert feeds(spec("jsonl", copy))[0].fingerprint != before


@pytest.mark.parametrize(
    "shards",
    [{0: {"jsonl": [0, 0, 0, 0]}}, {v: {"jsonl": [0, 10**6, 0, 0]} for v in range(8)}, {v: [1, 2] for v in range(8)},
     {v: {"jsonl": [0, 0, -1, 0]} for v in range(8)}, {v: {"jsonl": [0, "x", 0, 0]} for v in range(8)}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(tmp_path: Path, shards: Any) -> None:
    feed = feeds(spec("jsonl", write_jsonl(tmp_path)))[0]
    with pytest.raises(IntegrityError) as e:
        feed.batch(FeedState(16, shards))
    assert e.value.code == "E-DATA-007"


BAD_LINES = [
    (b'{"text": "torn', "no JSON"),
    (b'{"id": 1}', "no field 'text', but id"),
    (b'{"text": 7}', "'text' is no text but int"),
    (b'{"text": ""}', "'text' is empty"),
    (b'["text"]', "no JSON object but list"),
    (b'{"text": "\xff\xfe"}', "no UTF-8"),
    (b"[" * 100_000, "no JSON"),
]


def test_bad_lines_are_left_out_and_told_by_file_and_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_jsonl(tmp_path)
    clean = run(spec("jsonl", folder, shards=1), 200)[0]
    capfd.readouterr()
    path = folder / "part1.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:50], *(bad for bad, _ in BAD_LINES), b"", *lines[50:]]) + b"\n")
    feed = feeds(spec("jsonl", folder, shards=1))[0]
    state = FeedState()
    for _ in range(200):
        state = feed.batch(state).state
    told = capfd.readouterr().err
    for n, (_, why) in enumerate(BAD_LINES[:5]):
        assert any("part1.jsonl:" in line and why in line for line in told.splitlines()), (n, why, told)
    source = feed._now.source  # type: ignore[attr-defined]
    assert source.left_out.count == len(BAD_LINES)
    numbers = sorted(int(x) for x in re.findall(r"part1\.jsonl:(\d+)", told))
    assert set(numbers) <= set(range(51, 51 + len(BAD_LINES))) and len(numbers) >= 5
    assert len(clean) == 200


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda p: None, "E-DATA-003"),
        (lambda p: (p / "a.jsonl").touch(), "E-DATA-003"),
        (lambda p: (p / "a.jsonl").write_text('{"body": "no text"}\n' * 200), "E-DATA-016"),
        (lambda p: (p / "a.jsonl").write_text('{"text": "one"}\n'), "E-DATA-006"),
        (lambda p: (p / "a.jsonl").write_bytes(b"\x1f\x8b\x08" + bytes(9000)), "E-DATA-015"),
        (lambda p: (p / "a.jsonl").write_bytes(bytes(9000)), "E-DATA-016"),
    ],
)
def test_a_corpus_without_text_is_refused(tmp_path: Path, made: Any, code: str) -> None:
    made(tmp_path)
    with pytest.raises(OrchError) as e:
        run(spec("jsonl", tmp_path), 1)
    assert e.value.code == code and e.value.fix


def test_a_shard_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 20_000}) + "\n")
    with pytest.raises(SpecError, match="has no documents") as e:
        run(spec("jsonl", tmp_path), 1)
    assert e.value.code == "E-DATA-006" and "data.shards" in (e.value.fix or "")


@pytest.mark.parametrize("source", ["text", "jsonl", "parquet", "prepared", "hub"])
def test_data_that_are_not_there_are_told_as_that(tmp_path: Path, source: str) -> None:
    gone = tmp_path / "mnt" / "edu"
    data: dict[str, Any] = {"source": source, "path": str(gone)}
    if source == "hub":
        data = {"source": source, "dataset": {"repo": str(gone)}}
    asked = DataSpec.model_validate(data)
    with pytest.raises(MissingDataError) as e:
        hub.commit_of(asked.dataset, 5.0) if asked.dataset else open_feed(asked, TrainSpec(), rank=0, world_size=1)
    assert str(gone) in str(e.value.where) and e.value.fix
    if source != "prepared":
        assert (e.value.code, "not there" in e.value.what) == ("E-DATA-001", True)
        assert f"of the way to it {tmp_path} is there" in str(e.value.expected)


@pytest.mark.parametrize("source", ["text", "jsonl", "parquet", "prepared"])
def test_a_folder_where_nothing_is_mounted_is_no_mistake_of_the_job(tmp_path: Path, source: str) -> None:
    with pytest.raises(MissingDataError):
        open_feed(DataSpec.model_validate({"source": source, "path": str(tmp_path)}), TrainSpec(), rank=0, world_size=1)


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path)
    with pytest.raises(SpecError) as e:
        feeds(spec("parquet", folder, text_field="txt"))
    assert e.value.code == "E-DATA-005" and e.value.did_you_mean == "text"
    with pytest.raises(SpecError, match=r"called 'id' \(it is int64\)"):
        feeds(spec("parquet", folder, text_field="id"))
    path = folder / "part1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpecError) as e:
        feeds(spec("parquet", folder))
    assert e.value.code == "E-DATA-004" and e.value.where == "part1.parquet"


def test_truncated_documents_keep_their_beginning_and_their_end(corpus: tuple[str, Path]) -> None:
    found = shard_text(spec(*corpus, truncate=True), 0, 200)[:-1]
    whole = {t.encode()[: SEQ - 1] for t in texts(600)}
    assert {t.encode() for t in found if "\ufffd" not in t} <= whole
    assert max(len(t.encode()) for t in found if "\ufffd" not in t) == SEQ - 1


def test_borders_are_where_documents_begin(corpus: tuple[str, Path]) -> None:
    feed, state = feeds(spec(*corpus, pack="documents"), 2)[1], FeedState()
    documents = 0
    ends = b""
    for _ in range(40):
        batch = feed.batch(state)
        state = batch.state
        borders = batch.cu_seqlens
        assert borders is not None and borders[0] == 0 and borders[-1] == batch.x_BT.size
        flat = batch.x_BT.reshape(-1)
        inner = {int(b) for b in borders} - {row * SEQ for row in range(len(batch.x_BT) + 1)}
        after_end = {int(i) + 1 for i in np.flatnonzero(flat == 0) if (i + 1) % SEQ}
        assert inner == after_end
        documents += batch.docs or 0
        ends += flat[flat == 0].tobytes()
    assert abs(documents - len(ends)) <= 4 * 8  # of each shard the first begins, and the last has not ended
