"""A hub's data set from a repository on disk and from a server that stalls, cuts, empties and refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.corpora import feeds, run, spec, write_jsonl
from tests.data.hubserver import COMMIT, OTHER, REPO, Hub, serving, write_repository
from tests.train.harness import RUN_ID, ledger, make_run, rank_env, train
from workloads.contract.beats import BeatReader
from workloads.contract.config.job import DataSpec, TrainSpec
from workloads.contract.errors import SpecError
from workloads.contract.files import read_json
from workloads.data.blocks import SourceGone
from workloads.data.feeds import open_feed
from workloads.data.stream import FeedState
from workloads.runtime.agreement import Agreement
from workloads.runtime.rankenv import RankEnv
from workloads.runtime.shards import ShardStates, read_shards
from workloads.train.pin import pinned

STEPS = 12
MANY = 400  # beyond what was read ahead


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    import huggingface_hub.constants

    with serving(repository) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def data(repo: str = REPO, config: str | None = "sample", revision: str | None = COMMIT, **more: Any) -> DataSpec:
    dataset = {"repo": repo, "config": config, "split": "train", "revision": revision}
    return spec("hub", None, dataset=dataset, read_timeout_s=1.0, **more)


@pytest.fixture(scope="module")
def whole(repository: Path) -> list[str]:
    return run(spec("parquet", repository / "sample" / "10BT"), STEPS)[0]


def test_a_repository_on_disk_gives_the_batches_of_its_files(repository: Path, whole: list[str]) -> None:
    assert run(data(str(repository)), STEPS)[0] == whole
    assert run(data(str(repository), "default"), STEPS)[0] != whole


def test_a_served_data_set_gives_the_same_and_resumes_exactly(hub: Hub, whole: list[str]) -> None:
    first, state = run(data(), 5, 2)
    assert first + run(data(), STEPS - 5, 4, state)[0] == whole
    assert not any("/data/one" in r for r in hub.requests)
    assert all(f"/resolve/{COMMIT}/" in r for r in hub.requests if "/resolve/" in r)


@pytest.mark.parametrize("fault", ["stall", "429", "500", "cut", "empty"])
def test_a_fault_that_passes_costs_a_try_and_no_document(
    hub: Hub, whole: list[str], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.faults.extend(["", "", "", fault, "", "", fault])
    assert run(data(), STEPS)[0] == whole
    told = capfd.readouterr().err
    assert "(try 1 of 3)" in told and "warning: data: hub: " in told
    assert not hub.faults


def test_a_source_that_is_gone_ends_in_bounded_time_and_says_so(hub: Hub) -> None:
    feed = feeds(data(read_tries=2))[0]
    hub.always = "stall"
    began = time.monotonic()
    with pytest.raises(SourceGone, match=r"no answer for 1 s|timed out"):  # ours and the socket's deadline are the same
        feed.batch(FeedState())
    assert time.monotonic() - began < 30


def test_fallbacks_only_as_the_job_allows_and_loud(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("a text of one's own " * 200)
    asked = data(read_tries=1, fallback=["cache", "text", "synthetic"], fallback_path=str(text))
    feed = feeds(asked)[0]
    state = feed.batch(FeedState()).state
    hub.always = "500"
    taken = 1
    while (batch := feed.batch(state)).source == "hub" and taken < MANY:
        state, taken = batch.state, taken + 1
    assert batch.source == feed.name == "text"
    told = capfd.readouterr().err
    assert "fallback cache cannot be had either" in told and "FROM NOW ON THE RUN TRAINS ON TEXT" in told
    state = feed.batch(batch.state).state  # two batches of text
    hub.always = ""  # the next attempt: the hub again, from where it was left
    again = run(asked, 5, 2, FeedState(state.samples, json_shards(state)))[0]
    unbroken = run(spec("parquet", hub.root / "sample" / "10BT"), taken + 5)[0]
    assert again == unbroken[taken:]


def through_files(folder: Path, states: list[FeedState]) -> FeedState:
    """As a checkpoint of these ranks gives them to a resume."""
    folder.mkdir()
    for rank, state in enumerate(states):
        shards = ShardStates(rank)
        shards.now = state.shards
        shards.write(folder)
    return FeedState(states[0].samples, read_shards(folder))


@pytest.mark.parametrize("begun", [True, False])
def test_a_rank_that_falls_back_leaves_what_another_reads_alone(hub: Hub, tmp_path: Path, begun: bool) -> None:
    """begun: both ranks read the hub before; else the second never did."""
    asked = data(read_tries=1, fallback=["synthetic"])
    train = TrainSpec(global_batch=16)
    joined = run(asked, 3, 2)[1] if begun else FeedState()
    reader = open_feed(asked, train, rank=0, world_size=2)
    first = reader.batch(joined)
    hub.always = "500"
    batches = [first, open_feed(asked, train, rank=1, world_size=2).batch(joined)]
    assert [b.source for b in batches] == ["hub", "synthetic"]
    hub.always = ""
    resumed = through_files(tmp_path / "resumed", [b.state for b in batches])
    assert {v: at for v, at in resumed.shards.items() if v % 2 == 0} == first.state.shards
    assert {v: at for v, at in resumed.shards.items() if v % 2} == {v: joined.shards.get(v, {}) for v in (1, 3, 5, 7)}
    again = [feed.batch(resumed) for feed in feeds(asked, 2)]
    assert [b.source for b in again] == ["hub", "hub"]
    assert np.array_equal(again[0].x_BT, reader.batch(first.state).x_BT)


def json_shards(state: FeedState) -> dict[int, Any]:
    return {int(v): at for v, at in json.loads(json.dumps(dict(state.shards))).items()}


def test_what_the_cache_holds_stands_in(hub: Hub, repository: Path, whole: list[str], tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "datasets--own--pages" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(repository)
    hub.always = "500"
    feed = feeds(data(read_tries=1, fallback=["cache"]))[0]
    batch = feed.batch(FeedState())
    assert batch.source == "cache"
    assert run(data(read_tries=1, fallback=["cache"]), STEPS)[0] == whole


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (data("own/other"), "E-DATA-010"),
        (data("not a name"), "E-DATA-010"),
        (data(config="nope"), "E-DATA-014"),
        (data(text_field="body"), "E-DATA-005"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_at_once(hub: Hub, asked: DataSpec, code: str) -> None:
    with pytest.raises(SpecError) as e:
        feeds(asked)
    assert e.value.code == code and e.value.fix
    assert len(hub.requests) < 12


def rank(tmp_path: Path, attempt: int = 1) -> RankEnv:
    run_dir = make_run(tmp_path)
    env = RankEnv.read(rank_env(run_dir, 0, 1, attempt, 1))
    assert env is not None and env.run_id == RUN_ID
    return env


def test_a_run_stays_with_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    env = rank(tmp_path)
    asked = data(revision="main")
    first = pinned(asked, env, Agreement())
    assert first.dataset is not None and first.dataset.revision == COMMIT
    hub.commit = OTHER
    assert pinned(asked, env, Agreement()) == first
    assert read_json(env.run.data_json)["commit"] == COMMIT
    assert feeds(first)[0].fingerprint != feeds(data(revision=OTHER))[0].fingerprint


def test_a_hub_that_was_never_reached(hub: Hub, tmp_path: Path) -> None:
    hub.always = "500"
    with pytest.raises(SourceGone):
        pinned(data(revision="main", read_tries=1), rank(tmp_path / "a"), Agreement())
    env = rank(tmp_path / "b")
    allowed = data(revision="main", read_tries=1, fallback=["synthetic"])
    first = pinned(allowed, env, Agreement())
    assert feeds(first)[0].batch(FeedState()).source == "synthetic"
    hub.always = ""
    assert pinned(allowed, env, Agreement()) == first
    assert feeds(first)[0].batch(FeedState()).source == "synthetic"


@pytest.mark.long
def test_a_trained_run_falls_back_and_beats_say_so(repository: Path, tmp_path: Path) -> None:
    row = json.loads(data(revision="main", read_tries=1, fallback=["synthetic"]).model_dump_json())
    with serving(repository) as server:
        run_dir = make_run(tmp_path, {"data": row, "train": {"steps": 600}})
        server.faults.extend([""] * 12)
        server.faults.extend(["500"] * 400)
        env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        assert train(run_dir, world=1, env=env) == [0]
    assert len(ledger(run_dir)) == 600
    beats = BeatReader(run_dir.heartbeat(0), 0).read()
    assert "synthetic" in {b.get("data_source") for b in beats}
    assert "FROM NOW ON THE RUN TRAINS ON SYNTHETIC" in run_dir.rank_log(0).read_text()


def test_json_lines_are_read_from_the_hub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_jsonl(tmp_path / "repository")
    assert run(data(str(root), None), STEPS)[0] == run(spec("jsonl", root), STEPS)[0]
