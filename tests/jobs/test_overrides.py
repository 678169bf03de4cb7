"""`--set`: parsed as YAML, put into the job, blamed by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.jobs.jobfile import load_job
from orchestrator.jobs.overrides import apply_overrides, origin, parse_overrides
from workloads.contract.errors import ErrorGroup, OrchError, UsageError


def applied(data: dict[str, object], *sets: str) -> dict[str, object]:
    found, errors = parse_overrides(sets)
    assert not errors
    return apply_overrides(data, found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=200", 200), ("k=3e-4", 3e-4), ("k=[a, b]", ["a", "b"]), ("k={x: 1}", {"x": 1}), ("k=", None),
        ("k=a=b", "a=b"), ('k="1"', "1"), ("k=true", True), ("k=a b", "a b"),
    ],
)  # fmt: skip
def test_values_are_yaml(text: str, value: object) -> None:
    assert applied({}, text) == {"k": value}


def test_the_last_one_wins_and_the_rest_stays() -> None:
    before: dict[str, object] = {"train": {"steps": 1, "lr": 2}, "name": "x"}
    assert applied(before, "train.steps=5", "train.steps=6", "a.b.c=1") == {
        "train": {"steps": 6, "lr": 2}, "name": "x", "a": {"b": {"c": 1}},
    }  # fmt: skip
    assert before == {"train": {"steps": 1, "lr": 2}, "name": "x"}


@pytest.mark.parametrize("text", ["steps", "=1", "a..b=1", "a b=1", ".a=1", "a.=1", "pods[0]=x", ""])
def test_what_is_no_key_is_refused(text: str) -> None:
    found, errors = parse_overrides([text])
    assert not found and [e.code for e in errors] == ["E-SET-001"]


def test_every_bad_override_is_told() -> None:
    found, errors = parse_overrides(["a", "b={", "c=no", "d=1"])
    assert [e.code for e in errors] == ["E-SET-001", "E-SET-002", "E-SET-002"]
    assert [o.shown for o in found] == ["d"]


def test_a_key_below_a_value_is_refused() -> None:
    with pytest.raises(UsageError) as e:
        applied({"train": {"steps": 5}}, "train.steps.x=3")
    assert e.value.code == "E-SET-003" and e.value.what == "train.steps has no keys below it"


def test_origin_names_the_option() -> None:
    found, _ = parse_overrides(["train.steps=1", "pods=[a,b]", "train={lr: 1}"])
    assert origin("pods[1]", found) == "--set pods=[a,b]"
    assert origin("train.steps", found) == "--set train={lr: 1}"
    assert origin("trainer", found) is None


KEYS = st.sampled_from(
    [
        "name",
        "train",
        "train.steps",
        "train.lr",
        "pods",
        "resources.ranks",
        "env.A",
        "command",
        "kind",
        "checkpoint.every_s",
        "model.heads",
        "x",
        "train.betas",
        "halt",
        "restart.backoff_s",
        "data.path",
    ]
)
VALUES = st.text(max_size=8) | st.sampled_from(
    ["1", "-1", "0", ".nan", ".inf", "x", "[1,2]", "[a]", "{}", "{a: 1}", "", "true", '"1"', "1e999", "[[]]", "command",
     "auto", "9007199254740993"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=5))
def test_any_override_of_a_recipe_gives_a_job_or_an_orch_error(pairs: list[tuple[str, str]]) -> None:
    try:
        loaded = load_job("tiny", sets=[f"{k}={v}" for k, v in pairs], cwd=Path("/"))
    except OrchError as e:
        for error in e.errors if isinstance(e, ErrorGroup) else [e]:
            assert error.where and error.code.startswith(("E-SET-", "E-JOB-"))
            assert "Input should" not in error.render() and "pydantic" not in error.render()
    else:
        assert loaded.spec.train.steps >= 1


def test_nothing_of_a_value_is_lost_as_a_comment() -> None:
    found, errors = parse_overrides(["env.X=a #b", "env.Y=#c", 'env.Z="a #b"', "env.V=a#b"])
    assert [(o.shown, o.value) for o in found] == [("env.Z", "a #b"), ("env.V", "a#b")]
    assert [e.code for e in errors] == ["E-SET-004"] * 2 and errors[0].fix == "--set 'env.X=\"a #b\"'"


HUB = "name: x\nkind: train\ndata: {source: hub, dataset: {repo: a/b}%s}\n"


@pytest.mark.parametrize(
    ("text", "sets", "after"),
    [
        (HUB % "", (), ["synthetic"]),
        (HUB % ", fallback: [cache]", (), ["cache", "synthetic"]),
        (HUB % ", fallback: [synthetic, cache]", (), ["synthetic", "cache"]),
        (HUB % "", ("data.fallback=[cache]",), ["cache", "synthetic"]),
        ("name: x\nkind: train\n", ("data={source: jsonl, path: t.jsonl}",), ["synthetic"]),
    ],
)
def test_synthetic_on_fail_adds_to_what_the_job_allows(
    tmp_path: Path, text: str, sets: tuple[str, ...], after: list[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    before = load_job("job.yaml", sets=sets, cwd=tmp_path).spec.data
    assert load_job("job.yaml", sets=sets, cwd=tmp_path, synthetic_on_fail=True).spec.data.fallback == after
    assert before.fallback == [one for one in after if one != "synthetic" or "[synthetic" in text]


def test_synthetic_on_fail_is_blamed_where_nothing_can_stand_in(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\nkind: train\ndata: {source: stdlib}\n")
    with pytest.raises(OrchError) as e:
        load_job("job.yaml", cwd=tmp_path, synthetic_on_fail=True)
    assert "--synthetic-on-fail" in e.value.render() and "data.fallback" in e.value.render()
    (tmp_path / "job.yaml").write_text(HUB % ", fallback: cache")
    with pytest.raises(OrchError) as e:
        load_job("job.yaml", cwd=tmp_path, synthetic_on_fail=True)
    assert "job.yaml:3" in e.value.render()
