"""`orch watch --dir`: foreign directories in any format, on simulated time; and the real command."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.runs.watchdir import DirGuard
from orchestrator.runs.watchforeign import CsvReader, ForeignReader, parse_foreign
from workloads.contract.errors import OrchError
from workloads.contract.haltfile import Halt, read_halt
from workloads.contract.rundir import RunDir
from workloads.contract.states import Phase


class Training:
    """Somebody's script: its lines and the guard over them, on one simulated clock."""

    def __init__(self, path, *, halt=False, ranks=1):
        self.run, self.now, self.ranks, self.said = RunDir(path), 0.0, ranks, []
        self.here = time.time()
        for rank in range(ranks):
            self.line(rank, {"ts": self.here, "msg": "starting"})
        self.guard = DirGuard(path, self.said.append, halt=halt)

    def line(self, rank, row):
        with self.run.heartbeat(rank).open("ab") as f:
            f.write(json.dumps(row).encode() + b"\n")

    def go(self, seconds, steps=(), **figures):
        """A look a second; a step a second of the ranks in `steps`."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for rank in steps:
                row = {"ts": self.here + self.now, "step": int(self.now), "loss": 2.0, "toks_per_s": 900.0}
                self.line(rank, row | figures)
            if not self.guard.over:
                self.guard.look(self.now, self.here + self.now)

    @property
    def kinds(self):
        return [(c.kind, c.data.get("rule"), c.data.get("rung")) for c in self.said if c.kind == "health"]


def test_a_well_training_is_left_alone(tmp_path):
    t = Training(tmp_path, halt=True, ranks=2)
    t.go(600, steps=(0, 1))
    assert t.said == [] and sorted(p.name for p in tmp_path.iterdir()) == [
        "heartbeat_rank0.jsonl",
        "heartbeat_rank1.jsonl",
    ]


def test_a_stall_is_told_and_only_then_halted(tmp_path):
    t = Training(tmp_path, halt=True)
    t.go(60, steps=(0,))
    t.go(100)
    assert ("health", "no_step", "note") in t.kinds and not t.run.halt.exists()
    t.go(150)
    assert t.guard.halted and t.guard.over
    assert t.run.anomaly_type.read_text() == "stall\n"
    found = read_halt(t.run)
    assert isinstance(found, Halt) and "stall: rank 0 has" in found.why and "limit" in found.why


def test_without_halt_it_only_observes(tmp_path):
    t = Training(tmp_path)
    t.go(60, steps=(0,))
    t.go(400)
    assert ("health", "no_step", "halt") in t.kinds and any("[halt not done]" in c.text for c in t.said)
    assert [p.name for p in tmp_path.iterdir()] == ["heartbeat_rank0.jsonl"] and not t.guard.over
    t.go(60, steps=(0,))
    assert any(c.kind == "health-clear" for c in t.said)


@pytest.mark.parametrize(
    ("figures", "anomaly"),
    [
        ({"loss": float("nan")}, "nan"),
        ({"loss": "NaN"}, "nan"),
        ({"toks_per_s": 0.0}, "zero_toks"),
        ({"grad_norm": 0.0}, "grad_zero"),
        ({"gate_entropy_mean": 0.05, "gate_max_gate": 0.99, "gate_collapse_frac": 0.8}, "gate_collapse"),
    ],
)
def test_anomalies_have_the_names_that_scripts_expect(tmp_path, figures, anomaly):
    t = Training(tmp_path, halt=True)
    t.go(60, steps=(0,))
    t.go(60, steps=(0,), **figures)
    assert t.guard.halted and t.run.anomaly_type.read_text().strip() == anomaly
    assert t.run.gate_details.exists() == (anomaly == "gate_collapse")
    if anomaly == "gate_collapse":
        row = json.loads(t.run.gate_details.read_text())
        assert (row["gate_entropy_mean"], row["gate_max_gate"], row["gate_collapse_frac"]) == (0.05, 0.99, 0.8)


def test_a_gap_between_looks_is_no_silence(tmp_path):
    """The machine sleeps an hour, and the training with it."""
    t = Training(tmp_path, halt=True)
    t.go(60, steps=(0,))
    t.now += 3600.0
    t.go(20, steps=())
    t.go(300, steps=(0,))
    assert t.said == [] and not t.run.halt.exists()


def test_an_old_directory_is_not_judged_until_it_speaks(tmp_path):
    t = Training(tmp_path, halt=True)
    old = time.time() - 7200
    os.utime(t.run.heartbeat(0), (old, old))
    t.go(600)
    assert [c.text for c in t.said] == ["the newest line is 2 h 00 min old: it is guarded from the next one on"]
    t.go(60, steps=(0,))
    t.go(300)
    assert t.guard.halted


def test_a_halt_that_lies_there_is_left_as_it_is(tmp_path):
    t = Training(tmp_path, halt=True)
    t.go(10, steps=(0,))
    t.run.halt.write_text("gate_collapse\n")
    t.go(5, steps=(0,))
    assert t.guard.over and t.guard.halted and t.run.halt.read_text() == "gate_collapse\n"
    assert [c.text for c in t.said] == [".HALT lies there, by a file: gate_collapse"]


def test_a_training_that_is_done_is_not_stalled(tmp_path):
    t = Training(tmp_path, halt=True)
    t.go(60, steps=(0,))
    t.line(0, {"ts": 1.0, "msg": "done", "step": 60})
    t.go(600)
    assert [c.text for c in t.said] == ["rank 0 is done"] and t.guard.over and not t.run.halt.exists()


def test_a_process_that_a_beat_names_and_that_ended_is_gone_not_stalled(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    t = Training(tmp_path, halt=True)
    t.go(30, steps=(0,), pid=process.pid)
    process.kill()
    process.wait(timeout=120)
    t.go(600)
    assert [c.text for c in t.said] == [f"rank 0: process {process.pid} is gone"] and not t.run.halt.exists()


def test_training_csv_speaks_where_there_are_no_beats(tmp_path):
    csv = tmp_path / "training.csv"
    csv.write_text("step,loss,lr,toks_per_s\n")
    said = []
    guard = DirGuard(tmp_path, said.append, halt=True)
    for now in range(1, 400):
        if now < 60:
            with csv.open("a") as f:
                f.write(f"{now},{2.5},{1e-3},{900.0}\n")
        if not guard.over:
            guard.look(float(now), time.time())
    assert guard.halted and RunDir(tmp_path).anomaly_type.read_text() == "stall\n"
    assert any("last step is 59" in c.text for c in said)


def test_what_cannot_be_guarded_is_refused(tmp_path, make):
    for path, options in ((tmp_path / "none", {}), (make().run.path, {"halt": True})):
        with pytest.raises(OrchError) as e:
            DirGuard(path, print, **options)
        assert e.value.code in ("E-WATCH-004", "E-WATCH-005") and e.value.fix


FORMATS = [
    (b'{"ts": 1795000000.5, "step": 12, "loss": 2.5, "toks_per_s": 900}', 12, 1795000000.5),
    (b'{"timestamp": "2026-11-18T11:06:40+00:00", "global_step": 3, "train_loss": "2.5"}', 3, 1795000000.0),
    (b'{"time": 1795000000500, "iteration": 7, "tokens_per_s": 10}', 7, 1795000000.5),
    (b'{"v":1,"seq":4,"ts":5.5,"msg":"progress","rank":0,"world_size":1,"attempt":3,"step":9}', 9, 5.5),
    (b'{"step": 1}', 1, 0.0),
]


@pytest.mark.parametrize(("line", "step", "ts"), FORMATS)
def test_formats(line, step, ts):
    beat = parse_foreign(line, 0, 0)
    assert beat is not None and (beat.get("step"), beat.ts, beat.msg, beat.attempt) == (step, ts, Phase.PROGRESS, 0)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"a": 1}', b'{"step": -1}', b'{"step": 1, "rank": 3}', b"\xff" * 9, b"[" * 9999]
)
def test_what_is_no_beat(line):
    assert parse_foreign(line, 0, 0) is None


NUMBER = st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.none(), st.booleans(), st.just(10**400))
ROW = st.dictionaries(st.sampled_from(["ts", "step", "loss", "msg", "rank", "toks_per_s", "pid", "v", "x"]), NUMBER)
LINE = st.one_of(
    st.binary(max_size=60), ROW.map(lambda r: json.dumps(r).encode()), st.sampled_from(FORMATS).map(lambda f: f[0])
)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINE, max_size=8))
def test_any_bytes_give_beats_or_counted_lines(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "h.jsonl"
    lines = [line.replace(b"\n", b"") for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"step": 1')
    reader = ForeignReader(path, 0)
    beats = reader.read()
    assert len(beats) + reader.bad == sum(1 for line in lines if line.strip())
    assert all(b.rank == 0 and type(b.get("step") or 0) is int for b in beats)
    path.write_bytes(b"step,loss\n" + path.read_bytes())
    CsvReader(path).read()


def test_the_command(orch, tmp_path):
    path = tmp_path / "somebodys run"
    path.mkdir()
    t = Training(path)
    t.go(3, steps=(0,))
    ran = orch("watch", "--dir", str(path), "--once")
    assert ran.code == 0 and "1 rank; observes; --halt 1 would halt" in ran.err
    t.run.halt.write_text("stall")
    ran = orch("watch", "--dir", str(path), "--json")
    assert ran.code == 75 and json.loads(ran.out)["kind"] == "halt"
