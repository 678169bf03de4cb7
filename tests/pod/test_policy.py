"""The keeper's decisions, as data: no process, no clock."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pods.keeper import policy
from pods.keeper.policy import EndKeeper, LastWord, RaySeen, RunSeen, StopRay, Submit, WantRay, decide

UP = RaySeen("up", "c1", "g2")
DOWN = RaySeen("down", None, "")
NEW = RunSeen("a-20261121T000000Z-0001", "c1", True, False, 0.0)


def test_a_new_run_wants_ray_and_then_a_submission() -> None:
    assert decide([NEW], DOWN, 0) == [WantRay("c1")]
    assert decide([NEW], UP, 0) == [WantRay("c1"), Submit(NEW.run_id, "first submission")]


def test_a_supervised_run_is_left_alone_but_keeps_ray_up() -> None:
    assert decide([replace(NEW, supervised=True, submitted_to="g2")], UP, 0) == [WantRay("c1")]


def test_ray_restarts_a_killed_actor_so_a_lock_free_for_2_s_is_left_alone() -> None:
    run = replace(NEW, submitted_to="g2", lock_free_s=2.0, submitted_age_s=500.0, job_status="SUCCEEDED")
    assert decide([run], UP, 0) == [WantRay("c1")]


def test_a_lost_supervisor_is_submitted_again_after_10_s() -> None:
    run = replace(NEW, submitted_to="g2", lock_free_s=11.0, submitted_age_s=500.0, job_status="SUCCEEDED")
    assert Submit(run.run_id, "no supervisor although the last submission is SUCCEEDED") in decide([run], UP, 0)


def test_a_run_that_nobody_can_supervise_keeps_no_other_waiting() -> None:
    lost = replace(NEW, run_id="b-20261121T000000Z-0002", cluster="c0", stranded="no Python", stranded_s=5.0)
    assert decide([lost, NEW], DOWN, 0) == [WantRay("c1")], "although it is older and wants another Ray"
    late = replace(lost, stranded_s=31.0)
    assert decide([late, NEW], DOWN, 0) == [LastWord(lost.run_id, "no Python"), WantRay("c1")]
    assert decide([replace(late, submitted_to="g", lock_free_s=2.0)], DOWN, 0) == [], "its supervisor may come back"
    assert decide([replace(late, supervised=True)], DOWN, 9999) == [], "the keeper stays for it"
    assert decide([lost], UP, 9999) == [StopRay("no run for 600 s")]


def test_a_ray_that_can_start_nothing_is_made_anew_once_a_run_needs_it() -> None:
    lame, cared = replace(UP, lame=True), replace(NEW, supervised=True, submitted_to="g2")
    assert decide([cared], lame, 0) == [WantRay("c1")], "what lives in it lives on"
    assert decide([cared, NEW], lame, 0) == [StopRay("its Python is gone, and a run needs a supervisor")]
    lost = replace(cared, supervised=False, lock_free_s=11.0)
    assert decide([lost], lame, 0) == [StopRay("its Python is gone, and a run needs a supervisor")]


def test_a_submission_under_way_is_waited_for() -> None:
    run = replace(NEW, submitted_to="g2", lock_free_s=30.0, submitted_age_s=30.0, job_status="RUNNING")
    assert decide([run], UP, 0) == [WantRay("c1")]
    assert len(decide([replace(run, submitted_age_s=61.0)], UP, 0)) == 2


def test_another_life_of_ray_voids_a_submission_at_once() -> None:
    run = replace(NEW, submitted_to="g1", lock_free_s=0.5, submitted_age_s=3.0)
    assert Submit(run.run_id, "Ray was restarted") in decide([run], UP, 0)


def test_a_resume_is_submitted_at_once_but_once() -> None:
    run = replace(NEW, submitted_to="g2", submitted_age_s=500.0, job_status="SUCCEEDED", asked_again=True)
    assert Submit(run.run_id, "a resume was requested") in decide([run], UP, 0)
    assert decide([replace(run, asked_again=False, submitted_age_s=0.1)], UP, 0) == [WantRay("c1")]
    assert decide([replace(run, supervised=True)], UP, 0) == [WantRay("c1")]


def test_a_supervisor_that_never_comes_is_retried_with_backoff() -> None:
    run = replace(NEW, submitted_to="g2", lock_free_s=100.0, submitted_age_s=25.0, job_status="FAILED", tries=3)
    assert decide([run], UP, 0) == [WantRay("c1")]
    assert len(decide([replace(run, submitted_age_s=31.0)], UP, 0)) == 2


def test_idle_ray_stops_after_ten_minutes_and_the_keeper_after_it() -> None:
    ended = replace(NEW, needs_supervisor=False)
    assert decide([ended], UP, 599) == []
    assert [type(a) for a in decide([ended], UP, 600)] == [StopRay]
    assert [type(a) for a in decide([ended], DOWN, 600)] == [EndKeeper]
    assert decide([], DOWN, 10) == []


def test_a_busy_cluster_is_not_dissolved_for_another_one() -> None:
    other = replace(NEW, run_id="b-20261121T000000Z-0002", cluster="c2")
    running = replace(NEW, supervised=True, submitted_to="g2")
    assert decide([other, running], UP, 0) == [WantRay("c1")]
    assert [type(a) for a in decide([other, replace(running, needs_supervisor=False)], UP, 0)] == [StopRay]


runs = st.builds(
    RunSeen,
    run_id=st.sampled_from(["a-20261121T000000Z-0001", "b-20261121T000000Z-0002"]),
    cluster=st.sampled_from(["c1", "c2"]),
    needs_supervisor=st.booleans(),
    supervised=st.booleans(),
    lock_free_s=st.floats(0, 1000),
    submitted_to=st.sampled_from([None, "g1", "g2"]),
    submitted_age_s=st.floats(0, 1000),
    job_status=st.sampled_from([None, "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "UNKNOWN"]),
    tries=st.integers(0, 20),
)
rays = st.builds(
    RaySeen, st.sampled_from(["starting", "up", "failed"]), st.sampled_from(["c1", "c2"]), st.just("g2")
) | st.just(DOWN)


@given(st.lists(runs, max_size=4, unique_by=lambda r: r.run_id), rays, st.floats(0, 2000))
def test_whatever_was_seen(seen: list[RunSeen], ray: RaySeen, idle_s: float) -> None:
    actions = decide(seen, ray, idle_s)
    by_id = {r.run_id: r for r in seen}
    needing = [r for r in seen if r.needs_supervisor]
    for action in actions:
        if isinstance(action, Submit):
            run = by_id[action.run_id]
            assert ray.state == "up" and run.cluster == ray.cluster
            assert run.needs_supervisor and not run.supervised
        if isinstance(action, EndKeeper):
            assert not needing and ray.state == "down" and idle_s >= policy.IDLE_LIMIT_S
        if isinstance(action, StopRay):
            assert not any(r.cluster == ray.cluster for r in needing)
    if needing and ray.state == "down":
        assert [type(a) for a in actions] == [WantRay]
