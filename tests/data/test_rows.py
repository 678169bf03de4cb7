"""Data sets without Parquet, through `datasets`: every document once, exact at any place, from disk and a server."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.corpora import feeds, global_hash, parts_of, run, saved, spec, texts
from tests.data.hubserver import COMMIT, REPO, Hub, serving
from workloads.contract.config.job import DataSpec
from workloads.contract.errors import IntegrityError, SpecError
from workloads.data import rowfiles
from workloads.data.blocks import SourceGone
from workloads.data.opening import open_source
from workloads.data.reading import Patience
from workloads.data.rowfiles import Place, RowFiles
from workloads.data.stream import FeedState
from workloads.dataprep.origins import open_origin

STEPS = 12
ROWS = 240


def packed(rows: Sequence[str], ending: str) -> bytes:
    """The documents as a file of that ending."""
    objects = [{"id": n, "text": t, "more": {"of": ["it"]}} for n, t in enumerate(rows)]
    lines = "".join(json.dumps(row) + "\n" for row in objects).encode()
    if ending == ".json":
        return json.dumps(objects, indent=1).encode()
    if ending in (".csv", ".tsv"):
        out = io.StringIO()
        write = csv.writer(out, delimiter="\t" if ending == ".tsv" else ",")
        write.writerows([["id", "text"], *([str(n), t] for n, t in enumerate(rows))])
        return out.getvalue().encode()
    if ending == ".txt":
        return "".join(f"{t}\n\n" for t in rows).encode()
    if ending == ".jsonl.zst":
        import zstandard

        return zstandard.compress(lines)
    return gzip.compress(lines)


def write(root: Path, ending: str = ".jsonl.gz", files: int = 3, count: int = ROWS) -> Path:
    root.mkdir(parents=True)
    for k, part in enumerate(parts_of(texts(count), files)):
        (root / f"part{k}{ending}").write_bytes(packed(part, ending))
    return root


def data(repo: Path | str, **more: Any) -> DataSpec:
    return spec("hub", None, **{"dataset": {"repo": str(repo), "revision": COMMIT}, "read_timeout_s": 5.0, **more})


def opened(asked: DataSpec) -> RowFiles:
    source = open_source(asked)
    assert isinstance(source, RowFiles)
    return source


def documents(source: RowFiles, unit: int) -> Iterator[str]:
    reader, at, ended = source.unit(unit), Place(), False
    while not ended:
        chunk = reader.chunk(at)
        yield from (t for t in chunk.texts if t)
        at, ended = chunk.after, chunk.ended


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfiles, "CHUNK_ROWS", 5)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "repository")


@pytest.fixture(scope="module")
def whole(repository: Path) -> list[str]:
    return run(data(repository), STEPS)[0]


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants as constants

    with serving(repository) as server:
        server.card = {}
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".tsv", ".txt"])
def test_every_document_is_in_one_unit(tmp_path: Path, ending: str, small_chunks: None) -> None:
    """Three files for eight virtual shards: nine units."""
    source = opened(data(write(tmp_path / "r", ending)))
    assert source.lanes == 3 and source.blocks == 9
    found = [list(documents(source, unit)) for unit in range(source.blocks)]
    assert sorted(itertools.chain(*found)) == sorted(texts(ROWS)) and min(map(len, found)) > 20
    assert found[4] == parts_of(texts(ROWS), 3)[1][1::3] if ending != ".txt" else found[4]
    assert not source.left_out.count


def test_any_number_of_ranks_from_any_place_gives_the_same(
    repository: Path, whole: list[str], small_chunks: None
) -> None:
    """The state of `datasets` stands in the middle of a file; a position that it has not left yet is kept too."""
    asked, state = data(repository), FeedState()
    for n, world in enumerate((1, 2, 4, 8, 2, 1)):
        ranks = feeds(asked, world)
        parts = [feed.batch(state) for feed in ranks]
        assert global_hash(parts) == whole[2 * n]
        again = [feed.batch(b.state) for feed, b in zip(ranks, parts, strict=True)]
        assert global_hash(again) == whole[2 * n + 1]
        state = saved([b.state for b in again])
    places = [at["hub"] for at in state.shards.values()]
    assert any(place[6] for place in places) and all(0 <= place[2] - place[4] < 5 for place in places)


def test_another_version_of_datasets_goes_on_by_rows(repository: Path, whole: list[str], small_chunks: None) -> None:
    first, state = run(data(repository), 8, 2)
    other = {v: {"hub": [*at["hub"][:5], "0.1", {"of": "another version"}]} for v, at in state.shards.items()}
    assert first + run(data(repository), 4, 1, FeedState(state.samples, other))[0] == whole


@pytest.mark.parametrize(
    "at", [[0, 0, 1, 0, 0, "1"], [0, 0, 1, 0, 2, "1", {}], [0, 0, -1, 0, 0, "", None], [0, 99, 0, 0, 0, "", None],
           [0, 0, 0, 0, 0, "", 7]]
)  # fmt: skip
def test_what_is_no_position_is_refused(repository: Path, at: list[Any]) -> None:
    with pytest.raises(IntegrityError) as e:
        feeds(data(repository))[0].batch(FeedState(16, {v: {"hub": at} for v in range(8)}))
    assert e.value.code == "E-DATA-007"


def test_a_served_data_set_gives_the_same_and_resumes_exactly(hub: Hub, whole: list[str], small_chunks: None) -> None:
    first, state = run(data(REPO), 5, 2)
    assert first + run(data(REPO), STEPS - 5, 1, state)[0] == whole
    asked = [r for r in hub.requests if REPO in r]
    assert sum("/api/" in r for r in asked) == 1
    assert all(f"/resolve/{COMMIT}/" in r and " bytes=" in r for r in asked if "/api/" not in r)


@pytest.mark.parametrize("fault", ["stall", "429", "cut", "empty"])
def test_a_fault_that_passes_costs_a_try_and_no_document(
    hub: Hub, whole: list[str], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.faults.extend(["", "", fault])
    assert run(data(REPO, read_timeout_s=1.0 if fault == "stall" else 5.0), STEPS)[0] == whole
    assert "warning: data: hub: part" in capfd.readouterr().err
    assert not hub.faults


def test_a_source_that_is_gone_is_given_up_in_bounded_time(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    feed = feeds(data(REPO, read_timeout_s=1.0, read_tries=2, fallback=["synthetic"]))[0]
    hub.always = "stall"
    began = time.monotonic()
    assert feed.batch(FeedState()).source == "synthetic"
    assert time.monotonic() - began < 60
    told = capfd.readouterr().err
    assert "(try 2 of 2)" in told and "FROM NOW ON THE RUN TRAINS ON SYNTHETIC" in told


def test_a_read_that_goes_on_is_not_late() -> None:
    looks, seen = itertools.count(), threading.Event()

    def progress() -> int:
        n = next(looks)
        if n > 6:
            seen.set()
        return n

    assert Patience(0.1, 1).call(lambda: seen.wait(60), "hub", "a file", progress=progress)
    with pytest.raises(SourceGone, match="no answer"):
        Patience(0.1, 1).call(lambda: threading.Event().wait(5), "hub", "a file", progress=lambda: 7)


def test_a_file_that_was_cut_is_no_shorter_file(tmp_path: Path) -> None:
    source = opened(data(write(tmp_path / "r", ".txt", files=8), read_tries=1))
    path = tmp_path / "r" / "part3.txt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceGone, match="it was cut"):
        list(documents(source, 3))


def test_what_holds_no_text_is_left_out_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": None}, {"text": ""}, {"text": "two"}]))
    source = opened(data(tmp_path, shards=1))
    assert list(documents(source, 0)) == ["one", "two"] and source.left_out.count == 2
    assert "a.json: row 1: 'text' is null" in capfd.readouterr().err


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv", ".json"])
def test_a_field_that_is_not_there_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    with pytest.raises(SpecError) as e:
        open_source(data(write(tmp_path / "r", ending), text_field="body"))
    assert e.value.code == "E-DATA-005" and "text" in str(e.value.expected)


def test_the_card_says_how_files_are_parsed(tmp_path: Path) -> None:
    root = write(tmp_path / "r", ".txt", files=2)
    card = {"configs": [{"config_name": "default", "sample_by": "document", "data_files": "*.txt"}]}
    (root / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    assert [len(list(documents(opened(data(root, shards=2)), n))) for n in (0, 1)] == [1, 1]


def test_files_of_several_kinds(tmp_path: Path) -> None:
    root = write(tmp_path / "r", ".csv")
    (root / "notes.txt").write_text("what this is\n")
    assert [f.name for f in opened(data(root)).files] == ["part0.csv", "part1.csv", "part2.csv"]
    (root / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: '*'}]\n---\n")
    with pytest.raises(SpecError) as e:
        open_source(data(root))
    assert e.value.code == "E-DATA-011"


def test_prepared_from_files_read_once(repository: Path) -> None:
    origin = open_origin(data(repository))
    pieces = [list(origin.pieces(part)) for part in range(origin.parts)]
    assert len(pieces) == 3 and [p.text for one in pieces for p in one if p.text] == texts(ROWS)
    assert sum(one[-1].done for one in pieces) == origin.size
