"""The run directory: every file name in it, in one place. Nothing else spells `.HALT` or `heartbeat_`.

`RunDir(path)` only computes paths; it never reads or writes. `OrchHome` does the same for `$ORCH_HOME`.
Standard library only; used by ranks, shims, keepers, supervisors and the operator.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,38}")
RUN_ID_PATTERN = re.compile(r"(?P<name>[a-z][a-z0-9-]{0,38})-(?P<utc>\d{8}T\d{6}Z)-(?P<hex>[0-9a-f]{4})", re.ASCII)
REQUEST_PATTERN = re.compile(r"\d{8}T\d{6}Z-(?P<verb>[a-z]+)-[A-Za-z0-9._-]{1,64}\.json", re.ASCII)
ACK_SUFFIX = ".ack.json"
UTC_FORMAT = "%Y%m%dT%H%M%SZ"
HALT_NAME = ".HALT"
STAGED_PREFIX = ".tmp_"
CHECKPOINT_PREFIX = "step_"
REJECTED_PREFIX = "rejected_"
ASIDE_PREFIX = "aside_"
TRAINER_FILE = "trainer.json"
"""in a checkpoint: the step, the job that wrote it, and what it went through"""


def utc_stamp(now: float | None = None) -> str:
    """Unix seconds as `20261121T093000Z`."""
    return time.strftime(UTC_FORMAT, time.gmtime(time.time() if now is None else now))


def make_run_id(name: str, now: float | None = None) -> str:
    """`<name>-<yyyymmddThhmmssZ>-<4 hex>`, made before the first byte is sent."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"run name {name!r} must match {NAME_PATTERN.pattern}")
    return f"{name}-{utc_stamp(now)}-{secrets.token_hex(2)}"


def run_name_of(run_id: str) -> str:
    """The name inside a run id. ValueError when it is none."""
    m = RUN_ID_PATTERN.fullmatch(run_id)
    if not m:
        raise ValueError(f"{run_id!r} is not a run id")
    return m["name"]


def verb_of_request(name: str) -> str | None:
    """`resume` for `20261121T093000Z-resume-1f3a9c02.json`; None for an answer and for whatever else lies there."""
    m = None if name.endswith(ACK_SUFFIX) else REQUEST_PATTERN.fullmatch(name)
    return m["verb"] if m else None


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    # written once, at launch
    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def resolved_config(self) -> Path:
        return self.path / "resolved_config.json"

    @property
    def code_diff(self) -> Path:
        return self.path / "code.diff"

    @property
    def env_json(self) -> Path:
        return self.path / "env.json"

    @property
    def data_json(self) -> Path:
        """Which commit of a data set the run reads."""
        return self.path / "data.json"

    @property
    def code(self) -> Path:
        """The run's own copy of the code it was launched with, on a pod that is not the operator's machine."""
        return self.path / "code"

    @property
    def secrets(self) -> Path:
        """`{name: value}`, mode 0600: read by the shim alone, never copied from the pod to a disk."""
        return self.path / ".secrets.json"

    # the supervisor's
    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def epoch(self) -> Path:
        """A decimal integer: the newest attempt that may commit."""
        return self.path / "epoch"

    @property
    def supervisor_lock(self) -> Path:
        """Held by `flock` while a supervisor process owns the run."""
        return self.path / "supervisor.lock"

    # the keeper's
    @property
    def submissions(self) -> Path:
        """`{n, ts, cluster}`: the last Ray job submitted for this run was `<run id>.<n>`."""
        return self.path / "submissions.json"

    # requests and answers
    @property
    def requests(self) -> Path:
        return self.path / "requests"

    def request(self, verb: str, ident: str, now: float | None = None) -> Path:
        return self.requests / f"{utc_stamp(now)}-{verb}-{ident}.json"

    @staticmethod
    def ack_of(request: Path) -> Path:
        return request.with_name(request.name.removesuffix(".json") + ACK_SUFFIX)

    @property
    def halt(self) -> Path:
        return self.path / HALT_NAME

    def archived_halt(self, attempt: int) -> Path:
        return self.path / f"{HALT_NAME}.a{attempt}"

    @property
    def anomaly_type(self) -> Path:
        return self.path / ".anomaly_type"

    @property
    def gate_details(self) -> Path:
        """The figures of collapsed gates, beside the `.anomaly_type` that says so."""
        return self.path / "gate_collapse_details.json"

    # ranks
    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    def attempt_dir(self, attempt: int) -> Path:
        return self.ranks / f"a{attempt}"

    def rank_record(self, attempt: int, rank: int) -> Path:
        return self.attempt_dir(attempt) / f"rank{rank}.json"

    def rank_order(self, attempt: int, rank: int) -> Path:
        """What the shim is told to start (`records.ShimOrder`)."""
        return self.attempt_dir(attempt) / f"rank{rank}.order.json"

    def attempt_job(self, attempt: int) -> Path:
        """`{v, attempt, changes, job}`: the job of an attempt whose resume changed it (`contract.jobchanges`)."""
        return self.attempt_dir(attempt) / "job.json"

    def rank_lock(self, attempt: int, rank: int) -> Path:
        """Held by `flock` while the shim of this rank lives: one shim a rank and attempt."""
        return self.attempt_dir(attempt) / f"rank{rank}.lock"

    def stop_order(self, attempt: int) -> Path:
        """`{v, ts, who, why, term_s, kill_s}`: the shims of this attempt end their ranks (peers of a dead rank)."""
        return self.attempt_dir(attempt) / "stop.json"

    def heartbeat(self, rank: int) -> Path:
        return self.path / f"heartbeat_rank{rank}.jsonl"

    def halt_ack(self, rank: int) -> Path:
        return self.path / f"halt_ack_rank{rank}.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def training_csv(self) -> Path:
        return self.path / "training.csv"

    def archived_csv(self, attempt: int) -> Path:
        return self.path / f"training.a{attempt}.csv"

    def archived_ledger(self, attempt: int) -> Path:
        """Ledger rows that a resume cut off: steps of that attempt or older ones that were made again."""
        return self.path / f"ledger.a{attempt}.jsonl"

    @property
    def evaluations(self) -> Path:
        """A line an evaluation: `{v, step, attempt, world_size, loss, samples, tokens, seconds}`."""
        return self.path / "eval.jsonl"

    def archived_evaluations(self, attempt: int) -> Path:
        """Evaluations of steps that a resume makes again."""
        return self.path / f"eval.a{attempt}.jsonl"

    @property
    def verdict(self) -> Path:
        """`records.RunVerdict`: how a run that asks a question was answered."""
        return self.path / "verdict.json"

    # kind `parity`
    @property
    def parity_rows(self) -> Path:
        """A line a cell, appended when it was judged: with `parity_basis` the checkpoint of a parity run."""
        return self.path / "parity.jsonl"

    def archived_parity_rows(self, attempt: int) -> Path:
        """Rows of older attempts that were made with other code or on another device."""
        return self.path / f"parity.a{attempt}.jsonl"

    @property
    def parity_basis(self) -> Path:
        """What every row of `parity_rows` was made with: code, environment, seed. Rows count only with the same."""
        return self.path / "parity_basis.json"

    @property
    def parity_cell(self) -> Path:
        """The cell that is being judged, and how many attempts died in it."""
        return self.path / "parity_cell.json"

    @property
    def parity_report(self) -> Path:
        return self.path / "parity.md"

    # kind `bench`
    @property
    def bench_rows(self) -> Path:
        """A line a case, appended when it was measured: with `bench_basis` the checkpoint of a bench run."""
        return self.path / "bench.jsonl"

    def archived_bench_rows(self, attempt: int) -> Path:
        """Rows of older attempts that were measured with other code or on another device."""
        return self.path / f"bench.a{attempt}.jsonl"

    @property
    def bench_basis(self) -> Path:
        """What every row of `bench_rows` was measured with: code, environment, seed. Rows count only with the same."""
        return self.path / "bench_basis.json"

    @property
    def bench_case(self) -> Path:
        """The case that is being measured, and how many attempts died in it."""
        return self.path / "bench_case.json"

    @property
    def bench_report(self) -> Path:
        return self.path / "bench.md"

    @property
    def bench_page(self) -> Path:
        """The whole result as one page that asks the network for nothing."""
        return self.path / "bench.html"

    def bench_plot(self, suite: str) -> Path:
        return self.path / f"bench-{suite}.png"

    @property
    def thresholds(self) -> Path:
        """From which length which backend is the faster one on this GPU model, out of the rows of this run."""
        return self.path / "thresholds.json"

    # kind `decode`
    @property
    def decode_rows(self) -> Path:
        """A line a turn, appended when it was answered: with `decode_basis` the checkpoint of a decode run."""
        return self.path / "decode.jsonl"

    def archived_decode_rows(self, attempt: int) -> Path:
        """Turns of older attempts that were answered with other code, another model or elsewhere."""
        return self.path / f"decode.a{attempt}.jsonl"

    @property
    def decode_basis(self) -> Path:
        """What every row of `decode_rows` was made with: code, environment, weights, prompts, settings."""
        return self.path / "decode_basis.json"

    @property
    def decode_turn(self) -> Path:
        """The turn that is being answered, and how many attempts died in it."""
        return self.path / "decode_turn.json"

    @property
    def decode_summary(self) -> Path:
        """The figures over all turns; written last of all."""
        return self.path / "decode.json"

    @property
    def guard_log(self) -> Path:
        """`guard.jsonl`: what the memory guard of this pod does, a line each, written before it does it."""
        return self.path / "guard.jsonl"

    # logs and dumps
    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank{rank}.log"

    def shim_log(self, rank: int) -> Path:
        return self.logs / f"shim_rank{rank}.log"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    @property
    def stackdumps(self) -> Path:
        return self.path / "stackdumps"

    def stackdump(self, rank: int, now: float | None = None, *, watchdog: bool = False) -> Path:
        return self.stackdumps / f"{'watchdog_' if watchdog else ''}stackdump_rank{rank}_{utc_stamp(now)}.txt"

    def nccl_trace_stem(self, attempt: int) -> str:
        """Torch appends the rank and writes NCCL's flight recorder there: at a time-out, or when it is asked to."""
        return str(self.stackdumps / f"nccl_trace_a{attempt}_rank")

    def nccl_pipe_stem(self, attempt: int) -> str:
        """Torch appends the rank and `.pipe`: a FIFO; a byte into it asks for the trace. Not beside files that
        people open."""
        return str(self.stackdumps / "pipes" / f"a{attempt}_rank")

    # checkpoints
    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{CHECKPOINT_PREFIX}{step:08d}"

    def staged_checkpoint(self, step: int, attempt: int) -> Path:
        return self.checkpoints / f"{STAGED_PREFIX}step_{step:08d}_a{attempt}"

    def rejected_checkpoint(self, name: str, attempt: int, n: int = 0) -> Path:
        """Where `attempt` puts a damaged checkpoint `name`; n: the first number whose name is free."""
        return self.checkpoints / f"{REJECTED_PREFIX}{name}_a{attempt}{f'_{n}' if n else ''}"

    def aside_checkpoint(self, name: str, attempt: int, n: int = 0) -> Path:
        """Where a resume from an older one puts the good checkpoint `name` behind attempt `attempt`; n: as above."""
        return self.checkpoints / f"{ASIDE_PREFIX}{name}_a{attempt}{f'_{n}' if n else ''}"

    @property
    def start(self) -> Path:
        """The checkpoint of another run that this one began with, under its own name; until there is one of its own."""
        return self.path / "start"

    @property
    def staged_start(self) -> Path:
        return self.path / f"{STAGED_PREFIX}start"

    @property
    def checkpoint_trouble(self) -> Path:
        """A line for each checkpoint that was rejected, put away, or could not be saved (`contract.trouble`)."""
        return self.checkpoints / "trouble.jsonl"

    @staticmethod
    def manifest(checkpoint: Path) -> Path:
        return checkpoint / "manifest.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    def skeleton(self) -> tuple[Path, ...]:
        """Directories that exist from the first moment of a run."""
        return (self.requests, self.ranks, self.logs, self.stackdumps, self.checkpoints)


def step_of_checkpoint(name: str) -> int | None:
    """120 for `step_00000120`, None for anything else (staged directories, foreign files, another spelling)."""
    m = re.fullmatch(r"step_(\d{8,12})", name, re.ASCII)
    return int(m[1]) if m and name == RunDir(Path()).checkpoint(int(m[1])).name else None


@dataclass(frozen=True)
class OrchHome:
    """`$ORCH_HOME` (default `~/.orch`, mode 0700), on the operator's machine and on every pod."""

    path: Path

    @classmethod
    def from_env(cls, environ: dict[str, str] | None = None) -> OrchHome:
        env = os.environ if environ is None else environ
        raw = env.get("ORCH_HOME") or str(Path(env.get("HOME") or Path.home()) / ".orch")
        return cls(Path(raw).expanduser().absolute())

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def run(self, run_id: str) -> RunDir:
        """Raises ValueError for anything that is not a run id: no name leaves `runs/`."""
        run_name_of(run_id)
        return RunDir(self.runs / run_id)

    @property
    def index(self) -> Path:
        return self.path / "index.db"

    @property
    def inventory(self) -> Path:
        return self.path / "pods.yaml"

    # on the operator's side
    @property
    def mirror(self) -> Path:
        """Copies of run directories that lie on other pods, by run id."""
        return self.path / "mirror"

    def mirrored(self, run_id: str) -> RunDir:
        """Raises ValueError for anything that is not a run id."""
        run_name_of(run_id)
        return RunDir(self.mirror / run_id)

    @property
    def cache(self) -> Path:
        """What can be made again: hashes of files, wheels, builds of Python, what is known of a pod."""
        return self.path / "cache"

    @property
    def secrets(self) -> Path:
        """`{NAME: value}` (YAML, 0600): where secrets that are not in the environment are looked for."""
        return self.path / "secrets.yaml"

    @property
    def watches(self) -> Path:
        """A file an `orch watch` that was started here, by its pid: when it looked last, and at what."""
        return self.path / "watch"

    # on a pod
    @property
    def parity(self) -> Path:
        """Verdicts of parity runs, a file a suite, code and environment: what `require: [parity]` asks for."""
        return self.path / "parity"

    @property
    def tokenizers(self) -> Path:
        """Vocabularies by name, each checked against its hash before it is used (`workloads.data.vocabulary`)."""
        return self.path / "tokenizers"

    # on a pod, each by content hash
    @property
    def envs(self) -> Path:
        return self.path / "envs"

    @property
    def code_store(self) -> Path:
        return self.path / "code"

    @property
    def pythons(self) -> Path:
        """Builds of Python that orch brought: `python/<build>/bin/python3`."""
        return self.path / "python"

    # orch's own tree
    @property
    def trees(self) -> Path:
        return self.path / "orch"

    def tree(self, tree_hash: str) -> Path:
        return self.trees / tree_hash

    # keeper and Ray
    @property
    def keeper(self) -> Path:
        return self.path / "keeper"

    @property
    def keeper_lock(self) -> Path:
        return self.keeper / "keeper.lock"

    @property
    def keeper_record(self) -> Path:
        """`{v, pid, start_time, boot_id, tree, python, socket, ts}`."""
        return self.keeper / "keeper.json"

    @property
    def keeper_log(self) -> Path:
        return self.keeper / "keeper.log"

    def cluster(self, cluster_id: str) -> Path:
        """Token, record and log of one Ray cluster; Ray's own temporary directory is a short one below /tmp."""
        return self.path / "ray" / cluster_id


LEASES = Path("/var/tmp/orch-leases")
"""Machine-wide device locks, mode 1777; `ORCH_LEASES` overrides it (tests)."""


def leases_dir() -> Path:
    return Path(os.environ.get("ORCH_LEASES") or LEASES)
