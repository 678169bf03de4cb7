"""`make bench-ssh`: what pods over SSH cost, measured against real sshds on loopback. Not a test: it prints.

    python -m tests.bench_ssh [--save runbooks/results/ssh.jsonl]

Eight sshds, each with an `$ORCH_HOME` and runs of its own; commands are whole processes of `orch`. The poll of 64 pods
uses 64 connections to those eight; counted is the CPU time of the operator's process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.runs.fleet import survey  # noqa: E402
from pods.facts import collect  # noqa: E402
from pods.pod import FarPod, Pod  # noqa: E402
from pods.snapshot import push_code  # noqa: E402
from pods.transport.ssh import SshTransport  # noqa: E402
from tests.bench_cli import fill  # noqa: E402
from tests.benchrows import Row, report  # noqa: E402
from tests.lab.sshd import Sshd  # noqa: E402
from workloads.contract.config.inventory import PodSpec  # noqa: E402
from workloads.contract.files import try_read_json  # noqa: E402
from workloads.contract.rundir import OrchHome  # noqa: E402

PODS, POLLED, FILES, RUNS = 8, 64, 10_000, 12
POLL_S, ROUNDS = 5.0, 6
REPEAT = 5
ORCH = [sys.executable, "-m", "orchestrator.cli"]


@dataclass(frozen=True)
class Site:
    home: OrchHome
    there: tuple[OrchHome, ...]
    specs: dict[str, PodSpec]
    work: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ORCH_"))}
        return kept | {"ORCH_HOME": str(self.home.path), "PYTHONPATH": str(ROOT)}

    def orch(self, *args: str) -> str:
        done = subprocess.run([*ORCH, *args], env=self.env, cwd=self.work, check=True, capture_output=True, timeout=180)
        return done.stdout.decode()

    def seconds(self, *args: str, repeat: int = REPEAT) -> float:
        """Median of whole processes; the first one is not counted."""
        times = []
        for _ in range(repeat + 1):
            began = time.perf_counter()
            self.orch(*args)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])


@contextmanager
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orch-b-", dir="/tmp")))
        (folder / "work").mkdir()
        home = OrchHome(folder / "home")
        home.path.mkdir()
        specs, there = {}, []
        for i in range(PODS):
            root = OrchHome(folder / f"pod{i}")
            sshd = stack.enter_context(Sshd(folder / f"sshd{i}", env={"ORCH_LEASES": str(folder / "leases")}))
            specs[f"pod{i}"] = PodSpec(
                ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity), root=str(root.path),
                python=sys.executable,
            )  # fmt: skip
            there.append(root)
        rows = {name: spec.model_dump(exclude_defaults=True) for name, spec in specs.items()}
        home.inventory.write_text(json.dumps({"pods": rows}))
        made = Site(home, tuple(there), specs, folder / "work")
        try:
            yield made
        finally:
            subprocess.run([*ORCH, "down", "pod0"], env=made.env, check=False, capture_output=True, timeout=120)


def launches(made: Site) -> list[Row]:
    """From typing the command until Ray has taken the job, a second time: everything is on the pod already."""
    down = submitted_s(made)  # builds, copies, starts: not counted
    made.orch("down", "pod0")
    down = submitted_s(made)
    up = statistics.median(submitted_s(made) for _ in range(REPEAT))
    return [
        Row("second launch to submitted, Ray to start", down, "s", 20),
        Row("second launch to submitted, Ray up", up, "s", 4),
    ]


def submitted_s(made: Site) -> float:
    began = time.monotonic()
    run_id = json.loads(made.orch("launch", "--json", "--pod", "pod0", "--name", "bench", "--", "true"))["run"]
    run = made.there[0].run(run_id)
    while "generation" not in (try_read_json(run.submissions) or {}):
        if time.monotonic() - began > 120:
            raise TimeoutError(f"not submitted: {run.path}")
        time.sleep(0.02)
    took = time.monotonic() - began
    while (try_read_json(run.status) or {}).get("state") != "succeeded":
        time.sleep(0.1)
    return took


def pod_of(made: Site, name: str) -> FarPod:
    spec = made.specs[name]
    return FarPod(name, SshTransport(name, spec), root=spec.root, python=spec.python)


def looks(made: Site) -> list[Row]:
    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    rows = [
        Row(f"connect and facts of {PODS} pods", made.seconds("pods", "check", *made.specs, "--json"), "s", 2),
        Row(f"status of {PODS} pods, cold", made.seconds("status", "--json"), "s", 2),
    ]
    kept: dict[str, Pod] = {name: pod_of(made, name) for name in made.specs}
    survey(made.home, made.specs, lambda name, _: kept[name])
    again = [timed(lambda: survey(made.home, made.specs, lambda name, _: kept[name])) for _ in range(REPEAT)]
    rows.append(Row(f"one refresh of {PODS} pods", statistics.median(again), "s", 1))
    for pod in kept.values():
        pod.close()
    facts = SshTransport("pod0", made.specs["pod0"])
    collect(facts, root=None)
    rows.append(Row("facts of one pod, connected", timed(lambda: collect(facts, root=None)) * 1000, "ms", None))
    facts.close()
    return rows


def code(made: Site) -> list[Row]:
    folder = made.work / "many"
    for i in range(FILES):
        path = folder / f"d{i % 100}" / f"f{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x = {i}\n" * 20)
    time.sleep(2.5)  # files younger than 2 s are hashed again
    pod = pod_of(made, "pod0")
    began = time.perf_counter()
    push_code(pod, folder, made.home)
    first = time.perf_counter() - began
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        _, pushed = push_code(pod, folder, made.home)
        times.append(time.perf_counter() - began)
        assert pushed.files_sent == 0
    (folder / "d7" / "f7.py").write_text("changed = True\n")
    _, pushed = push_code(pod, folder, made.home)
    pod.close()
    return [
        Row(f"{FILES:,} files, the first time", first, "s", None),
        Row(f"{FILES:,} unchanged files", statistics.median(times), "s", 1),
        Row("files sent when one has changed", pushed.files_sent, "files", 1),
    ]


def polled(made: Site) -> Row:
    """CPU share of the operator while it looks at 64 pods with a running run each, the first round not counted."""
    specs: dict[str, PodSpec] = {}
    for i in range(POLLED):
        there = OrchHome(made.work / f"poll{i}")
        there.keeper.mkdir(parents=True)
        fill(there, 1, first=10 * i)
        specs[f"poll{i}"] = made.specs[f"pod{i % PODS}"].model_copy(update={"root": str(there.path)})
    home = OrchHome(made.work / "poller")
    home.path.mkdir()
    kept: dict[str, Pod] = {
        name: FarPod(name, SshTransport(name, spec), root=spec.root, python=spec.python) for name, spec in specs.items()
    }
    began = cpu = 0.0
    for round_number in range(ROUNDS + 1):
        start = time.monotonic()
        looks = survey(home, specs, lambda name, _: kept[name])
        assert all(look.error is None for look in looks), [look.error for look in looks]
        if round_number == 0:
            began, cpu = time.monotonic(), time.process_time()
        time.sleep(max(0.0, POLL_S - (time.monotonic() - start)) if round_number else POLL_S)
    share = (time.process_time() - cpu) / (time.monotonic() - began)
    for pod in kept.values():
        pod.close()
    return Row(f"{POLLED} pods polled every {POLL_S:g} s", share * 100, "% of a core", 5)


def main() -> int:
    parser = argparse.ArgumentParser(description="What pods over SSH cost.")
    parser.add_argument("--save", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    with site() as made:
        rows = launches(made)
        made.orch("down", "pod0")
        for there in made.there:
            there.keeper.mkdir(parents=True, exist_ok=True)
            fill(there, RUNS)
        rows = [*looks(made), *rows, *code(made), polled(made)]
    return report(rows, "ssh", "make bench-ssh", args.save)


if __name__ == "__main__":
    sys.exit(main())
