"""One process of a pod asks the hub; the others read its answer, or its failure, and take over when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.data.hubserver import COMMIT, REPO, serving, write_repository
from workloads.data import asked
from workloads.data.asked import OncePerPod
from workloads.data.blocks import SourceGone

OPEN = """
import json, sys
from workloads.contract.config.job import DataSpec
from workloads.data.opening import open_source, preload
data = DataSpec.model_validate_json(sys.argv[1])
preload(data)
print(open_source(data).fingerprint, open_source(data).blocks)
"""
HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def contended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once somebody found the lock held."""
    seen, taken = threading.Event(), asked._taken

    def looked(fd: int) -> bool:
        got = taken(fd)
        if not got:
            seen.set()
        return got

    monkeypatch.setattr(asked, "_taken", looked)
    return seen


def once(folder: Path, wait_s: float = 120.0) -> OncePerPod:
    return OncePerPod(["http://hub", "own/pages", COMMIT], "hub", wait_s, folder)


def test_four_processes_ask_once(tmp_path: Path) -> None:
    """For the listing, and for each file's footer."""
    row = f'{{"source": "hub", "dataset": {{"repo": "{REPO}", "config": "sample", "revision": "{COMMIT}"}}}}'
    with serving(write_repository(tmp_path / "r")) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        ranks = [
            subprocess.Popen([sys.executable, "-c", OPEN, row], env=env, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        told = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4 and len(set(told)) == 1 and told[0]
    asked_for = [r.split()[0].rpartition("/")[2] for r in sorted(hub.requests) if REPO in r]
    assert asked_for == [COMMIT, "part0.parquet", "part1.parquet"]


def test_one_that_dies_while_it_asks_is_followed_by_the_next(tmp_path: Path, contended: threading.Event) -> None:
    lock = once(tmp_path)._path(["listing"]).with_suffix(".lock")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.append(once(tmp_path).ask(["listing"], lambda: "mine", str)))
    waiter.start()
    assert contended.wait(60) and not answers
    holder.kill()
    holder.communicate()
    waiter.join(60)
    assert answers == ["mine"]
    assert once(tmp_path).ask(["listing"], lambda: "again", str) == "mine"


def test_who_waited_hears_of_the_failure_and_does_not_ask(tmp_path: Path, contended: threading.Event) -> None:
    asks: list[str] = []

    def fail() -> str:
        asks.append("one")
        assert contended.wait(60)
        raise SourceGone("hub", "HTTP status 429")

    def waits() -> None:
        try:
            once(tmp_path).ask(["listing"], lambda: asks.append("two"), str)
        except SourceGone as e:
            asks.append(e.why)

    def begins() -> None:
        with pytest.raises(SourceGone):
            once(tmp_path).ask(["listing"], fail, str)

    first = threading.Thread(target=begins)
    first.start()
    while not asks:
        contended.wait(0.01)
    second = threading.Thread(target=waits)
    second.start()
    first.join(120)
    second.join(120)
    assert asks == ["one", "HTTP status 429 (asked by another process of this pod)"]
    assert once(tmp_path).ask(["listing"], lambda: "later", str) == "later"


def test_whoever_waits_too_long_or_cannot_write_asks_himself(
    tmp_path: Path, contended: threading.Event, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask() -> str:
        return once(tmp_path, 0.0).ask(["listing"], lambda: "inner", str)

    assert once(tmp_path).ask(["listing"], lambda: ask() + " and outer", str) == "inner and outer"
    assert contended.is_set() and "has been asking for more than 0 s" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert once(tmp_path / "file").ask(["listing"], lambda: "mine", str) == "mine"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"v": 1, "about": ["other"], "answer": 1}', b"[" * 10_000])
def test_an_answer_that_is_damaged_is_asked_for_again(tmp_path: Path, damage: bytes) -> None:
    path = once(tmp_path)._path(["listing"])
    assert once(tmp_path).ask(["listing"], lambda: 5, int) == 5
    path.write_bytes(damage)
    assert once(tmp_path).ask(["listing"], lambda: 6, int) == 6
    assert once(tmp_path).ask(["listing"], lambda: 7, int) == 6
