"""Which files of a run directory are copied home, and how: the one allow-list, used on both sides of the wire.

Names are those of `RunDir` and nothing else; whatever is not described here (secrets, orders, code, checkpoint data,
locks, foreign files) is neither sent by a pod nor taken from one. Pure; never touches a disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workloads.contract.rundir import RunDir

STATUS, LOGS, REST = "status", "logs", "rest"
GROUPS = (STATUS, LOGS, REST)
SCOPES = {"status": (STATUS,), "logs": (STATUS, LOGS), "all": GROUPS, "no-logs": (STATUS, REST)}
MAX_WHOLE_BYTES = 4 << 20
MAX_FILE_BYTES = 1 << 40
MAX_NAME_CHARS = 400

_NUMBER, _SUITE = 90210, "anysuite"
_RUN = RunDir(Path("run"))
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True)
class Kind:
    group: str
    grows: bool  # copied by byte offset; else whole, when it was replaced


def _exactly(*paths: Path) -> str:
    """A pattern of these paths below the run directory, every number in them any number."""
    texts = (path.relative_to(_RUN.path).as_posix() for path in paths)
    return "|".join(re.escape(t).replace(str(_NUMBER), r"\d{1,9}") for t in texts)


def _any_in(folder: Path, below: str) -> str:
    return re.escape(folder.relative_to(_RUN.path).as_posix()) + "/" + below


_N = _NUMBER
_TABLE: tuple[tuple[re.Pattern[str], Kind], ...] = tuple(
    (re.compile(pattern, re.ASCII), Kind(group, grows))
    for pattern, group, grows in (
        (_exactly(_RUN.events, _RUN.heartbeat(_N), _RUN.parity_rows, _RUN.bench_rows, _RUN.decode_rows), STATUS, True),
        (_exactly(_RUN.checkpoint_trouble), STATUS, True),
        (
            _exactly(
                _RUN.status, _RUN.run_json, _RUN.resolved_config, _RUN.env_json, _RUN.epoch, _RUN.submissions,
                _RUN.halt, _RUN.archived_halt(_N), _RUN.anomaly_type, _RUN.halt_ack(_N),
                _RUN.rank_record(_N, _N), _RUN.stop_order(_N), _RUN.attempt_job(_N), _RUN.verdict,
                _RUN.parity_basis, _RUN.parity_cell,
                _RUN.bench_basis, _RUN.bench_case, _RUN.thresholds, _RUN.decode_basis, _RUN.decode_turn,
                _RUN.decode_summary,
            ),
            STATUS, False,
        ),
        (_any_in(_RUN.requests, r"\d{8}T\d{6}Z-[a-z]{1,16}-[0-9a-z]{1,32}(\.ack)?\.json"), STATUS, False),
        (_any_in(_RUN.checkpoints, r"step_\d{8,12}/" + re.escape(RunDir.manifest(Path()).name)), STATUS, False),
        (
            _exactly(
                _RUN.rank_log(_N), _RUN.shim_log(_N), _RUN.supervisor_log, _RUN.training_csv, _RUN.archived_csv(_N)
            ),
            LOGS, True,
        ),
        (_exactly(_RUN.parity_report, _RUN.bench_report, _RUN.bench_page), REST, False),
        (_exactly(_RUN.bench_plot(_SUITE)).replace(_SUITE, r"[a-z][a-z-]{0,30}"), REST, False),
        (
            _exactly(
                _RUN.ledger, _RUN.archived_ledger(_N), _RUN.evaluations, _RUN.archived_evaluations(_N),
                _RUN.archived_parity_rows(_N), _RUN.archived_bench_rows(_N),
                _RUN.archived_decode_rows(_N), _RUN.code_diff,
            ),
            REST, True,
        ),
        (_any_in(_RUN.stackdumps, _WORD), REST, True),
        (_any_in(_RUN.tensorboard, rf"({_WORD}/){{0,3}}{_WORD}"), REST, True),
    )
)  # fmt: skip


@lru_cache(maxsize=8192)
def kind_of(name: str) -> Kind | None:
    """How the file `name` (relative, with `/`) is copied; None when it is not."""
    if len(name) > MAX_NAME_CHARS or ".." in name:
        return None
    return next((kind for pattern, kind in _TABLE if pattern.fullmatch(name)), None)


def name_in(run: RunDir, path: Path) -> str:
    """The name of a path of `run`, as it is told over the wire."""
    return path.relative_to(run.path).as_posix()


def folders(groups: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(folder below the run directory, how many levels deep) in which files of these groups can lie."""
    there = {STATUS: ((_RUN.requests, 0), (_RUN.ranks, 1), (_RUN.checkpoints, 1)), LOGS: ((_RUN.logs, 0),)}
    rest = ((_RUN.stackdumps, 0), (_RUN.tensorboard, 3))
    found = [item for group in groups for item in (rest if group == REST else there.get(group, ()))]
    return tuple((path.relative_to(_RUN.path).as_posix(), depth) for path, depth in found)
