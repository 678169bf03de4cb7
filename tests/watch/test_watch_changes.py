"""What is told between two looks, and when a run is resumed: pure, on runs in memory."""

from __future__ import annotations

import dataclasses
import json

from orchestrator.runs.watch import changes, glance
from orchestrator.runs.watchresume import MAX_IN_A_ROW, NO, WHO, plan
from tests.cli import whyscenes
from tests.cli.whyscenes import RUN, Scene, T


def kinds(found):
    return [c.kind for c in found]


def look(facts, before=None, *, rested=False, here=T + 1000):
    now = glance(facts.view, facts.events, "box", here, before, rested=rested)
    return now, changes(before, now, facts.view, facts.events, here)


def test_the_first_look_says_how_it_stands_and_the_next_nothing():
    facts = whyscenes.well().facts()
    now, told = look(facts)
    assert [c.text for c in told] == ["running, step 412/1000, loss 3.176"]
    assert look(facts, now)[1] == []
    json.dumps(told[0].as_json(), allow_nan=False)


def test_what_is_wrong_already_is_told_at_the_first_look():
    _, told = look(whyscenes.sick_hang().facts())
    assert kinds(told) == ["first", "health"] and told[1].text.startswith("no_step [dump]: rank 0 has made no new step")
    assert kinds(look(whyscenes.sick_unsupervised().facts())[1]) == ["first", "alone"]
    _, told = look(whyscenes.sick_full_disk().facts())
    assert told[1].kind == "note" and told[1].text.startswith("the run directory takes no writes: No space left")
    _, told = look(whyscenes._seen(whyscenes.sick_hang(), False).facts())
    assert [c.text for c in told] == ["pod box cannot be reached; when last seen: running, step 412/1000, loss 3.176"]


def test_new_events_are_told_once_in_order():
    calm = whyscenes._started(Scene("running", "x", world=8))
    before, _ = look(calm.facts(), rested=True)
    now, told = look(whyscenes.sick_hang().facts(), before)
    assert kinds(told) == ["health", "dump"]
    assert told[0].text == "no_step [note, dump]: rank 0 has made no new step for 30 s (limit 30 s)"
    assert "lines" not in told[0].data and told[0].data["rule"] == "no_step"
    assert look(whyscenes.sick_hang().facts(), now)[1] == []


def test_a_state_without_its_event_is_told_all_the_same():
    before, _ = look(whyscenes.well().facts())
    facts = whyscenes.well().facts()
    view = dataclasses.replace(facts.view, status=dataclasses.replace(facts.view.status, state="failed", reason="boom"))
    _, told = look(dataclasses.replace(facts, view=view), before)
    assert [(c.kind, c.text) for c in told] == [("state", "running -> failed: boom")]


def test_a_pod_that_is_lost_is_told_as_that_and_nothing_else():
    before, _ = look(whyscenes._seen(whyscenes.well(), True).facts())
    lost = whyscenes._seen(whyscenes.sick_hang(), False)  # whatever the copy says: it is old
    now, told = look(lost.facts(), before, here=T + 1300)
    assert kinds(told) == ["unreachable"] and "cannot be reached since" in told[0].text
    assert "goes on there" in told[0].text and not any(w in told[0].text for w in ("dead", "died"))
    assert look(lost.facts(), now, here=T + 1400)[1] == []
    _, told = look(whyscenes._seen(whyscenes.well(), True).facts(), now, here=T + 1600)
    assert kinds(told) == ["back"] and "after 10 min 00 s: running, step 412/1000" in told[0].text


def test_nobody_looking_after_it_is_told_and_its_end_too():
    before, _ = look(whyscenes.well().facts())
    now, told = look(whyscenes.sick_unsupervised().facts(), before)
    assert kinds(told) == ["alone"] and "nobody has looked after it for 1 min 40 s" in told[0].text
    assert kinds(look(whyscenes.well().facts(), now)[1]) == ["supervised"]


def silent():
    s = whyscenes.well()
    s.beats = {k: [b for b in beats if b.ts < T + 980] for k, beats in s.beats.items()}
    s.now = T + 1700
    return s.facts()


def test_a_silent_rank_is_told_but_not_after_a_sleep():
    before, _ = look(whyscenes.well().facts())
    now, told = look(silent(), before, rested=True)
    assert told == [] and now.ill == {}
    _, told = look(silent(), now)
    assert kinds(told) == ["rank", "rank"] and "no heartbeat for" in told[0].text


def decide(scene, **more):
    facts = scene.facts() if isinstance(scene, Scene) else scene
    return plan(facts.view, facts.events, **{"person": False, "anomaly": False, **more})


def late(scene):
    """The same run, looked at an hour later."""
    scene.now = T + 4600
    return scene


def test_what_a_watchdog_halted_goes_on():
    found = decide(late(whyscenes.halted_by_watchdog()))
    assert found.resume and found.why == "it was halted by a watchdog (resume 1 of 3 without a new step)"


def test_what_a_person_halted_never_does():
    assert decide(late(whyscenes.halted_by_person())) == NO
    assert not decide(late(whyscenes.halted_by_watchdog()), person=True).resume


def by_file():
    s = late(whyscenes.halted_by_person())
    s.events = [e for e in s.events if e.what != "halt"]
    s.event(898, "halt", "halted by a file: stall", who="a file")
    return s


def test_a_file_counts_as_a_watchdogs_only_beside_its_anomaly():
    assert decide(by_file()) == NO
    assert decide(by_file(), anomaly=True).resume


def test_a_signal_does_and_the_programs_own_error_does_not():
    assert decide(late(whyscenes.failed_oom())).why.startswith("rank 1 was killed by signal 9 (out of memory)")
    assert decide(late(whyscenes.failed_refused())) == NO
    assert decide(late(whyscenes.failed_after_hang())) == NO  # the watchdog gave it up
    assert decide(late(whyscenes.succeeded())) == NO and decide(late(whyscenes.well())) == NO


def test_never_because_a_pod_is_lost():
    for reachable in (False, None):
        assert decide(whyscenes._seen(late(whyscenes.failed_oom()), reachable)) == NO
    assert decide(whyscenes._seen(late(whyscenes.failed_oom()), True)).resume


def test_it_waits_a_little_first():
    s = whyscenes.failed_oom()
    s.now = T + 2.0  # `since` of these statuses is T
    assert decide(s) == dataclasses.replace(NO, wait_s=3.0)


def resumed(times, *, gained, who=WHO):
    s = late(whyscenes.failed_oom())
    s.events, s.attempt = [], times + 1
    for n in range(1, times + 2):
        step = 412 + n * 5 * gained
        s.event(n * 100.0, "state", f"attempt {n}", to="starting", attempt=n, base_step=step - 5 * gained)
        s.event(n * 100.0 + 20, "rank-exit", "rank 1 was killed by signal 9 (SIGKILL)", attempt=n, rank=1, signal=9)
        s.event(n * 100.0 + 21, "state", "boom", frm="running", to="failed", attempt=n)
        if n <= times:
            s.event(n * 100.0 + 30, "state", "resumed", to="resuming", attempt=n, request="r", who=who)
    for k in s.beats:
        s.beats[k] = []
    s.steps(0, 1, 412 + (times + 1) * 5 * gained, 900.0)
    return s


def test_the_budget_lies_in_the_events():
    assert decide(resumed(MAX_IN_A_ROW - 1, gained=False)).resume
    spent = decide(resumed(MAX_IN_A_ROW, gained=False))
    assert not spent.resume and spent.why == "not resumed: 3 resumes brought no new step (limit 3)"
    assert decide(resumed(MAX_IN_A_ROW, gained=True)).resume
    assert decide(resumed(MAX_IN_A_ROW, gained=False, who="ann@laptop")).resume  # a person's are not the watch's
    many = decide(resumed(12, gained=True))
    assert not many.resume and "12 times in 24 h" in many.why
    assert RUN not in many.why
