"""The knee report: from which length a backend wins for good, and the thresholds file that is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernels import thresholds
from kernels.bench import knee
from runbooks import evidence

H200_ROWS = Path(evidence.__file__).parent / "results" / "kernels.jsonl"


def times(*ratios: float) -> knee.Times:
    """At 128, 256, 512, ...: B takes `ratio` times as long as A."""
    return {128 << i: (10.0, 10.0 * ratio) for i, ratio in enumerate(ratios)}


def row(length: int, us: float | None, peers: dict[str, float], **more: Any) -> dict[str, Any]:
    shape = {"B": 2, "Hq": 8, "Hkv": 2, "D": 64, "S": length}
    head = {"suite": "kv-decode", "case": f"S{length}", "shape": shape, "dtype": "fp16", "us": us, "verdict": "ok"}
    facts = {"device": "NVIDIA Z9", "commit": "abc", "date": "2026-11-21"}
    return head | {"peers": peers} | facts | more


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((1.3, 1.2, 5.0), "always"),
        ((1.1, 1.0, 1.19), "never"),
        ((0.5, 1.2, 1.9), "from 256"),
        ((1.3, 1.2, 1.1), "until 256"),
        ((1.3, 1.1, 1.2), "from 512"),  # the short one is no start: 256 contradicts it
        ((1.0, 1.4, 1.0), "never for good"),
        ((1.2,), "at the one length measured"),
        ((1.1,), "never"),
    ],
)
def test_a_knee_is_for_good(ratios: tuple[float, ...], words: str) -> None:
    assert knee.knee("", "a", "b", times(*ratios)).words() == words


def test_a_margin_decides_and_must_be_one_or_more() -> None:
    assert knee.knee("", "a", "b", times(1.05, 1.06), 1.05).words() == "always"
    with pytest.raises(ValueError, match="margin of 1 or more"):
        knee.knee("", "a", "b", times(2.0), 0.9)
    with pytest.raises(ValueError, match="one length at least"):
        knee.knee("", "a", "b", {})


@pytest.fixture(scope="module")
def h200() -> list[dict[str, Any]]:
    return [json.loads(line) for line in H200_ROWS.read_text().splitlines()]


def said(found: list[knee.Knee], a: str, b: str, shape: str = "B16 H8/8 D64/64 fp16 on NVIDIA H200") -> str:
    return next(k.words() for k in found if (k.a, k.b, k.shape) == (a, b, shape))


def test_the_rows_of_an_h200(h200: list[dict[str, Any]]) -> None:
    found = knee.knees(h200)
    assert said(found, "decoupled q4q8q4", "triton") == "always"
    assert said(found, "decoupled q4q8q4", "decoupled fp16") == "always"
    assert said(found, "triton", "sdpa-cudnn") == said(found, "sdpa-cudnn", "triton") == "never"
    assert said(found, "triton", "sdpa-flash") == "until 4096"
    assert said(found, "decoupled q4q8q4 +tail128", "triton") == "from 8192"  # 1.197x at 2048
    assert said(found, "triton", "sdpa-cudnn", "B1 H32/8 D128/128 fp16 on NVIDIA H200") == "until 4096"
    pairs = {(k.a, k.b) for k in found}
    assert ("decoupled q4q8q4 +null", "decoupled fp16") not in pairs, "variants are held against the dense kernel"
    text = knee.table(found)
    assert "decoupled q4q8q4 +tail128 over triton           from 8192      1.19x at 2048, 2.44x at 32768" in text
    assert max(map(len, text.splitlines())) <= 110


def test_ours_is_held_against_peers_without_the_append() -> None:
    """Peers append nothing: 12 us with the append are 9 without it, and only those 9 are 1.2x faster than 11."""
    rows = [row(128, 12.0, {"sdpa-cudnn": 11.0}, attend_us=9.0)]
    assert said(knee.knees(rows), "triton", "sdpa-cudnn", "B2 H8/2 D64/64 fp16 on NVIDIA Z9").startswith("at the one")


def test_the_newest_row_counts_and_a_wrong_one_for_nothing() -> None:
    rows = [row(128, 10.0, {"sdpa-cudnn": 20.0}), row(256, 10.0, {"sdpa-cudnn": 20.0})]
    again = [row(128, 10.0, {"sdpa-cudnn": 10.0}), row(256, None, {}, verdict="wrong")]
    (one, other) = knee.knees(rows + again)
    assert set(one.times) == {128} and one.words() == other.words() == "never"


def rules(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    (made,) = knee.documents(rows, "rows.jsonl")
    assert all((r.group, r.head_dim, r.dtype, r.pairs) == (4, 64, "fp16", 4) for r in made.rules)
    return [(r.from_length, r.backend) for r in made.rules]


def test_rules_follow_from_the_rows() -> None:
    def at(*peers: dict[str, float]) -> list[tuple[int, str]]:
        return rules([row(128 << i, 10.0, times) for i, times in enumerate(peers)])

    assert at({"sdpa-cudnn": 9.0}, {"sdpa-cudnn": 9.0}) == [(128, "triton")]  # not by the margin
    assert at({"sdpa-cudnn": 11.0}, {"sdpa-cudnn": 8.0}, {"sdpa-cudnn": 5.0}) == [(128, "triton"), (256, "sdpa-cudnn")]
    assert at({"sdpa-cudnn": 5.0}, {"sdpa-cudnn": 9.0}) == [(128, "sdpa-cudnn"), (256, "triton")]
    assert at({"sdpa-cudnn": 9.0}, {"sdpa-cudnn": 5.0}, {"sdpa-cudnn": 9.0}) == [(128, "triton")]  # not for good
    both = {"sdpa-cudnn": 8.0, "sdpa-flash": 7.0}
    assert at(both, both | {"sdpa-cudnn": 6.0}) == [(128, "sdpa-flash"), (256, "sdpa-cudnn")]
    assert at({"sdpa-flash": 5.0}, {}) == [(128, "triton")]  # no time at 256: nobody knows
    assert at({"sdpa-cudnn": 20.0, "fa3": 1.0}) == [(128, "triton")]  # what dispatch cannot call


def test_rows_without_sdpa_or_of_other_suites_make_no_file(h200: list[dict[str, Any]]) -> None:
    assert knee.documents([row(128, 10.0, {"fa3": 5.0})], "r") == []
    stood_in = row(128, 10.0, {"sdpa-cudnn": 5.0}, why="reference: NVIDIA Z9 is SM 7.5, and Triton needs 8.0")
    assert knee.documents([stood_in], "r") == []
    assert knee.documents([r for r in h200 if r["suite"] != "kv-decode"], "r") == []


def test_the_command_prints_and_writes_what_is_read(
    h200: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert knee.main([str(H200_ROWS), "--margin", "1.5", "--write", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "kv-decode" / "nvidia-h200.json"
    assert f"written: {path}" in out and "faster by 1.5x for good" in out
    held = thresholds.parse(path.read_text(), "there")
    assert held == knee.documents(h200, "kernels.jsonl", 1.5)[0] and held.margin == 1.5 and len(held.rules) == 4


def test_the_file_in_the_package_is_made_of_the_filed_rows(h200: list[dict[str, Any]]) -> None:
    (made,) = knee.documents(h200, "runbooks/results/kernels.jsonl")
    ours = thresholds.PACKAGE / "kv_decode" / "thresholds" / "nvidia-h200.json"
    assert ours.read_text() == made.text(), "python -m kernels.bench.knee runbooks/results/kernels.jsonl --write"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 1, "no right row of kv-decode or decoupled with a peer"),
        ("{", 1, "JSONDecodeError"),
        ('{"suite": "kv-decode"}', 1, "KeyError: 'case'"),
        (json.dumps(row(128, 9.0, {"sdpa": 5.0}, device="cpu", why="one 1x128")), 1, "timed on a CPU"),
    ],
)
def test_what_cannot_be_used_is_said(
    text: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(text)
    assert knee.main([str(source), "--write", str(tmp_path)]) == code
    err = capsys.readouterr().err
    assert words in err and str(source) in err
    with pytest.raises(SystemExit):
        knee.main([str(source), "--margin", "0.5"])
