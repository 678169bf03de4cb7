"""The epoch fence: a rank of an older attempt must not commit anything. Standard library only.

`epoch` in the run directory is a decimal integer, the newest attempt that may commit; the supervisor writes it.
"""

from __future__ import annotations

from workloads.contract.files import read_bytes_bounded
from workloads.runtime.rankenv import RankEnv


class StaleEpochError(Exception):
    """A newer attempt owns the run: exit with `RankExit.STALE_EPOCH`."""

    def __init__(self, mine: int, newest: int) -> None:
        super().__init__(f"attempt {newest} owns the run, this is attempt {mine}: nothing is committed")
        self.mine, self.newest = mine, newest


def newest_epoch(env: RankEnv) -> int | None:
    """None when there is no readable epoch: a run started by hand has no fence."""
    try:
        raw = read_bytes_bounded(env.run.epoch, 64)
    except (OSError, ValueError):
        return None
    text = raw.strip()
    return int(text) if text.isdigit() else None


def check_epoch(env: RankEnv) -> None:
    """Raise StaleEpochError when a newer attempt may commit."""
    newest = newest_epoch(env)
    if newest is not None and newest > env.epoch:
        raise StaleEpochError(env.epoch, newest)
