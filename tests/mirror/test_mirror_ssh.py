"""The commands as a person types them, on runs that lie behind a real sshd with another home."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.runs.index import list_runs
from tests.cli.conftest import Made, Orch, make_run
from tests.cli.test_cli_control import answer, requests, stop, until
from tests.lab.sshd import Sshd, why_no_sshd
from tests.mirror.conftest import keeper_here, same
from tests.mirror.test_mirror_pull import checkpoint
from workloads.contract.files import atomic_write
from workloads.contract.rundir import OrchHome, RunDir

pytestmark = pytest.mark.skipif(why_no_sshd() is not None, reason=str(why_no_sshd()))


@pytest.fixture(scope="module")
def sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sshd]]:
    with Sshd(tmp_path_factory.mktemp("box")) as box, Sshd(tmp_path_factory.mktemp("cow")) as cow:
        yield {"box": box, "cow": cow}


class Site:
    """Operator's home, two pods, and the command."""

    def __init__(self, tmp_path: Path, sshds: dict[str, Sshd]) -> None:
        self.home = OrchHome(tmp_path / "home")
        self.home.path.mkdir(mode=0o700)
        keeper_here(self.home)
        self.there = {name: OrchHome(tmp_path / f"{name} home") for name in ("box", "cow")}
        for there in self.there.values():
            there.path.mkdir(mode=0o700)
            keeper_here(there)
        self.targets = {name: sshd.target for name, sshd in sshds.items()}
        self.sshds = sshds
        self.write()
        self.orch = Orch(self.home, tmp_path)

    def write(self, names: tuple[str, ...] = ("box",)) -> None:
        rows = "".join(
            f"  {n}:\n    ssh: {self.targets[n]}\n    host_key: {self.sshds[n].host_key}\n"
            f"    identity: {self.sshds[n].identity}\n    root: {self.there[n].path}\n"
            for n in names
        )
        atomic_write(self.home.inventory, f"pods:\n{rows}".encode())

    def running(self, pod: str = "box", name: str = "tiny", **more: object) -> Made:
        made = make_run(self.there[pod], name, **more)
        made.status("running", "all ranks beat", supervisor=made.supervised())
        for rank in (0, 1):
            made.record(rank)
            made.beat(rank, time.time(), step=7, steps=100, loss=1.5, toks_per_s=1000.0)
            made.log(rank, b"".join(b"step %d | loss 1\n" % i for i in range(2000)))
        made.event(1, "state", "all ranks beat", frm="starting", to="running")
        return made


@pytest.fixture
def site(tmp_path: Path, sshds: dict[str, Sshd]) -> Iterator[Site]:
    made = Site(tmp_path, sshds)
    yield made
    made.orch.close()


@pytest.mark.long
def test_status_finds_the_runs_of_a_pod_that_was_never_asked(site):
    began = time.monotonic()
    made = site.running()
    ran = site.orch("status", "--json")
    took = time.monotonic() - began
    assert ran.code == 0, ran.err
    (row,) = ran.json["runs"]
    assert (row["run"], row["state"], row["step"], row["pod_reachable"]) == (made.run.run_id, "running", 7, True)
    assert row["seen_age_s"] <= took and row["last_beat_age_s"] <= took + 1  # a beat's time is rounded
    one = site.orch("status", "tiny")
    assert one.code == 0 and "rank 1" not in one.err
    assert f"box:{site.there['box'].path}/runs/{made.run.run_id}" in one.out and "live" in one.out
    assert "unsupervised" not in one.out


def test_one_pod_lost_shows_the_others_and_the_copy(site):
    site.write(("box", "cow"))
    site.running("box", "one"), site.running("cow", "two")
    assert len(site.orch("status", "--json").json["runs"]) == 2
    site.targets["cow"] = "root@127.0.0.1:1"
    site.write(("box", "cow"))
    began = time.monotonic()
    ran = site.orch("status")
    assert time.monotonic() - began < 9 and ran.code == 0
    assert re.search(r"cow +running when last seen", ran.out) and "pod cow unreachable" in ran.out, ran.out
    assert ran.err.count("pod cow cannot be reached") == 1
    rows = {r["name"]: r for r in site.orch("status", "--json").json["runs"]}
    assert (rows["one"]["pod_reachable"], rows["two"]["pod_reachable"]) == (True, False)
    cached = site.orch("status", "--cached")
    assert cached.err == "" and cached.out.count("from the copy of") == 2
    copy = site.orch("logs", "two", "--rank", "0")
    assert copy.code == 0 and "cow" in copy.err
    site.write(("box",))
    forgotten = site.orch("status", "two")
    assert forgotten.code == 0 and "pod cow not in the inventory; last seen" in forgotten.out
    assert "unreachable" not in forgotten.out and "no pod" in forgotten.err


@pytest.mark.long
def test_logs_of_a_pod_are_what_the_rank_printed(site):
    made = site.running()
    site.orch("runs", "--from", "box")
    whole = site.orch("logs", "tiny", "--rank", "0")
    assert (whole.code, whole.err) == (0, "") and whole.out == made.run.rank_log(0).read_text()
    tail = site.orch("logs", "tiny", "-n", "3")
    assert tail.out == "".join(f"[rank {k}] step {i} | loss 1\n" for k in (0, 1) for i in (1997, 1998, 1999))
    made.log(0, b"Traceback (most recent call last):\n  File x\nValueError: \x1b[31mbad\n")
    errors = site.orch("logs", "tiny", "--errors")
    assert "line 2001" in errors.out and "\\x1b[31mbad" in errors.out
    assert site.orch("logs", "tiny", "--rank", "9").code == 2


@pytest.mark.long
def test_following_ends_with_the_run(site):
    made = site.running()
    site.orch("runs", "--from", "box")
    process = site.orch.start("logs", "tiny", "-f", "--rank", "0", "-n", "1")
    until(site.home.mirrored(made.run.run_id).rank_log(0).exists)
    time.sleep(0.5)
    for i in range(20):
        made.log(0, b"late %d\n" % i)
        time.sleep(0.05)
    made.status("succeeded", "done")
    out, err = process.communicate(timeout=120)
    assert out == "step 1999 | loss 1\n" + "".join(f"late {i}\n" for i in range(20)), err


@pytest.mark.long
def test_runs_from_a_pod(site):
    first, second = site.running(name="one"), site.running(name="two", created=1_795_000_100.0)
    ran = site.orch("runs", "--from", "box", "--json")
    assert [r["run"] for r in ran.json["runs"]] == [second.run.run_id, first.run.run_id]
    assert {r["pod"] for r in ran.json["runs"]} == {"box"}
    assert [r.pod for r in list_runs(site.home)] == ["box", "box"]
    assert site.orch("status", "one", "--json").json["runs"][0]["run"] == first.run.run_id
    unknown = site.orch("runs", "--from", "bax")
    assert unknown.code == 2 and "box" in unknown.err


@pytest.mark.long
def test_two_pods_that_claim_one_run(site):
    site.write(("box", "cow"))
    made = site.running("box")
    site.orch("runs", "--from", "box")
    copied = site.there["cow"].runs / made.run.run_id
    os.makedirs(copied)
    (copied / "status.json").write_text(made.run.status.read_text().replace("running", "failed"))
    ran = site.orch("status")
    assert ran.out.count(made.run.run_id) == 1 and "running" in ran.out and "failed" not in ran.out
    assert "is on pod box and on pod cow" in ran.err


def test_halt_dump_and_resume(site):
    made = site.running()
    site.orch("runs", "--from", "box")
    process = site.orch.start("dump", "tiny")
    (made.run.stackdumps / "stackdump_rank1_x.txt").write_text("Thread 1")
    groups = [{"ranks": [0, 1], "text": "File x.py, line 3 in inner\x1b[2J"}]
    answer(made.run, "dump", groups=groups, files=["stackdump_rank1_x.txt"], notes=[])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and "=== rank 0, 1\nFile x.py, line 3 in inner\\x1b[2J\n" in out
    assert (site.home.mirrored(made.run.run_id).stackdumps / "stackdump_rank1_x.txt").read_text() == "Thread 1"
    process = site.orch.start("halt", "tiny", "--why", "dinner")
    stop(made)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    assert "stopped at step 120" in out and "halted" in out
    assert json.loads(requests(made.run, "halt")[0].read_text())["why"] == "dinner"
    process = site.orch.start("resume", "tiny", "--json")
    answer(made.run, "resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and json.loads(out)["acknowledged"] is True, err


@pytest.mark.long
def test_halt_all_asks_every_pod(site):
    site.write(("box", "cow"))
    runs = [site.running("box", "one"), site.running("cow", "two"), make_run(site.home, "here")]
    runs[2].status("running", supervisor=runs[2].supervised())
    process = site.orch.start("halt", "--all", "--json")
    until(lambda: all(m.run.halt.exists() for m in runs))
    for made in runs:
        stop(made)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert sorted(r["run"] for r in json.loads(out)["runs"]) == sorted(m.run.run_id for m in runs)


@pytest.mark.long
def test_following_outlives_a_lost_connection(site):
    made = site.running()
    site.orch("runs", "--from", "box")
    process = site.orch.start("logs", "tiny", "-f", "--rank", "1", "-n", "0")
    until(site.home.mirrored(made.run.run_id).rank_log(1).exists)
    time.sleep(0.5)
    victims = serving(site.there["box"].path)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for i in range(30):
        made.log(1, b"after %d\n" % i)
        time.sleep(0.05)
    made.status("succeeded", "done")
    out, err = process.communicate(timeout=40)
    assert out == "".join(f"after {i}\n" for i in range(30))
    assert err.count("cannot be reached") == 1 and "the run goes on there" in err and "reached again" in err


def serving(home: Path) -> list[int]:
    """Processes of `pods.remote` that serve this home."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in argv and str(home).encode() in argv:
            found.append(int(name))
    return found


@pytest.mark.long
def test_a_pod_that_says_nothing_is_not_waited_for(site):
    made = site.running()
    assert site.orch("status").code == 0
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        site.targets["cow"] = f"root@127.0.0.1:{deaf.getsockname()[1]}"
        site.write(("box", "cow"))
        began = time.monotonic()
        ran = site.orch("status")
        assert time.monotonic() - began < 10
    assert ran.code == 0 and made.run.run_id in ran.out and "unreachable" not in ran.out
    assert len(ran.err.splitlines()) == 1 and ran.err.startswith("pod cow cannot be reached: ")


def test_pull_and_read_it_when_the_pod_is_gone(site, tmp_path):
    made = site.running()
    checkpoint(made, 20, {"model_rank0.pt": 3 << 20})
    site.orch("runs", "--from", "box")
    ran = site.orch("pull", "tiny", "--json")
    assert ran.code == 0 and ran.json["checkpoints"] == [20], ran.err
    assert set(same(made.run, site.home.mirrored(made.run.run_id))) == set()
    other = site.orch("pull", "tiny", "--to", str(tmp_path / "else"), "--checkpoints", "none")
    assert other.code == 0 and (tmp_path / "else" / made.run.run_id / "logs" / "rank0.log").exists()
    made.run.path.rename(tmp_path / "gone")
    site.targets["box"] = "root@127.0.0.1:1"
    site.write()
    status, logs = site.orch("status", "tiny"), site.orch("logs", "tiny", "--rank", "1")
    assert "pod box unreachable" in status.out and "step 20" in status.out and status.code == 0
    assert logs.out == (tmp_path / "gone" / "logs" / "rank1.log").read_text() and "the copy of" not in logs.out
    assert site.orch("pull", "tiny").code == 4 and site.orch("halt", "tiny").code == 4
    local = make_run(site.home, "here")
    assert site.orch("pull", "here").code == 2
    assert site.orch("pull", "here", "--to", str(tmp_path / "else")).code == 0
    assert same(local.run, RunDir(tmp_path / "else" / local.run.run_id)) == []
