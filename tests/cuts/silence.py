"""`orch logs -f --raw` on pods of the lab whose packets vanish (nft drop) again and again; see `drive`.

Nobody is told that the connection is gone: it is found out by silence, told on stderr, and the log goes on behind it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from orchestrator.runs.index import remember, row_of
from tests.cli.conftest import Made, make_run
from tests.cuts.drive import Log, Outcome, Tell, differing
from tests.lab.lab import Lab
from tests.lab.pod import LabPod
from workloads.contract.rundir import OrchHome

NOTICED_S = 45.0  # a test's patience; what a person waits is in `faults_ssh`
BACK_S = 60.0


def silenced(cuts: int, pods: int, seed: int, tell: Tell = lambda _: None) -> list[Outcome]:
    """`cuts` silences in all, shared by that many pods, each with a run that is followed."""
    with Lab(pods) as lab:
        share = -(-cuts // pods)
        found: dict[str, Outcome] = {}

        def one(pod: LabPod, number: int) -> None:
            found[pod.name] = _silence_one(lab, pod, share, seed + number, tell)

        threads = [threading.Thread(target=one, args=(p, i)) for i, p in enumerate(lab.pods.values())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[name] for name in lab.pods if name in found]


def _run_on(lab: Lab, pod: LabPod) -> Made:
    made = make_run(OrchHome(pod.path("/root/.orch")), f"silent-{pod.name}", world=1)
    made.status("running", "all ranks beat")
    row = row_of(made.run.run_id, "train", time.time(), pod.name)
    assert row is not None
    remember(lab.home, [row])
    return made


def _silence_one(lab: Lab, pod: LabPod, cuts: int, seed: int, tell: Tell) -> Outcome:
    rng, began = random.Random(seed), time.monotonic()
    made = _run_on(lab, pod)
    log, done = Log(made.run.rank_log(0), seed), threading.Event()
    out, errors = lab.place / f"{pod.name}.out", lab.place / f"{pod.name}.err"
    argv = [sys.executable, "-m", "orchestrator.cli", "logs", made.run.run_id, "-f", "--raw", "--rank", "0"]
    with out.open("wb") as to, errors.open("wb") as said:
        process = lab.popen(argv, stdout=to, stderr=said)

        def write() -> None:
            while not done.wait(0.05):
                log.grow(30_000)

        writer = threading.Thread(target=write)
        writer.start()
        made_cuts, problem = 0, ""
        try:
            for _ in range(cuts):
                _until(lambda: out.stat().st_size > 0 and process.poll() is None, BACK_S)
                time.sleep(rng.uniform(0.0, 2.0))
                told = _count(errors, "cannot be reached")
                with pod.silent():
                    _until(lambda told=told: _count(errors, "cannot be reached") > told, NOTICED_S)
                _until(lambda told=told: _count(errors, "is reached again") > told, BACK_S)
                made_cuts += 1
                tell(f"{pod.name}: silence {made_cuts} of {cuts}")
        except TimeoutError as e:
            problem = f"{e} after {made_cuts} silences: {errors.read_text()[-1000:]}"
        done.set()
        writer.join()
        log.end()
        made.status("succeeded", "done")
        try:
            process.wait(BACK_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    parted = differing(made.run.rank_log(0), out)
    if process.returncode != 0 or parted:
        problem = f"{problem} exit {process.returncode}, {parted or 'nothing differs'}"
    return Outcome(made_cuts, made.run.rank_log(0).stat().st_size, time.monotonic() - began, problem)


def _count(path: Path, words: str) -> int:
    return path.read_text(errors="replace").count(words)


def _until(condition: object, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s")
        time.sleep(0.1)
