"""The real command in this process, against a pod that lies: what it said, and how it ended.

`Stage` makes a pod's home with one run of every state in it, and a fresh home of the operator for each command.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs import render
from pods.remote.dispatch import Answer, dispatch
from pods.remote.runfiles import kind_of
from tests.cli.conftest import Made, make_run
from tests.hostile.corpus import harm_in
from tests.hostile.twist import Lie, Operation, Twisted
from workloads.contract.exitcodes import CliExit
from workloads.contract.files import atomic_write_json
from workloads.contract.rundir import OrchHome, RunDir

POD = "box"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"
MAX_SAID = 1_000_000
MAX_S = 20.0
VICTIM = Path("/tmp/orch-hostile-victim")


@dataclass
class Said:
    code: int
    out: str
    err: str
    seconds: float
    heard: dict[str, list[dict[str, Any]]]


def _acked(op: str) -> Operation:
    """The request as it is made there, and a supervisor's answer to it."""

    def carry_out(home: OrchHome, args: Mapping[str, Any], data: bytes) -> Answer:
        found = dispatch(home, op, args, data)
        run = home.run(str(args["run"]))
        groups = [{"ranks": [0, 1], "text": "File train.py, line 3 in step"}]
        ack = {
            "v": 1, "ok": True, "who": "supervisor", "ts": 1.0, "why": "",
            "data": {"groups": groups, "files": [str(run.stackdumps / "rank0.txt")], "notes": ["one rank sleeps"]},
        }  # fmt: skip
        atomic_write_json(RunDir.ack_of(run.requests / str(found.fields["request"])), ack, durable=False)
        return found

    return carry_out


def _says(**fields: Any) -> Operation:
    return lambda home, args, data: Answer(dict(fields))


INSTEAD: dict[str, Operation] = {
    "runs.dump": _acked("runs.dump"),
    "runs.resume": _acked("runs.resume"),
    "runs.wake": _says(awake=True),
    "runs.down": _says(stopped=True, stayed=["ray 3"]),
    "runs.stage": _says(created=True),
    "runs.keeper": _says(
        record={"pid": 3}, ray={"state": "up", "dashboard_port": 8265, "cluster": "0123456789ab", "error": "x"}
    ),
}  # fmt: skip


@dataclass
class Stage:
    top: Path
    there: OrchHome
    patch: pytest.MonkeyPatch
    runs: dict[str, Made] = field(default_factory=dict)
    count: int = 0

    def fill(self) -> None:
        """A running, a failed and a halted run, written with the real writers."""
        self.there.runs.mkdir(parents=True, mode=0o700)
        for n, state in enumerate(("running", "failed", "halted")):
            made = self.runs[state] = make_run(self.there, state, created=time.time() - 60 + n)
            doc = json.loads(made.run.run_json.read_text())
            doc["pods"][0]["name"] = doc["head"] = POD
            made.run.run_json.write_text(json.dumps(doc))
            made.status(state, "a reason")
            for rank in range(2):
                made.record(rank)
                made.beat(rank, time.time(), step=3, steps=9, loss=2.5, toks_per_s=10.0)
                made.log(rank, b"step 1 loss 2.5\nTraceback (most recent call last):\n  x\nValueError: bad\n")
            made.event(1, "state", "because", frm="starting", to=state)
            made.event(2, "stage", data={"stage": "import", "seconds": 1.5})
            made.halt_ack(0, 4)

    def operator(self, *, knows: bool = False) -> OrchHome:
        """A machine that never saw the pod; or one that saw its runs before it began to lie."""
        self.count += 1
        home = OrchHome(self.top / f"op{self.count}")
        known = self.top / "known"
        if knows:
            if not known.is_dir():
                home = self.operator()
                assert self.say("status", home=home, keep=True).code == 0
                home.path.rename(known)
            home = OrchHome(self.top / f"op{self.count}")
            shutil.copytree(known, home.path)
            return home
        home.path.mkdir(mode=0o700)
        home.inventory.write_text(
            f"pods:\n  {POD}:\n    ssh: root@127.0.0.1:9\n    host_key: {KEY}\n    python: {sys.executable}\n"
        )
        home.inventory.chmod(0o600)
        return home

    def say(self, *args: str, lie: Lie | None = None, home: OrchHome | None = None, keep: bool = False) -> Said:
        """Carry out `orch ARGS`. {run}, {out} and {there} in a word: the running run, a new directory, the pod's home.

        On a machine of its own that is removed then; one that knows the run where it is named.
        """
        from orchestrator.cli.main import main

        lie, home = lie or Lie(), home or self.operator(knows="{run}" in args)
        words = [a.replace("{run}", self.runs["running"].run.run_id).replace("{out}", str(home.path / "out"))
                 .replace("{there}", str(self.there.path)) for a in args]  # fmt: skip
        self.patch.setenv("ORCH_HOME", str(home.path))
        self.patch.setattr(
            "pods.transport.ssh.SshTransport", lambda name, spec, **_: Twisted(name, self.there, lie, INSTEAD)
        )
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2))
        began = time.monotonic()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(words)
        finally:
            render._redact.clear()
        took = time.monotonic() - began
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))  # type: ignore[attr-defined]
        self.look(home, words)
        if not keep:
            shutil.rmtree(home.path)
        return Said(code, *texts, took, lie.heard)

    def look(self, home: OrchHome, words: list[str]) -> None:
        """Nothing was written but what a command writes, and nothing that others may read."""
        assert not VICTIM.exists(), words
        for path in home.path.rglob("*"):
            name = path.relative_to(home.path)
            index = [home.index.name + suffix for suffix in ("", "-wal", "-shm")]
            assert name.parts[0] in ("pods.yaml", "mirror", "cache", "out", *index), name
            if name.parts[0] == "mirror" and path.is_file() and not path.name.startswith(".mirror"):
                inner = "/".join(name.parts[2:])
                assert kind_of(inner) is not None or inner.startswith(("checkpoints/", "code")), inner
            if name.parts[0] != "out":  # a person's directory
                assert not path.is_symlink() and path.stat().st_mode & 0o077 == 0, path


def must_be_good(said: Said, what: object) -> None:
    """The rules for every answer to every lie."""
    assert said.code in {int(c) for c in CliExit}, what
    both = said.out + said.err
    assert "E-BUG" not in both and "Traceback (most recent call last):\n  File" not in both, (
        f"{what}\n{said.err[-1500:]}"
    )
    assert not harm_in(both), f"{what}: {sorted(map(hex, map(ord, harm_in(both))))}\n{both[:2000]!a}"
    assert len(both) < MAX_SAID, f"{what}: {len(both)} characters"
    assert said.seconds < MAX_S, f"{what}: {said.seconds:.1f} s"
    assert not any(line.startswith("error[E-SSH-010]") for line in both.splitlines()), f"{what}: a forged line"


def strict_json(text: str) -> Any:
    """JSON as the standard has it: no NaN."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    there = OrchHome(tmp_path / "there")
    there.path.mkdir(mode=0o700)
    for name, value in (
        ("orchestrator.cli.control.DUMP_ANSWER_S", 0.2), ("orchestrator.cli.control.RESUME_ANSWER_S", 0.2),
        ("orchestrator.runs.source.FAR_POLL_S", 0.01), ("orchestrator.runs.waiting.FAR_POLL_S", 0.01),
    ):  # fmt: skip
        monkeypatch.setattr(name, value)
    monkeypatch.setattr("orchestrator.cli.reach._wait", lambda every_s, *looks: None)  # else until Ctrl-C
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").write_text("x")
    monkeypatch.chdir(tmp_path / "work")
    made = Stage(tmp_path, there, monkeypatch)
    made.fill()
    return made


@pytest.fixture(autouse=True)
def no_victim() -> None:
    assert not VICTIM.exists(), f"{VICTIM} is there before the test"


Run = Callable[..., Said]
