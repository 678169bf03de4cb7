"""Preparing JSON lines, Parquet and a hub's folder: every document once, in the files' order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.data.corpora import spec, texts, write_jsonl, write_parquet
from tests.dataprep.corpus import make
from workloads.contract.config.job import DataSpec
from workloads.contract.errors import OrchError
from workloads.data.prepared import load_prepared
from workloads.data.tokenizers import ByteTokenizer
from workloads.dataprep.origins import open_origin


def documents(folder: Path) -> list[str]:
    raw = ByteTokenizer().decode(load_prepared(folder, "byte").tokens[:])
    return raw.removesuffix("\0").split("\0")


def read(data: DataSpec) -> list[str]:
    """What workers would tokenize, part by part."""
    origin = open_origin(data)
    return [piece.text for part in range(origin.parts) for piece in origin.pieces(part) if piece.text]


@pytest.mark.parametrize("source", ["jsonl", pytest.param("parquet", marks=pytest.mark.long)])
def test_every_document_once_and_in_order(source: str, tmp_path: Path) -> None:
    (write_jsonl if source == "jsonl" else write_parquet)(tmp_path / "data")
    made = make(spec(source, tmp_path / "data"), tmp_path / "out")
    assert documents(tmp_path / "out") == texts(600)
    assert made.index.documents == 600
    assert len(made.index.shards) > 10


def test_a_hub_laid_out_on_disk(tmp_path: Path) -> None:
    write_parquet(tmp_path / "repo" / "data", files=1)
    (tmp_path / "repo" / "data" / "part0.parquet").rename(tmp_path / "repo" / "data" / "train-00000.parquet")
    data = spec("hub", None, dataset={"repo": str(tmp_path / "repo")})
    assert read(data) == texts(600)


def test_lines_that_are_no_documents_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_jsonl(tmp_path / "data", files=1)
    with (folder / "part0.jsonl").open("a") as f:
        f.write('\n{"text": 7}\n{"text": "the end"}\n')
    assert read(spec("jsonl", folder)) == [*texts(600), "the end"]
    assert "part0.jsonl:601: 'text' is no text but int" in capfd.readouterr().err


def test_another_field_or_another_cut_is_another_preparation(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = "".join(json.dumps({"text": f"a{n}" * 40, "other": f"b{n}" * 40}) + "\n" for n in range(40))
    (folder / "part0.jsonl").write_text(rows)
    make(spec("jsonl", folder), tmp_path / "out")
    for change in ({"text_field": "other"}, {"shards": 4}):
        with pytest.raises(OrchError) as caught:
            make(spec("jsonl", folder, **change), tmp_path / "out")
        assert caught.value.code == "E-DATA-044"


@pytest.mark.long
def test_a_source_that_goes_away_is_told_and_what_is_done_is_kept(tmp_path: Path) -> None:
    """The second of two files is gone once the first part is made; back again, the rest of it is read."""
    folder, aside = write_jsonl(tmp_path / "data", count=6000, files=2), tmp_path / "aside"
    staged = tmp_path / ".tmp_out"

    def gone(_: object) -> None:
        if (folder / "part1.jsonl").exists() and list(staged.glob("shard_*.json")):
            (folder / "part1.jsonl").rename(aside)

    data = spec("jsonl", folder, read_tries=1)
    with pytest.raises(OrchError) as caught:
        make(data, tmp_path / "out", tell=gone)
    assert caught.value.code == "E-DATA-046"
    assert "part1.jsonl" in caught.value.what
    shutil.copy2(aside, folder / "part1.jsonl")
    assert make(data, tmp_path / "out").kept_parts > 0
    assert documents(tmp_path / "out") == texts(6000)


def test_a_refusal_of_the_source_arrives_with_its_words(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data")
    with pytest.raises(OrchError) as caught:
        make(spec("parquet", folder, text_field="txet"), tmp_path / "out")
    assert caught.value.code == "E-DATA-005"
    assert not (tmp_path / ".tmp_out").exists()


def test_prepared_shards_are_no_source_of_documents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OrchError) as caught:
        make(spec("prepared", tmp_path / "a"), tmp_path / "out")
    assert caught.value.code == "E-DATA-040"
    assert json.dumps(caught.value.as_dict())
