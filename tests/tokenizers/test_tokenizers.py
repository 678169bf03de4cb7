"""From text to ids and back, with vocabularies made here: what holds for every tokenizer, and what each adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.vocabularies import TEXT, small_ranks, tokenizer_json
from workloads.contract.config.job import DataSpec, padded_vocab
from workloads.contract.errors import SpecError
from workloads.data.tokenizers import (
    _PATTERN,
    ByteTokenizer,
    RankedTokenizer,
    Tokenizer,
    bind,
    load_tokenizer,
    token_dtype,
)


def ranked() -> RankedTokenizer:
    return RankedTokenizer("small", small_ranks(), _PATTERN, 300)


@pytest.fixture(scope="module")
def of_file(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(tokenizer_json(tmp_path_factory.mktemp("tok") / "tokenizer.json")))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
@pytest.mark.parametrize("make", [ByteTokenizer, ranked])
def test_every_text_comes_back(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert ids.dtype == token_dtype(tokenizer.vocab_size)
    assert all(int(i) < tokenizer.vocab_size and int(i) != tokenizer.end_id for i in ids) or "\0" in text


def test_what_looks_like_a_special_token_is_text(of_file: Tokenizer) -> None:
    for tokenizer in (ranked(), of_file):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.end_id not in ids.tolist(), tokenizer.name
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_merges_are_used() -> None:
    assert ranked().encode("the thing").tolist() == [257, 32, 256, 260]


def test_half_a_surrogate_is_the_replacement_character(of_file: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), ranked(), of_file):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a�b", tokenizer.name


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_a_million_blanks_are_encoded(blank: str) -> None:
    """tiktoken alone panics on them, which no `except Exception` sees."""
    text = "x" + blank * 1_200_000 + "y"
    tokenizer = ranked()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_json_is_not_cut_or_padded(tmp_path: Path) -> None:
    path = tokenizer_json(tmp_path / "tokenizer.json")
    row = json.loads(path.read_text())
    row["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    row["padding"] = {
        "strategy": {"Fixed": 4000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    path.write_text(json.dumps(row))
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer.encode(TEXT)
    assert 8 < len(ids) < 4000
    assert tokenizer.decode(ids) == TEXT


def test_fingerprints_tell_tokenizers_apart(tmp_path: Path) -> None:
    one = load_tokenizer(str(tokenizer_json(tmp_path / "a.json")))
    same = load_tokenizer(str(tokenizer_json(tmp_path / "b.json")))
    other = load_tokenizer(str(tokenizer_json(tmp_path / "c.json", vocab_size=280)))
    end = load_tokenizer(str(tokenizer_json(tmp_path / "d.json", end="</s>")))
    changed = RankedTokenizer("small", small_ranks() | {b"zz": 262}, _PATTERN, 300)
    prints = [t.fingerprint for t in (one, other, end, ranked(), changed, ByteTokenizer())]
    assert len(set(prints)) == len(prints)
    assert one.fingerprint == same.fingerprint
    assert bind("corpus", ByteTokenizer()) == "corpus"
    assert bind("corpus", one) != bind("corpus", other)


def test_types_are_as_small_as_the_ids_allow() -> None:
    assert [token_dtype(n) for n in (256, 257, 65536, 65537)] == [np.uint8, np.uint16, np.uint16, np.uint32]
    assert [padded_vocab(n) for n in (256, 50257, 50304)] == [256, 50304, 50304]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": {"type": "Nonsense"}}'])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_tokenizer(str(path))
    assert caught.value.code == "E-DATA-024"
    assert str(path) in caught.value.render()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_tokenizer(str(tokenizer_json(tmp_path / "tokenizer.json", end="<|begin|>")))
    assert caught.value.code == "E-DATA-025"


def test_the_job_names_only_tokenizers_that_there_can_be() -> None:
    assert DataSpec(tokenizer="gpt2").tokenizer == "gpt2"
    assert DataSpec(tokenizer="/a/tokenizer.json").tokenizer == "/a/tokenizer.json"
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        DataSpec(tokenizer="gpt3")
