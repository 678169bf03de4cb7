"""YAML as orch reads it: what every reader agrees on, and nothing else; bad text is an error that can be read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pods.yamlfile import MAX_BYTES, MAX_DEPTH, Mark, parse_yaml, read_yaml
from pods.yamlscalar import Surprise, plain
from workloads.contract.errors import ErrorGroup, LocalError, OrchError, SpecError


def codes(error: OrchError) -> list[str]:
    return [e.code for e in error.errors] if isinstance(error, ErrorGroup) else [error.code]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-7", -7), ("+7", 7), ("0", 0), ("100_000", 100_000),
        ("3e-4", 3e-4), ("3E4", 3e4), ("1.", 1.0), (".5", 0.5), ("1.5e3", 1500.0), ("-0.0", -0.0),
        ("true", True), ("false", False), ("", None), ("~", None), ("null", None),
        ("2026-11-21", "2026-11-21"), ("2026-11-21T03:00:00Z", "2026-11-21T03:00:00Z"), ("1.2.3", "1.2.3"),
        ("y", "y"), ("n", "n"), ("inf", "inf"), ("nan", "nan"), ("=", "="), ("12e", "12e"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    got = plain(text)
    assert got == value and type(got) is type(value)


def test_special_floats_are_read_so_that_models_can_refuse_them() -> None:
    assert plain(".inf") == math.inf and plain("-.INF") == -math.inf and math.isnan(plain(".NaN"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["no", "No", "YES", "on", "Off", "True", "FALSE", "0777", "08", "0x1F", "0o17", "0b1", "12:30", "12:30:00",
     "-1:59", "190:20:30.15", "9" * 30, "9007199254740993"],
)  # fmt: skip
def test_scalars_that_readers_disagree_about_are_refused(text: str) -> None:
    assert isinstance(plain(text), Surprise)
    with pytest.raises(SpecError) as e:
        parse_yaml(f"a: {text}", "f.yaml")
    assert e.value.code == "E-YAML-013" and e.value.where == "f.yaml:1"
    assert parse_yaml(f"a: '{text}'", "f.yaml").data == {"a": text}


def test_every_value_has_its_place() -> None:
    doc = parse_yaml("train:\n  steps: 5\npods: [a,\n  b]\nlist:\n- x: 1\n", "f.yaml")
    assert doc.data == {"train": {"steps": 5}, "pods": ["a", "b"], "list": [{"x": 1}]}
    assert doc.marks["train.steps"] == Mark(2, 3)
    assert doc.marks["pods[1]"] == Mark(4, 3)
    assert doc.marks["list[0].x"] == Mark(6, 3)
    assert doc.place("train.nothing.here") == "f.yaml:1" and doc.place("train.steps[3]") == "f.yaml:2"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\na: 2", "E-YAML-010"),
        ("a: &x 1\nb: 2", "E-YAML-007"),
        ("a: *x", "E-YAML-007"),
        ("<<: {a: 1}", "E-YAML-012"),
        ("a: !!python/object/apply:os.system [id]", "E-YAML-008"),
        ("a: !!str 1", "E-YAML-008"),
        ("a: 1\n---\nb: 2", "E-YAML-006"),
        ("? [a, b]\n: 1", "E-YAML-011"),
        ("a: [", "E-YAML-001"),
        ("a: 'x", "E-YAML-001"),
        ("\ta: 1", "E-YAML-001"),
        ('a: "\\UFFFFFFFF"', "E-YAML-001"),
        ('a: "\\ud800"', "E-YAML-014"),
        ('a: "\\0"', "E-YAML-014"),
        ("a: \x07", "E-YAML-001"),
        ("a: " + "[" * (MAX_DEPTH + 5) + "]" * (MAX_DEPTH + 5), "E-YAML-009"),
        ("[" * 5000, "E-YAML-009"),
        ("a: [" + "1," * 400_000 + "]", "E-YAML-015"),
    ],
)
def test_what_is_refused(text: str, code: str) -> None:
    with pytest.raises(OrchError) as e:
        parse_yaml(text, "f.yaml")
    assert code in codes(e.value)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ErrorGroup) as e:
        parse_yaml("a: no\nb: &x 1\nc: 0777\nd: [\n", "f.yaml")
    assert codes(e.value) == ["E-YAML-013", "E-YAML-007", "E-YAML-013", "E-YAML-001"]


def test_an_alias_bomb_costs_nothing() -> None:
    text = "a: &a [x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    with pytest.raises(ErrorGroup):
        parse_yaml(text, "f.yaml")


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "---\n...\n"])
def test_nothing_is_none(text: str) -> None:
    assert parse_yaml(text, "f.yaml").data is None


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: \xc3\xbc\r\n")
    assert read_yaml(good).data == {"a": 1, "b": "ü"}
    link = tmp_path / "link.yaml"
    link.symlink_to(good)
    assert read_yaml(link).data == {"a": 1, "b": "ü"}
    for name, raw, code in (
        ("latin.yaml", b"a: 1\nb: \xfc\n", "E-YAML-002"),
        ("large.yaml", b"#" * (MAX_BYTES + 1), "E-YAML-003"),
    ):
        path = tmp_path / name
        path.write_bytes(raw)
        with pytest.raises(SpecError) as e:
            read_yaml(path)
        assert e.value.code == code
    with pytest.raises(SpecError):
        read_yaml(Path("/dev/zero"))
    with pytest.raises(LocalError):
        read_yaml(tmp_path / "none.yaml")


YAMLISH = st.text(
    st.sampled_from(list("ab:{}[],&*!|>-?#\"'%@`\\ \n\t0179.exun~<=\r\ufeff\x85\u2028\ud800\0\x07")), max_size=60
)


@settings(max_examples=400, deadline=None)
@given(YAMLISH | st.text(max_size=60))
def test_any_text_is_data_or_an_orch_error(text: str) -> None:
    try:
        parse_yaml(text, "f.yaml")
    except OrchError as e:
        assert e.render().startswith("error[E-YAML-")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_data_or_an_orch_error(raw: bytes) -> None:
    try:
        parse_yaml(raw, "f.yaml")
    except OrchError as e:
        assert e.exit_code == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_json_is_read_as_it_is(value: object) -> None:
    import json

    assert parse_yaml(json.dumps(value, ensure_ascii=False), "f.yaml").data == value
