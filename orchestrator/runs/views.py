"""What is known of a run at one moment, read from its directory and nothing else.

`snapshot` reads files, asks /proc whether a process lives, and computes the words that no file holds ("running,
unsupervised since ..."). Of a run on another machine it reads the copy, and takes what only that machine can say from
a `Sight`. It writes nothing, locks nothing and waits for nothing. Used by status, follow, halt and dump.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.health import Verdict, judge
from orchestrator.runs.reading import record_of
from orchestrator.runs.render import brief, clock
from workloads.contract.beats import Beat, BeatReader
from workloads.contract.files import try_read_json
from workloads.contract.jobchanges import job_of
from workloads.contract.process import ProcId, boot_id
from workloads.contract.records import RankRecord, Status, as_wire
from workloads.contract.rundir import OrchHome, RunDir, step_of_checkpoint
from workloads.contract.states import ENDED, Phase, RankHealth, RunState

BEATS_TAIL_BYTES = 32 << 10
MAX_RANKS = 4096
_STATES = frozenset(RunState)
UNKNOWN = "unknown"
NOT_STARTED = "submitted; the supervisor has not started yet"


AWAY_S = 15.0  # a supervisor writes its status every second, and a shared disk may show it some seconds late
FORGOTTEN = "not in the inventory"


@dataclass(frozen=True)
class Sight:
    """What the machine of a run said of it, and when: for a run that is looked at from elsewhere."""

    pod: str
    path: str  # of the run directory there, for people
    seen: float  # Unix seconds of this machine
    here_now: float
    reachable: bool | None  # None: it was not asked
    missing: bool  # it was asked, and has no such run any more
    observed: dict[str, Any]
    trouble: str = "unreachable"  # or `refused`: it was reached, and must not or would not be asked; or `FORGOTTEN`

    @property
    def words(self) -> str:
        """What has to be said beside the state; empty when the pod was asked just now."""
        last = clock(self.seen) if self.seen else "never"
        if self.missing:
            return f"gone from pod {self.pod}; copy of {last}"
        if self.reachable is None:
            return f"from the copy of {last}"
        if self.reachable:
            return ""
        since = "" if self.trouble == FORGOTTEN else f" {brief(self.age_s)}"
        return f"pod {self.pod} {self.trouble}{since}; last seen {last}"

    @property
    def age_s(self) -> float | None:
        return max(self.here_now - self.seen, 0.0) if self.seen else None


@dataclass(frozen=True)
class RankView:
    rank: int
    pod: str
    verdict: Verdict
    record: RankRecord | None
    beats: tuple[Beat, ...]  # the newest ones of this attempt, oldest first

    @property
    def health(self) -> RankHealth:
        return self.verdict.health

    @property
    def ended(self) -> bool:
        return self.record is not None and (self.record.ended is not None or self.record.pid is None)


@dataclass(frozen=True)
class RunView:
    run: RunDir
    now: float
    info: dict[str, Any]  # run.json; {} when it cannot be read
    status: Status | None
    ranks: tuple[RankView, ...]
    supervised: bool
    asleep: str | None  # without a supervisor: what the keeper is doing, or what keeps it from its work
    halt_asked: bool
    checkpoint: int | None  # step of the newest checkpoint that has a manifest (not verified here)
    sight: Sight | None = None  # None: the run lies on this machine
    elsewhere: bool = False  # its directory is here, and its supervisor lives on another machine that shares it

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.run.run_id.rsplit("-", 2)[0])

    @property
    def state(self) -> str:
        """As written by the supervisor; `queued` before it wrote anything; `unknown` when nothing was ever seen."""
        if self.status is None and self.sight is not None and not self.sight.seen:
            return UNKNOWN
        return self.status.state if self.status else RunState.QUEUED.value

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def reason(self) -> str:
        if self.state == UNKNOWN:
            return ""
        if self.status is None:
            return NOT_STARTED + (f" ({self.asleep})" if self.asleep else "")
        if self.asleep and not self.ended and not self.supervised:
            return f"{self.status.reason}; {self.asleep}" if self.status.reason else self.asleep
        return self.status.reason

    @property
    def findings(self) -> int:
        """Open findings of health, as its supervisor told."""
        return 0 if self.status is None or self.ended else self.status.findings or 0

    @property
    def stale_s(self) -> float | None:
        """Seconds since what is told here was seen, where its pod was not asked just now; None where it was."""
        if self.sight is None or self.sight.reachable is True:
            return None
        return self.sight.age_s or 0.0

    @property
    def over(self) -> bool:
        """It has ended, and that is no old news: a copy may tell of an end after which the run was resumed."""
        return self.ended and (self.sight is None or self.sight.reachable is True)

    @property
    def words(self) -> str:
        """The state with what a file alone cannot say."""
        told = self.state
        if self.status is not None and not self.ended and not self.supervised:
            told += f", unsupervised {brief(self.now - self.status.ts)}"
        beside = self.sight.words if self.sight else "looked after on another machine" if self.elsewhere else ""
        return f"{told} ({beside})" if beside else told

    @property
    def attempt(self) -> int | None:
        return self.status.attempt if self.status else None

    def figure(self, name: str) -> Any:
        """step, steps, loss or toks_per_s: from the newest beat that has it, else as the supervisor wrote it, or None.

        Of the lowest rank that tells it. A keepalive beat repeats the step and nothing else: older ones are asked too.
        """
        told = (b.get(name) for r in self.ranks for b in reversed(r.beats))
        return next((value for value in told if value is not None), getattr(self.status, name, None))

    @property
    def stand_in(self) -> str:
        """`TRAINS ON synthetic (rank 0), NOT ON hub` where a fallback took the place of the job's data, else ""."""
        job = self.info.get("job")
        data = job.get("data") if isinstance(job, dict) else None
        asked = data.get("source") if isinstance(data, dict) else None
        if asked not in ("jsonl", "parquet", "hub") or self.ended:
            return ""
        found: dict[str, list[str]] = {}
        for r in self.ranks:
            told = next((b.get("data_source") for b in reversed(r.beats) if b.get("data_source")), asked)
            if told != asked:
                found.setdefault(str(told), []).append(str(r.rank))
        who = "; ".join(f"{told} (rank{'s' * (len(ranks) > 1)} {', '.join(ranks)})" for told, ranks in found.items())
        return f"TRAINS ON {who}, NOT ON {asked}" if who else ""

    @property
    def last_beat_age_s(self) -> float | None:
        """Seconds since the newest beat of the rank that has been silent longest."""
        newest = [r.beats[-1].ts for r in self.ranks if r.beats]
        return max(self.now - min(newest), 0.0) if newest else None

    @property
    def exit_codes(self) -> dict[str, int]:
        """Rank to exit code; death by a signal as its negative."""
        if self.status and self.status.exit_codes:
            return dict(self.status.exit_codes)
        ended = {str(r.rank): r.record for r in self.ranks if r.record and r.record.ended is not None}
        codes = {k: -rec.signal if rec.signal else rec.exit_code for k, rec in ended.items()}
        return {k: code for k, code in codes.items() if code is not None}

    @property
    def pods(self) -> list[str]:
        named = [str(p.get("name")) for p in _pods(self.info)]
        return named or (list(self.status.pods) if self.status else [])

    @property
    def world_size(self) -> int:
        return world_size_of(self.info)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at the pace of the newest beats."""
        step, steps = self.figure("step"), self.figure("steps")
        beats = next((r.beats for r in self.ranks if r.beats), ())
        done = [(b.ts, b.get("step")) for b in beats if b.msg == Phase.PROGRESS and b.get("step") is not None]
        if self.ended or not steps or step is None or len(done) < 2 or done[-1][1] <= done[0][1]:
            return None
        pace = (done[-1][0] - done[0][0]) / (done[-1][1] - done[0][1])
        return float(max(steps - step, 0) * pace)

    def as_json(self) -> dict[str, Any]:
        """One element of `runs` in `orch status --json`; every key always present."""
        return {
            "run": self.run.run_id,
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "attempt": self.attempt,
            "step": self.figure("step"),
            "steps": self.figure("steps"),
            "loss": _finite(self.figure("loss")),
            "toks_per_s": _finite(self.figure("toks_per_s")),
            "pods": self.pods,
            "last_beat_age_s": None if self.last_beat_age_s is None else round(self.last_beat_age_s, 3),
            "exit_codes": self.exit_codes,
            "pod_reachable": True if self.sight is None else self.sight.reachable,
            "seen_age_s": 0.0 if self.sight is None else _rounded(self.sight.age_s),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a loss that is none is told as its name."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def home_of(run: RunDir) -> OrchHome:
    return OrchHome(run.path.parents[1])


def snapshot(run: RunDir, now: float, sight: Sight | None = None) -> RunView:
    """Everything known of `run` at Unix time `now`. Torn, missing and foreign files count as absent.

    With a `sight`, `run` is a copy and `now` a moment of the clock of the machine where the run lies.
    """
    info = try_read_json(run.run_json) or {}
    status = read_status(run)
    attempt = status.attempt if status else _newest_attempt(run)
    if "job" in info:
        info = info | {"job": job_of(run, attempt, info)}
    world = world_size_of(info)
    pod_of = _pods_by_rank(info)
    elsewhere = sight is None and _elsewhere(status, now)
    eyes = _here(status if elsewhere else None) if sight is None else _there(sight)
    ranks = tuple(_rank(run, attempt, k, pod_of.get(k, "-"), now, eyes) for k in range(world)) if attempt else ()
    if sight is None:
        supervised = elsewhere or _lives(status.supervisor if status else None)
        asleep = None if supervised or (status and status.state in ENDED) else _asleep(run, status, now)
    else:
        supervised, asleep = sight.observed.get("supervised") is True, sight.observed.get("asleep")
    return RunView(
        run=run,
        now=now,
        info=info,
        status=status,
        ranks=ranks,
        supervised=supervised,
        asleep=asleep,
        halt_asked=run.halt.is_file() and not run.halt.is_symlink(),
        checkpoint=newest_checkpoint(run),
        sight=sight,
        elsewhere=elsewhere,
    )


def world_size_of(info: dict[str, Any]) -> int:
    """Ranks of the run, by its run.json; 0 when that says nothing sensible, and never more than can be shown."""
    told = info.get("world_size")
    return min(max(told, 0), MAX_RANKS) if type(told) is int else 0


def secret_names(run: RunDir) -> list[str]:
    """Names of the secrets that the job asked for."""
    job = (try_read_json(run.run_json) or {}).get("job")
    names = job.get("secrets") if isinstance(job, dict) else None
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def read_status(run: RunDir) -> Status | None:
    row = try_read_json(run.status)
    status = record_of(Status, row) if row is not None else None
    return status if status is not None and status.state in _STATES else None


def state_of(run: RunDir) -> str:
    """The state alone: cheap, for lists of hundreds of runs."""
    status = read_status(run)
    return status.state if status else RunState.QUEUED.value


def _newest_attempt(run: RunDir) -> int:
    try:
        names = [p.name for p in run.ranks.iterdir()]
    except OSError:
        return 0
    return max((int(n[1:]) for n in names if n.startswith("a") and n[1:].isdigit()), default=0)


def _pods_by_rank(info: dict[str, Any]) -> dict[int, str]:
    named = ((str(p.get("name")), p.get("ranks")) for p in _pods(info))
    return {k: name for name, ranks in named if isinstance(ranks, list) for k in ranks if isinstance(k, int)}


def _pods(info: dict[str, Any]) -> list[dict[str, Any]]:
    pods = info.get("pods")
    return [p for p in pods if isinstance(p, dict)] if isinstance(pods, list) else []


_Eyes = Callable[[RankRecord | None], tuple[bool | None, bool]]
"""Whether the very process of a rank lives (None: that cannot be told), and whether it is in state T."""


def _rank(run: RunDir, attempt: int, rank: int, pod: str, now: float, eyes: _Eyes) -> RankView:
    record = read_record(run, attempt, rank)
    beats = tuple(b for b in tail_beats(run, rank) if b.attempt == attempt)
    alive, frozen = eyes(record)
    return RankView(rank, pod, judge(record, alive, beats, now, frozen=frozen), record, beats)


def read_record(run: RunDir, attempt: int, rank: int) -> RankRecord | None:
    row = try_read_json(run.rank_record(attempt, rank))
    return None if row is None else record_of(RankRecord, row)


def tail_beats(run: RunDir, rank: int, keep_bytes: int = BEATS_TAIL_BYTES) -> list[Beat]:
    reader = BeatReader(run.heartbeat(rank), rank)
    reader.skip_to_tail(keep_bytes)
    return reader.read()


def _elsewhere(status: Status | None, now: float) -> bool:
    """Whether another machine that shares this directory looks after the run: a supervisor of another boot wrote its
    status a moment ago, since this machine was booted. One of this machine before a reboot cannot have."""
    boot = (status.supervisor or {}).get("boot_id") if status else None
    if status is None or status.state in ENDED or not isinstance(boot, str) or boot == boot_id():
        return False
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return abs(now - status.ts) <= AWAY_S and status.ts > booted


def _here(away: Status | None) -> _Eyes:
    """`away`: the status of a supervisor on another machine; only that machine can say what its processes do."""
    theirs = (away.supervisor or {}).get("boot_id") if away else None

    def look(record: RankRecord | None) -> tuple[bool | None, bool]:
        if record is None or record.pid is None or record.start_time is None or record.ended is not None:
            return None, False
        if record.boot_id != boot_id() and (record.pod != "local" or record.boot_id == theirs):
            return None, False
        state = ProcId(record.pid, record.start_time, record.boot_id).state()
        return state is not None, state in ("T", "t")

    return look


def _there(sight: Sight) -> _Eyes:
    alive, frozen = sight.observed.get("alive") or {}, sight.observed.get("frozen") or []

    def look(record: RankRecord | None) -> tuple[bool | None, bool]:
        if record is None or record.ended is not None:
            return None, False
        return alive.get(str(record.rank)), record.rank in frozen

    return look


def _lives(supervisor: dict[str, Any] | None) -> bool:
    try:
        return (
            supervisor is not None
            and ProcId(int(supervisor["pid"]), int(supervisor["start_time"]), str(supervisor["boot_id"])).alive()
        )
    except (KeyError, TypeError, ValueError):
        return False


def _asleep(run: RunDir, status: Status | None, now: float) -> str | None:
    from pods.remote.observe import asleep

    return asleep(home_of(run), run, as_wire(status) if status else None, now)


def newest_checkpoint(run: RunDir) -> int | None:
    """Step of the newest checkpoint with a manifest. It is not verified here."""
    try:
        paths = list(run.checkpoints.iterdir())
    except OSError:
        return None
    steps = {step: p for p in paths if (step := step_of_checkpoint(p.name)) is not None}
    return next((s for s in sorted(steps, reverse=True) if run.manifest(steps[s]).exists()), None)


def first_dead(ranks: Sequence[RankView]) -> RankView | None:
    """The rank of this attempt that ended first and badly: where to look for the cause."""
    dead = [r for r in ranks if r.health is RankHealth.DEAD]
    return min(dead, key=lambda r: r.record.ended if r.record and r.record.ended else float("inf"), default=None)
