"""GPT-2's vocabulary: imported, kept, checked before each use; fetched only when nothing is kept, with a deadline."""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path

import pytest

from tests.tokenizers.vocabularies import small_ranks
from workloads.contract import gptvocab
from workloads.contract.errors import IntegrityError, LocalError
from workloads.contract.rundir import OrchHome
from workloads.data import vocabulary
from workloads.data.tokenizers import load_tokenizer


def test_the_published_files_become_the_published_bytes(gpt2_folder: Path) -> None:
    """vocab.bpe + encoder.json make, byte by byte, what is published as r50k_base.tiktoken."""
    data = gptvocab.read_import([gpt2_folder])
    assert hashlib.sha256(data).hexdigest() == gptvocab.SHA256
    both = [gpt2_folder / gptvocab.MERGES, gpt2_folder / gptvocab.IDS]
    assert gptvocab.read_import(both) == gptvocab.read_import(both[::-1]) == data


def test_gpt2_has_the_ids_that_are_known(gpt2_folder: Path, home: OrchHome) -> None:
    vocabulary.keep(home, gptvocab.read_import([gpt2_folder]))
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.vocab_size == gptvocab.SIZE == 50257
    assert tokenizer.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert tokenizer.encode(" antidisestablishmentarianism").tolist() == [1885, 29207, 44390, 3699, 1042]
    assert tokenizer.decode([15496, 995, tokenizer.end_id]) == "Hello world<|endoftext|>"


def test_ids_are_those_of_the_other_library(gpt2_folder: Path, home: OrchHome) -> None:
    """The same merges through `tokenizers`, on every source file of a package."""
    from tokenizers import ByteLevelBPETokenizer

    vocabulary.keep(home, gptvocab.read_import([gpt2_folder]))
    ours = load_tokenizer("gpt2")
    peer = ByteLevelBPETokenizer(str(gpt2_folder / gptvocab.IDS), str(gpt2_folder / gptvocab.MERGES))
    for path in sorted(Path(gptvocab.__file__).parent.glob("*.py")):
        text = path.read_text()
        assert ours.encode(text).tolist() == peer.encode(text).ids, path.name


def test_one_flipped_bit_is_refused(gpt2_folder: Path, home: OrchHome) -> None:
    path = vocabulary.keep(home, gptvocab.read_import([gpt2_folder]))
    data = bytearray(path.read_bytes())
    data[400_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        load_tokenizer("gpt2")
    assert caught.value.code == "E-DATA-021"
    assert str(path) in caught.value.render()


def test_another_vocabulary_is_not_imported(tmp_path: Path, home: OrchHome) -> None:
    """A whole, sound BPE that is not GPT-2's: its ids would be others under the same name."""
    path = tmp_path / "small.tiktoken"
    path.write_bytes(gptvocab.canonical(small_ranks()))
    assert gptvocab.parse(path.read_bytes()) == small_ranks()
    with pytest.raises(IntegrityError):
        gptvocab.read_import([path])
    with pytest.raises(IntegrityError):
        vocabulary.keep(home, path.read_bytes())
    assert not vocabulary.kept_at(home).exists()


@pytest.mark.parametrize(
    ("merges", "ids"),
    [(b"", b""), (b"#v\na b\n", b"[]"), (b"#v\na b c\n", b"{}"), (b"#v\n\xff\n", b"{}"), (b"#v\na b\n", b'{"a": 0}')],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, merges: bytes, ids: bytes) -> None:
    (tmp_path / gptvocab.MERGES).write_bytes(merges)
    (tmp_path / gptvocab.IDS).write_bytes(ids)
    with pytest.raises(IntegrityError) as caught:
        gptvocab.read_import([tmp_path])
    assert caught.value.code == "E-DATA-021"


def test_nothing_kept_and_offline_says_what_to_type(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LocalError) as caught:
        load_tokenizer("gpt2")
    told = caught.value.render()
    assert caught.value.code == "E-DATA-022"
    assert str(vocabulary.kept_at(home)) in told
    assert "fix:   orch data import vocab.bpe encoder.json" in told


def test_a_download_that_stalls_ends_at_its_deadline(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's own download has none. Its request goes to a server here that takes it and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(vocabulary, "FETCH_S", 4.0)
        began = time.monotonic()
        with pytest.raises(LocalError, match="did not end within 4 s"):
            load_tokenizer("gpt2")
        assert time.monotonic() - began < 60
        server.settimeout(0)
        assert server.accept()[0].recv(7) == b"CONNECT"
    assert not vocabulary.kept_at(home).exists()
