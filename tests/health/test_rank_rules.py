"""Every rule about a rank: crossed, just not crossed, cleared, told with its figures. Simulated time."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.health.facts import PodFacts, ProcessState, RankFacts
from orchestrator.health.monitor import Monitor
from tests.health.bedside import DEAD, RUNNING, Bedside, D, T, cleared, rungs, said, sharp, spec_of, why
from workloads.contract.beats import Beat
from workloads.contract.health import Rule, Rung
from workloads.contract.states import Phase

NOTE, DUMP, HALT, RESTART = Rung.NOTE, Rung.DUMP, Rung.HALT, Rung.RESTART


def trained(**kwargs: Any) -> Bedside:
    """A gang that has trained for a minute and of which nothing is wrong."""
    bed = Bedside(**kwargs)
    assert bed.run(max(60.0, 12 * bed.step_s)) == []
    return bed


# no_step


@pytest.mark.parametrize(("step_s", "verdict_s", "act_s"), [(1.2, 30, 180), (10, 50, 200), (60, 180, 1200)])
def test_a_hang_is_told_at_5_steps_and_ended_at_20(step_s: float, verdict_s: float, act_s: float) -> None:
    bed = trained(ranks=2, step_s=step_s)
    bed.frozen = {0, 1}
    began = bed.stepped
    assert rungs(bed.run(began + verdict_s - 1.5 - bed.now), Rule.NO_STEP) == []
    assert rungs(bed.run(4), Rule.NO_STEP) == [NOTE, DUMP]
    assert sharp(bed.run(began + act_s - 1.5 - bed.now)) == []
    assert rungs(bed.run(4), Rule.NO_STEP) == [RESTART]


def test_a_hang_says_which_rank_for_how_long_and_at_which_step() -> None:
    bed = trained(ranks=8, step_s=1.2)
    bed.frozen, last = {3}, 1 + int(bed.steps[0])
    bed.run(1.3)
    bed.frozen = set(range(8))
    text = why(bed.run(60), Rule.NO_STEP)
    assert text.startswith("rank 3 has made no step for 30 s (limit 30 s: its median step is 1.2 s); its last step is")
    told = int(text.split("its last step is ")[1].split(",")[0])
    assert told == last - 1, "the rank that is a step behind leads"


def test_one_event_for_a_gang_that_hangs_and_the_others_are_named() -> None:
    bed = trained(ranks=8)
    bed.frozen = set(range(8))
    news = bed.run(400)
    assert said(news)[Rule.NO_STEP] == [NOTE, DUMP, RESTART]
    assert "the same is true of ranks 1-7" in why(news, Rule.NO_STEP, RESTART)


def test_a_step_ends_the_episode_and_the_next_hang_is_one_of_its_own() -> None:
    bed = trained()
    bed.frozen = {0}
    assert rungs(bed.run(40), Rule.NO_STEP) == [NOTE, DUMP]
    bed.frozen = set()
    assert cleared(bed.run(10)) == [Rule.NO_STEP]
    bed.run(120)
    bed.frozen = {0}
    assert rungs(bed.run(40), Rule.NO_STEP) == [NOTE, DUMP]


def test_keepalive_proves_life_and_not_progress() -> None:
    bed = trained()
    bed.frozen = {0}  # beats every 30 s with the same step
    news = bed.run(300)
    assert rungs(news, Rule.NO_STEP) == [NOTE, DUMP, RESTART] and rungs(news, Rule.NO_BEAT) == []


@pytest.mark.parametrize("phase", [Phase.CHECKPOINTING, Phase.EVALUATING, Phase.COMPILING, Phase.LOADING])
def test_a_rank_that_saves_evaluates_or_compiles_keeps_the_others_waiting(phase: Phase) -> None:
    bed = trained(ranks=4)
    bed.phases, bed.frozen = {0: phase}, {1, 2, 3}  # they wait in a barrier and say `progress`
    assert bed.run(590) == []
    bed.phases, bed.frozen = {}, set()
    assert bed.run(60) == []


def test_a_first_step_may_compile() -> None:
    bed = Bedside(step_s=1000.0, phase=Phase.LOADING)
    bed.run(20)
    bed.phase, bed.frozen = Phase.PROGRESS, {0}  # it told a step and no step time
    news = bed.run(1100)
    assert rungs(news, Rule.NO_STEP) == [NOTE, DUMP] and "no step time is known" in why(news, Rule.NO_STEP)
    assert sharp(bed.run(130))


def test_who_comes_later_and_has_never_read_a_step_time_waits_for_the_slowest_step() -> None:
    bed = Bedside(step_s=1000.0)
    bed.frozen = {0}
    assert sharp(bed.run(2300)) == []
    assert rungs(bed.run(200), Rule.NO_STEP) == [RESTART]


def test_a_step_that_was_made_before_the_first_look_measures_nothing() -> None:
    bed = Bedside()
    for step in (6, 7):  # the line of the sixth is old; the next comes a moment after it was read
        bed.now += 1.0
        beat = Beat(step, bed.wall, Phase.PROGRESS, 0, 1, 1, {"step": step})
        bed.look([RankFacts(0, "p", RUNNING, (beat,))])
    assert bed.monitor.tracks[0].step_s is None


def test_a_step_time_that_is_not_reported_is_measured() -> None:
    bed = Bedside(step_s=40.0)
    bed.figures = {"step_time_s": math.nan}
    bed.run(600)
    assert bed.monitor.tracks[0].step_s == pytest.approx(40.0, abs=1.0)


def test_a_job_moves_the_limits() -> None:
    bed = trained(spec=spec_of(rules={"no_step": {"limit": 60, "act_limit": 90}}))
    bed.frozen = {0}
    assert bed.run(55) == []
    assert rungs(bed.run(10), Rule.NO_STEP) == [NOTE, DUMP]
    assert rungs(bed.run(30), Rule.NO_STEP) == [RESTART]


# no_beat, and what could not be seen


def test_silence_is_told_at_90_s_and_ended_at_180() -> None:
    bed = trained(ranks=2)
    bed.mute = {1}
    news = bed.run(85)
    assert rungs(news, Rule.NO_BEAT) == []
    assert rungs(bed.run(7), Rule.NO_BEAT) == [NOTE]  # the dump for the missing step is 60 s old
    assert "rank 1 has told nothing for 90 s (limit 90 s)" in why([n for _, n in bed.news], Rule.NO_BEAT)
    assert len(sharp(bed.run(100))) == 1


@pytest.mark.parametrize("pod", [None, PodFacts("p"), PodFacts("p", writable=True, age_s=300.0)])
def test_nothing_is_ended_where_it_is_not_known_that_a_beat_could_come(pod: PodFacts | None) -> None:
    bed = trained()
    bed.pod, bed.mute = pod, {0}
    news = bed.run(1000)
    assert DUMP in rungs(news, Rule.NO_STEP) and not sharp(news)
    bed.pod = PodFacts("p", writable=True)
    assert sharp(bed.run(15))


def test_a_beat_of_another_rank_proves_that_the_directory_takes_lines() -> None:
    bed = trained(ranks=2)
    bed.pod, bed.mute = None, {1}
    assert sharp(bed.run(240))


def test_time_in_which_the_directory_takes_no_line_does_not_count() -> None:
    bed = trained()
    assert bed.pod is not None
    bed.pod, bed.mute = replace(bed.pod, writable=False), {0}
    assert set(said(bed.run(4000))) == {Rule.DISK_LOW}
    bed.pod = replace(bed.pod, writable=True)
    assert not rungs(bed.run(25), Rule.NO_STEP)
    assert rungs(bed.run(10), Rule.NO_STEP) == [NOTE, DUMP]


def test_time_in_which_nobody_could_ask_does_not_count() -> None:
    bed = trained()
    bed.mute, bed.process = {0}, {0: ProcessState.UNKNOWN}
    assert bed.run(4000) == []


def test_a_gap_of_the_observer_is_not_silence_of_a_rank() -> None:
    bed = trained(ranks=2)
    for _ in range(20):
        bed.sleep(3600.0)
        assert bed.run(2.0) == []


def test_a_command_that_never_beat_is_not_missed_and_one_of_ours_is() -> None:
    ours, theirs = Bedside(mute={0}), Bedside(mute={0}, beats_expected=False)
    for bed in (ours, theirs):
        bed.process = {0: ProcessState.ABSENT}
        bed.run(5)
        bed.process = {}
    assert theirs.run(3000, look_s=2.0) == []
    news = ours.run(700)
    assert rungs(news, Rule.PHASE_OVER) == [NOTE, DUMP, RESTART]
    text = why(news, Rule.PHASE_OVER)
    assert "rank 0 has been starting for 300 s (limit 300 s) and has not told anything yet" in text


def test_a_program_that_tells_a_line_an_epoch_is_not_ended_before_its_pace_is_known() -> None:
    """A script with heartbeats of its own: the first at step 0, the next ones half an hour apart."""
    bed = Bedside(step_s=1800.0, beats_expected=False, figures={"step_time_s": None})
    news = bed.run(3 * 3600, look_s=2.0)
    assert not sharp(news)
    assert "how long a step of this program takes is not known yet" in why(news, Rule.NO_STEP)
    trained = Bedside(beats_expected=False)
    trained.run(60)
    trained.frozen = {0}
    assert sharp(trained.run(200)), "one whose steps are known is ended as any other"


def test_a_cell_that_compiles_for_minutes_behind_quick_ones_is_not_ended() -> None:
    """parity, bench, decode: what is judged next may need kernels that nobody has compiled."""
    bed = trained(step_s=2.0, any_step_compiles=True)
    bed.frozen = {0}
    assert not sharp(bed.run(1190))
    assert "any step of it may compile first" in why([n for _, n in bed.news], Rule.NO_STEP)
    assert [a.finding.rule for a in sharp(bed.run(60))] == [Rule.NO_STEP], "a hang is ended all the same"
    mute = trained(step_s=2.0, any_step_compiles=True)
    mute.mute = {0}  # the compiler holds its interpreter
    assert not sharp(mute.run(1190))


def test_while_a_debugger_holds_a_rank_nobody_is_ended_and_then_ages_begin_anew() -> None:
    bed = trained(ranks=2)
    bed.frozen, bed.process = {0, 1}, {1: ProcessState.TRACED}
    news = bed.run(3600, look_s=1.0)
    assert said(news) == {Rule.STOPPED: [NOTE]}
    assert "rank 1 has been stopped (state t: by a debugger" in why(news, Rule.STOPPED)
    bed.process = {}
    assert not sharp(bed.run(170))
    assert sharp(bed.run(30)), "one that was left hanging"


def test_an_observer_that_comes_late_does_not_take_a_silent_rank_for_a_starting_one() -> None:
    """It may compile, with the interpreter held; its beats were read by the observer before."""
    bed = Bedside(mute={0})
    assert not sharp(bed.run(2390, look_s=2.0))
    assert sharp(bed.run(30))


def test_beats_of_before_a_full_disk_do_not_say_what_a_rank_does_now() -> None:
    """An observer that comes after it reads the old beats; the one that told of a phase may have been lost."""
    for lost in (False, True):
        bed = trained()
        bed.monitor = Monitor(bed.spec, 1, beats_expected=True, lines_lost=lost)
        bed.run(1.0, look_s=1.0)
        assert bed.monitor.tracks[0].spoke, "its past was read"
        bed.mute = {0}
        assert bool(sharp(bed.run(300))) is not lost


# phases


@pytest.mark.parametrize(
    ("phase", "limit"),
    [(Phase.STARTING, 300), (Phase.LOADING, 600), (Phase.COMPILING, 1200), (Phase.EVALUATING, 1200),
     (Phase.CHECKPOINTING, 600)],
)  # fmt: skip
def test_a_phase_has_a_limit_and_twice_that_before_it_is_ended(phase: Phase, limit: float) -> None:
    bed = Bedside(phase=phase)
    assert bed.run(limit - 2) == []
    assert rungs(bed.run(4), Rule.PHASE_OVER) == [NOTE, DUMP]
    assert sharp(bed.run(limit - 6)) == []
    assert rungs(bed.run(8), Rule.PHASE_OVER) == [RESTART]
    assert f"rank 0 has been {phase} for {limit} s (limit {limit} s)" in why([n for _, n in bed.news], Rule.PHASE_OVER)


def test_the_next_phase_begins_a_clock_of_its_own() -> None:
    bed = Bedside(phase=Phase.LOADING)
    bed.run(550)
    bed.phase = Phase.COMPILING
    assert bed.run(1100) == []


# figures


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_three_bad_losses_in_a_row_halt(value: float) -> None:
    bed = trained()
    assert bed.tell(times=2, loss=value) == []
    bed.tell(times=1)
    assert bed.tell(times=2, loss=value) == []
    news = bed.tell(times=14, loss=value)
    assert rungs(news, Rule.NAN) == [NOTE, DUMP, HALT]
    assert "rank 0 told loss" in why(news, Rule.NAN) and "3 beats in a row (limit 3)" in why(news, Rule.NAN)


def test_the_sentence_of_a_nan_names_the_step_it_began_with() -> None:
    bed = trained()
    assert bed.tell(times=1, loss=math.nan) == []  # and then a good one: that was another
    bed.tell(times=1, loss=1.0)
    news = bed.tell(times=3, loss=math.nan, grad_norm=1.0)
    told = re.search(r"told loss nan from step (\d+) to (\d+), 3 beats", why(news, Rule.NAN))
    assert told is not None and int(told[2]) - int(told[1]) == 2  # a step and a beat a second


def test_a_nan_that_goes_away_within_the_dump_halts_nothing() -> None:
    bed = trained()
    assert rungs(bed.tell(times=5, loss=math.nan), Rule.NAN) == [NOTE, DUMP]
    assert sharp(bed.run(60)) == [] and cleared([n for _, n in bed.news]) == [Rule.NAN]


def test_a_loss_scaler_looking_for_its_scale_is_not_ended() -> None:
    bed = trained()
    news = bed.tell(times=8, grad_norm=math.inf)
    assert rungs(news, Rule.NAN) == [NOTE, DUMP] and not sharp(news + bed.run(30))
    assert sharp(bed.tell(times=30, grad_norm=math.nan))


def test_a_spike_is_told_and_noise_is_not() -> None:
    bed = trained()
    for i in range(200):
        assert bed.tell(loss=2.0 + 0.1 * math.sin(7 * i)) == []
    assert bed.tell(times=2, loss=20.0) == []
    news = bed.tell(times=2, loss=20.0)
    assert said(news) == {Rule.LOSS_SPIKE: [NOTE]} and "rank 0 told loss 20 at step" in why(news, Rule.LOSS_SPIKE)


def test_a_run_far_below_its_own_past_is_told_after_minutes() -> None:
    bed = trained()
    bed.run(200)
    bed.figures = {"toks_per_s": 800.0}
    assert bed.run(400) == []
    bed.figures = {"toks_per_s": 500.0}
    assert bed.run(90) == []
    news = bed.run(90)
    assert said(news) == {Rule.SLOW: [NOTE]} and "of its own median tokens/s for 120 s (limit 70% for 120 s)" in why(
        news, Rule.SLOW
    )
    bed.figures = {}
    assert cleared(bed.run(180)) == [Rule.SLOW]


def test_no_tokens_four_times() -> None:
    bed = trained()
    assert bed.tell(times=3, toks_per_s=0.0) == []
    bed.run(1)
    news = bed.tell(times=4, toks_per_s=0.0)
    assert said(news) == {Rule.ZERO_THROUGHPUT: [NOTE, DUMP]}
    assert "toks_per_s <= 0 4 times in a row (limit 4)" in why(news, Rule.ZERO_THROUGHPUT)


def test_waiting_for_data() -> None:
    bed = trained()
    assert bed.tell(times=40, dt_fetch_s=0.4) == []
    news = bed.tell(times=40, dt_fetch_s=0.8)
    assert said(news) == {Rule.DATA_STALL: [NOTE]} and "waits for data" in why(news, Rule.DATA_STALL)
    assert cleared(bed.tell(times=90, dt_fetch_s=0.1)) == [Rule.DATA_STALL]


def test_a_share_of_a_step_nobody_waits_for_is_not_told() -> None:
    bed = Bedside(step_s=1.0)
    bed.figures = {"step_time_s": 0.02, "dt_fetch_s": 0.018}
    assert bed.run(100) == []


@pytest.mark.parametrize(
    "figures", [{"gate_entropy_mean": 0.19}, {"gate_max_gate": 0.91}, {"gate_collapse_frac": 0.51}]
)
def test_gates_collapse_after_three_beats(figures: dict[str, float]) -> None:
    good = {"gate_entropy_mean": 0.21, "gate_max_gate": 0.89, "gate_collapse_frac": 0.49}
    bed = trained()
    assert bed.tell(times=10, **good) == [] and bed.tell(times=2, **{**good, **figures}) == []
    assert bed.tell(times=1, **good) == []
    news = bed.tell(times=3, **{**good, **figures})
    assert said(news) == {Rule.GATE_COLLAPSE: [NOTE, DUMP]}
    assert "3 beats in a row (limit 3)" in why(news, Rule.GATE_COLLAPSE)


def test_a_gradient_of_nothing() -> None:
    bed = trained()
    assert bed.tell(grad_norm=1e-12) == []
    news = bed.tell(grad_norm=0.0)
    assert said(news) == {Rule.GRAD_ZERO: [NOTE, DUMP]} and "grad_norm 0 at step" in why(news, Rule.GRAD_ZERO)


def test_a_rank_that_the_others_leave_behind() -> None:
    bed = trained(ranks=3)
    bed.frozen = {2}
    assert rungs(bed.run(58), Rule.BEHIND) == []
    assert rungs(bed.run(35), Rule.BEHIND) == [NOTE]  # its last step is told 30 s late; the dump is no_step's
    text = why([n for _, n in bed.news], Rule.BEHIND)
    assert text.startswith("rank 2 is at step 60; others were at step 8") and "60 s ago (limit 60 s)" in text


def test_beats_that_come_at_other_times_are_not_behind() -> None:
    bed = trained(ranks=4, step_s=0.01)
    bed.steps[2] -= 90  # its beats are of another moment: 0.9 s at this pace
    assert bed.run(200) == []


# processes


def test_a_process_without_a_record_is_told_at_once_and_restarted_after_a_minute() -> None:
    bed = trained(ranks=2)
    bed.process = {1: DEAD}
    assert rungs(bed.run(1.5), Rule.GONE) == []
    news = bed.run(2)
    assert rungs(news, Rule.GONE) == [NOTE, DUMP]
    assert "the process of rank 1 has been gone for 2.0 s and no record says" in why(news, Rule.GONE)
    assert [a.finding.rule for a in sharp(bed.run(60))] == [Rule.GONE]


@pytest.mark.parametrize(("state", "rule", "limit"), [(T, Rule.STOPPED, 10.0), (D, Rule.STUCK, 30.0)])
def test_a_state_that_lasts(state: ProcessState, rule: Rule, limit: float) -> None:
    bed = trained(ranks=2)
    bed.process, bed.frozen = {0: state}, {0}
    assert bed.run(limit - 2) == []
    news = bed.run(7)
    assert NOTE in rungs(news, rule) and f"limit {limit:.0f} s" in why(news, rule) and "rank 0" in why(news, rule)
    bed.process, bed.frozen = {}, set()
    assert rule in cleared(bed.run(8))


def test_a_rank_that_reads_from_disk_while_it_trains_is_not_stuck() -> None:
    bed = trained()
    bed.process = {0: D}
    assert bed.run(300) == []


def test_a_state_that_cannot_be_seen_neither_begins_nor_ends() -> None:
    bed = trained()
    bed.process, bed.frozen = {0: T}, {0}
    assert rungs(bed.run(12), Rule.STOPPED) == [NOTE, DUMP]
    bed.process = {0: ProcessState.UNKNOWN}
    assert bed.run(100) == []
