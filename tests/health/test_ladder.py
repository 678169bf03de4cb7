"""Rungs, episodes, hysteresis, budgets, modes, attempts; and what a job file may not ask for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from orchestrator.health.facts import Act
from orchestrator.health.ladder import NOTES_PER_HOUR
from orchestrator.health.limits import describe, settings
from orchestrator.jobs.jobfile import load_job
from tests.health.bedside import DEAD, Bedside, cleared, rungs, said, sharp, spec_of
from workloads.contract.config.health import HealthSpec, health_of
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import OrchError
from workloads.contract.health import SHARP, Mode, Rule, Rung
from workloads.contract.healthtable import TABLE

NOTE, DUMP, HALT, RESTART = Rung.NOTE, Rung.DUMP, Rung.HALT, Rung.RESTART


def hang(seconds: float, **health: Any) -> Bedside:
    bed = Bedside(spec=spec_of(**health))
    bed.run(60)
    bed.frozen = {0}
    bed.run(seconds)
    return bed


def news_of(bed: Bedside) -> list[Any]:
    return [n for _, n in bed.news]


def test_every_rung_is_taken_once_and_the_sharp_one_ten_seconds_after_the_dump() -> None:
    bed = hang(1000, rules={"no_step": {"limit": 30, "act_limit": 30}})
    at = {n.rung: t for t, n in bed.news if isinstance(n, Act) and n.finding.rule is Rule.NO_STEP}
    assert rungs(news_of(bed), Rule.NO_STEP) == [NOTE, DUMP, RESTART]
    assert 10 <= at[RESTART] - at[DUMP] <= 11 and at[NOTE] == at[DUMP]


def test_an_episode_that_was_not_noted_any_more_is_over_all_the_same() -> None:
    """Else the supervisor holds it for an open one, and the next one of its kind for told."""
    bed = hang(31)
    for _ in range(NOTES_PER_HOUR):
        bed.frozen = set()
        bed.run(20)
        bed.frozen = {0}
        bed.run(31)
    assert rungs(bed.run(200), Rule.NO_STEP) == [DUMP, RESTART], "no note is left for this one"
    bed.frozen = set()
    assert Rule.NO_STEP in cleared(bed.run(20))


def test_a_run_that_is_observed_is_dumped_and_not_ended() -> None:
    bed = hang(1000, mode="observe")
    assert rungs(news_of(bed), Rule.NO_STEP) == [NOTE, DUMP] and not sharp(news_of(bed))
    told = [n for n in news_of(bed) if n.suppressed]
    assert [(n.finding.rule, n.rung) for n in told] == [(Rule.NO_STEP, RESTART)]


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_one_rule_may_be_milder_than_the_rest(mode: str) -> None:
    bed = hang(1000, rules={"no_step": {"mode": mode}})
    assert not sharp(news_of(bed))
    assert rungs(news_of(bed), Rule.NO_STEP) == ([NOTE, DUMP] if mode == "observe" else [])


def test_a_rule_is_not_sharper_than_the_whole() -> None:
    assert settings(spec_of(mode="observe", rules={"nan": {"mode": "act"}}))[Rule.NAN].mode is Mode.OBSERVE
    assert news_of(hang(4000, mode="off")) == []


def test_a_spent_budget_of_dumps_is_said_and_what_ends_a_run_is_dumped_all_the_same() -> None:
    bed = hang(100, dumps_per_hour=0)
    suppressed = [n.rung for n in news_of(bed) if n.suppressed]
    assert suppressed == [DUMP] and rungs(news_of(bed), Rule.NO_STEP) == [NOTE]
    bed.run(100)
    assert rungs(news_of(bed), Rule.NO_STEP) == [NOTE, DUMP, RESTART]


def test_dumps_of_an_hour_are_counted_over_attempts() -> None:
    bed = Bedside()
    made = 0
    for _ in range(12):
        bed.frozen = set()
        bed.run(150)
        bed.frozen = {0}
        bed.run(35)
        bed.attempt += 1
    made = rungs(news_of(bed), Rule.NO_STEP).count(DUMP)
    assert made == 6


def test_two_findings_at_once_share_a_dump_and_one_of_them_ends_the_run() -> None:
    bed = Bedside(ranks=2)
    bed.run(60)
    bed.process, bed.frozen, bed.mute = {1: DEAD}, {0, 1}, {1}
    news = bed.run(900)
    assert sum(rungs(news, rule).count(DUMP) for rule in Rule) == 1
    assert [a.finding.rule for a in sharp(news)] == [Rule.GONE]


def test_a_sharper_rung_follows_when_the_first_ended_nothing() -> None:
    bed = hang(400, rules={"no_step": {"ladder": ["dump", "halt", "kill"]}})
    assert rungs(news_of(bed), Rule.NO_STEP) == [NOTE, DUMP, HALT, Rung.KILL]


def test_a_rank_that_went_on_in_time_is_ended_when_it_hangs_again() -> None:
    """The end of a run waits for the dump; a step that comes meanwhile takes it back."""
    bed = hang(200)
    assert rungs(news_of(bed), Rule.NO_STEP) == [NOTE, DUMP, RESTART]
    bed.frozen = set()
    assert cleared(bed.run(600)) == [Rule.NO_STEP]
    bed.frozen = {0}
    assert rungs(bed.run(1000), Rule.NO_STEP) == [NOTE, DUMP, RESTART]


def test_what_was_left_to_an_end_that_did_not_come_is_done_by_the_next() -> None:
    bed = Bedside(ranks=2, spec=spec_of(rules={"behind": {"limit": 180, "ladder": ["dump", "restart"]}}))
    bed.run(60)
    bed.frozen = {0}
    assert [a.finding.rule for a in sharp(bed.run(230))] == [Rule.NO_STEP]
    assert rungs(news_of(bed), Rule.BEHIND) == [NOTE, DUMP]
    bed.frozen = set()
    assert [a.finding.rule for a in sharp(bed.run(60))] == [Rule.BEHIND]


def test_a_rule_that_comes_and_goes_is_told_twenty_times_an_hour() -> None:
    bed = Bedside()
    bed.run(10)
    for _ in range(60):
        bed.tell(grad_norm=0.0)
        bed.run(9)
    assert len(rungs(news_of(bed), Rule.GRAD_ZERO)) == NOTES_PER_HOUR + 6  # and six dumps
    assert cleared(news_of(bed)).count(Rule.GRAD_ZERO) == NOTES_PER_HOUR


def test_a_new_attempt_forgets_ages_and_episodes() -> None:
    bed = hang(100)
    bed.attempt, bed.frozen = 2, set()
    assert bed.run(300) == []


def test_the_ages_of_an_attempt_begin_with_it() -> None:
    bed = hang(179)
    bed.attempt += 1
    assert not sharp(bed.run(20))


# the job file


def test_the_table_has_every_rule_and_nothing_is_ended_without_a_dump() -> None:
    assert set(TABLE) == set(Rule)
    for rule, default in TABLE.items():
        ladder = list(default.ladder)
        order = [list(Rung).index(r) for r in ladder]
        assert order == sorted(set(order)) and ladder[0] is NOTE, rule
        assert not default.sharp or DUMP in ladder, rule
        assert default.act_limit is None or (default.limit is not None and default.act_limit >= default.limit), rule


def test_the_limits_that_contracts_names() -> None:
    own = settings(HealthSpec())
    assert (own[Rule.NO_STEP].limit, own[Rule.NO_STEP].act_limit) == (30, 180)
    assert dict(own[Rule.PHASE_OVER].phases) == {
        "starting": 300, "loading": 600, "compiling": 1200, "evaluating": 1200, "checkpointing": 600,
    }  # fmt: skip
    assert own[Rule.ZERO_THROUGHPUT].in_a_row == 4 and own[Rule.GATE_COLLAPSE].in_a_row == 3
    guard = HealthSpec().guard
    assert (guard.gpu_limit_fraction, guard.over_secs, guard.poll_secs) == (0.9, 0, 0.5)


def test_what_a_job_says_is_kept_and_comes_back_from_run_json() -> None:
    health = {
        "mode": "observe",
        "rules": {"no_step": {"limit": 60, "ladder": ["dump", "restart"]}, "phase_over": {"limits": {"loading": 9}}},
        "guard": {"gpu_limit_gb": 70},
    }
    job = JobSpec.model_validate_json(json.dumps({"name": "x", "health": health}))
    row = json.loads(job.model_dump_json())
    assert row["health"]["rules"] == {
        "no_step": {"limit": 60.0, "ladder": ["dump", "restart"]},
        "phase_over": {"limits": {"loading": 9.0}, "act_factor": 2.0},
    }
    assert health_of(row) == job.health and job.health.guard.mode is Mode.ACT
    assert health_of({}) == HealthSpec() and HealthSpec().guard.mode is Mode.OBSERVE
    assert settings(job.health)[Rule.NO_STEP].ladder == (NOTE, DUMP, RESTART)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("no_stp: {limit: 3}", "did you mean: health.rules.no_step"),
        ("no_step: {ladder: [restart, dump]}", "must go from mild to sharp"),
        ("no_step: {ladder: [dump, dump]}", "each at most once"),
        ("nan: {ladder: [note, halt]}", "needs `dump` before `halt`"),
        ("pod_silent: {ladder: [note, dump, restart]}", "a pod that does not answer is not a run that is dead"),
        ("gpu_memory: {ladder: [note, dump, kill]}", "health.guard says what ends a run"),
        ("no_step: {limit: .nan}", "a finite number"),
        ("no_step: {limit: -1}", "at least 0"),
        ("no_step: {limit: 100, act_limit: 50}", "must be at least its limit, 100 s"),
        ("nan: {limit: 3}", "this rule has no limit"),
        ("stopped: {act_limit: 30}", "this rule is acted upon where it is crossed"),
        ("stopped: {in_a_row: 3}", "this rule does not count beats"),
        ("slow: {limit: 1.5}", "above 0 and at most 1"),
        ("nan: {mode: sometimes}", "health.rules.nan.mode"),
        ("phase_over: {limits: {sleeping: 3}}", "knows no phase sleeping"),
        ("phase_over: {act_factor: 0.5}", "at least 1"),
    ],
)
def test_a_mistake_is_refused_with_its_place(tmp_path: Any, rules: str, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"name: x\nhealth:\n  rules:\n    {rules}\n")
    with pytest.raises(OrchError) as caught:
        load_job(str(path), cwd=tmp_path)
    text = caught.value.render()
    assert words in text and "job.yaml:" in text and text.startswith("error[E-JOB-"), text


def test_every_rule_can_be_printed() -> None:
    rows = describe(spec_of(rules={"nan": {"in_a_row": 5}}))
    assert len(rows) == len(Rule) and ("nan", "5") in [(r[0], r[4]) for r in rows]
    assert all(len(row) == 7 and all(row) for row in rows)


def test_figures_of_a_finding_can_be_written_as_json() -> None:
    bed = Bedside()
    bed.run(60)
    news = bed.tell(times=15, loss=math.nan)
    assert said(news)[Rule.NAN] == [NOTE, DUMP, HALT] and SHARP & set(rungs(news, Rule.NAN))
    for n in news:
        json.dumps([n.finding.value, n.finding.limit, n.finding.since_s], allow_nan=False)
