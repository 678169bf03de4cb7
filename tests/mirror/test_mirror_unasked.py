"""What a person is told, and what is not done, while the pod of a run cannot be asked."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.runs import halts
from orchestrator.runs.events import read_events
from orchestrator.runs.fleet import ENDED_SHOWN, claims, newest, sources, survey, troubles
from orchestrator.runs.index import list_runs
from orchestrator.runs.report import runs_table, screen
from orchestrator.runs.source import FarSource, fetch
from orchestrator.runs.views import RunView, snapshot
from pods.pod import FarPod
from tests.cli.conftest import Made, make_run
from tests.lab.sshd import Sshd, why_no_sshd
from tests.mirror.conftest import Far
from tests.mirror.test_mirror_ssh import Site, sshds
from tests.mirror.test_mirror_views import Deaf, running
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import RefusedError, UnreachableError

__all__ = ["sshds"]


def lost(far: Far, ago_s: float) -> FarSource:
    """A run that went on when its pod was last seen, so long ago."""
    made = running(far)
    source = far.source(made.run)
    fetch(source)
    source.mirror.index.seen -= ago_s
    source.mirror._write_index()
    source = FarSource(far.home, source.run, "box", lambda: FarPod("box", Deaf()))
    with pytest.raises(UnreachableError):
        source.refresh()
    return source


def test_the_list_tells_the_pod_and_nothing_that_is_not_known(far: Far) -> None:
    here = make_run(far.home, "mine")
    here.status("running", "x", supervisor=here.supervised())
    source = lost(far, 7200)
    head, first, second, *rest = runs_table([source.view(), far_view_of(here)]).splitlines()
    assert head.split() == ["RUN", "POD", "STATE", "STEP", "LOSS", "TOK/S", "ETA", "BEAT"]
    assert first.split()[1:6] == ["box", "running", "when", "last", "seen"] and first.split()[-2:] == ["-", "2h00m"]
    assert "pod box unreachable 2h00m; last seen" in second
    assert rest[0].split()[1:3] == ["local", "running"] and len(rest) == 1
    assert "POD" not in runs_table([far_view_of(here)])


def far_view_of(made: Made) -> RunView:
    return snapshot(made.run, time.time())


def test_the_screen_calls_no_rank_live_that_nobody_sees(far: Far) -> None:
    source = lost(far, 600)
    text = screen(source.view(), read_events(source.run))
    ranks = [line for line in text.splitlines() if line.split()[:2] in (["0", "box"], ["0", "local"])]
    assert len(ranks) == 1 and "unknown; was live" in ranks[0] and "10 min" in ranks[0]
    assert "last beat   10 min" in text and "eta         -" in text


@pytest.mark.long
@pytest.mark.skipif(why_no_sshd() is not None, reason=str(why_no_sshd()))
def test_what_was_not_asked_is_told_with_what_to_type(tmp_path: Path, sshds: dict[str, Sshd]) -> None:
    site = Site(tmp_path, sshds)
    made = site.running()
    ident = made.run.run_id
    try:
        assert site.orch("runs", "--from", "box").code == 0
        assert site.orch("status", ident).code == 0
        site.targets["box"] = site.targets["box"].rsplit(":", 1)[0] + ":1"  # nobody listens there
        site.write()
        for verb in ("halt", "dump", "resume"):
            ran = site.orch(verb, ident)
            assert ran.code == 4 and f"run {ident} was not asked to {verb}: pod box" in ran.err, ran.err
            assert f"fix:   orch {verb} {ident} " in ran.err and "((" not in ran.err and "))" not in ran.err
        ran = site.orch("halt", "--all")
        assert ran.code == 4 and f"run {ident} was not asked to halt: pod box" in ran.err
        assert "every run has ended" not in ran.out
        assert not list(made.run.requests.glob("*")) and not made.run.halt.exists()
    finally:
        site.orch.close()


def test_a_pod_that_was_asked_has_no_unknown_runs_to_show(far: Far) -> None:
    """Old runs that have ended are told by the pod and not copied: they are no part of the short list."""
    for i in range(ENDED_SHOWN + 5):
        made = make_run(far.there, f"old-{i}", created=1_795_000_000.0 + i)
        made.status("succeeded", "x")
    looks = survey(far.home, {"box": PodSpec(ssh="root@box")}, lambda name, spec: far.pod)
    assert len(looks[0].rounds[0].listed) == ENDED_SHOWN + 5
    assert len(newest(sources(far.home, looks))) == ENDED_SHOWN
    looks[0].error = UnreachableError("E-SSH-032", "pod box cannot be reached: no answer")
    assert len(newest(sources(far.home, looks))) == ENDED_SHOWN + 5
    assert troubles(looks) == ["pod box cannot be reached: no answer"]
    looks[0].error = UnreachableError("E-MIRROR-008", "no answer in 7 s")
    assert troubles(looks) == ["pod box: no answer in 7 s"]
    looks[0].error = RefusedError("E-SSH-012", "pod box shows another host key", fix="orch pods repin box")
    assert troubles(looks) == ["pod box shows another host key; fix: orch pods repin box"]


def test_runs_of_a_forgotten_pod_are_those_of_the_pod_that_has_them_now(far: Far) -> None:
    made = running(far)
    spec = PodSpec(ssh="root@198.51.100.7")

    def owner_after(name: str) -> str:
        looks = survey(far.home, {name: spec}, lambda _, __: far.pod)
        assert claims(far.home, looks) == []
        return next(row.pod for row in list_runs(far.home) if row.run == made.run.run_id)

    assert owner_after("old") == "old"
    assert owner_after("new") == "new"  # the inventory knows no `old`
    far.home.inventory.write_text("pods: {new: {ssh: root@198.51.100.7}}\n")
    looks = survey(far.home, {"third": spec}, lambda _, __: far.pod)
    assert len(claims(far.home, looks)) == 1  # two that are known: told, not mixed


def test_a_run_under_an_id_that_this_machine_has_is_told(far: Far) -> None:
    """Two launches of one `--id` on two machines: the far one cannot be shown, and is not passed by."""
    made = running(far)
    ident = made.run.run_id
    shutil.copytree(made.run.path, far.home.run(ident).path)
    spec = {"box": PodSpec(ssh="root@198.51.100.7")}
    looks = survey(far.home, spec, lambda _, __: far.pod)
    assert claims(far.home, looks) == []  # the same launch: a home that is asked as a pod too
    here = Made(far.home.run(ident), made.world)
    row = json.loads(here.run.run_json.read_text())
    here.run.run_json.write_text(json.dumps(row | {"created": row["created"] - 60}))
    here.status("failed", "rank 0 exited with 1")
    looks = survey(far.home, spec, lambda _, __: far.pod)
    assert looks[0].elsewhere == {ident: "local"} and not far.home.mirrored(ident).path.exists()
    [line] = claims(far.home, looks)
    assert f"run {ident} is on this machine and on pod box" in line


def test_halting_all_names_a_run_that_no_command_can(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(far)
    here = Made(far.home.run(made.run.run_id), made.world)
    shutil.copytree(made.run.path, here.run.path)
    here.run.run_json.write_text(json.dumps(json.loads(here.run.run_json.read_text()) | {"created": 5.0}))
    here.status("failed", "rank 0 exited with 1")
    far.home.inventory.write_text("pods: {box: {ssh: root@198.51.100.7}}\n")
    monkeypatch.setattr(halts, "survey", lambda home, pods: survey(home, pods, lambda _, __: far.pod))
    chosen, [lost] = halts.living(far.home, "halt --all")
    assert chosen == [] and (lost.run, lost.pod) == (made.run.run_id, "box") and lost.error is not None
    words = shlex.split(str(lost.error.fix))
    assert words[:5] == ["orch", "pods", "exec", "box", "--"]
    assert not made.run.halt.exists()
    assert far.pod.transport.run(words[5:], timeout_s=60).ok and made.run.halt.exists()


def test_a_pod_that_was_refused_is_not_called_unreachable(far: Far) -> None:
    source = lost(far, 60)
    source.error = RefusedError("E-SSH-012", "the host key of pod box is another one")
    assert "pod box refused 1m" in runs_table([source.view()])
