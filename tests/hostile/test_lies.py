"""One lie at a time, in the places of every answer: the command ends in an answer or one block, and shows no escape.

What the pod says otherwise is true, so that each lie gets as far as it can. The default takes a small sample;
`make test-long` takes every place, of a long answer one in some, which are others for each command, with one value;
`make proofs` takes all places with two values (with all values where an answer is short), by a fixed seed.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hostile.conftest import Said, Stage, must_be_good, strict_json
from tests.hostile.corpus import ODD
from tests.hostile.twist import Lie, Path_, changed, leaves

COMMANDS = [
    ("status",), ("status", "--json"), ("status", "{run}"), ("status", "{run}", "--json"), ("runs", "--from", "box"),
    ("runs", "--from", "box", "--json"), ("logs", "{run}"), ("logs", "{run}", "--errors"), ("logs", "{run}", "--json"),
    ("dump", "{run}"), ("dump", "{run}", "--json"), ("halt", "{run}", "--no-wait"), ("resume", "{run}"),
    ("pull", "{run}"), ("down", "box"), ("down", "box", "--json"), ("pods", "gc", "box", "--dry-run"),
    ("pods", "gc", "box", "--dry-run", "--json"), ("pods", "pull", "box", "{there}/runs", "{out}"),
    ("dashboard", "box", "--json"), ("pods", "push", "box", "/etc/passwd", "{there}/x"),
    ("launch", "--dry-run", "--pod", "box", "--", "true"), ("launch", "--pod", "box", "--", "true"),
    ("launch", "--dry-run", "--json", "--pod", "box", "--", "true"),
]  # fmt: skip
SAMPLE, AT_LEAST, AT_MOST = 2, 20, 30
WHOLE = pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.proof)], ids=["", "whole"])
Place = tuple[str, Path_]


def places(said: Said) -> list[Place]:
    """Everything in every answer that the pod gave, each once."""
    found = {(op, at): None for op, answers in said.heard.items() for fields in answers for at in leaves(fields)}
    return list(found)


def check(stage: Stage, command: tuple[str, ...], lie: Lie, what: str) -> None:
    what = f"{' '.join(command)}: {what} at {lie.op} {list(lie.at)}"
    try:
        said = stage.say(*command, lie=lie)
    except Exception as e:
        raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e
    must_be_good(said, what)
    if "--json" in command:
        assert said.out.count("\n") == 1 and strict_json(said.out)["v"] == 1, f"{what}: {said.out[:300]}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_some_lies(stage: Stage, command: tuple[str, ...]) -> None:
    honest = stage.say(*command)
    must_be_good(honest, command)
    rng = random.Random(zlib.crc32(" ".join(command).encode()))
    where = places(honest)
    assert any(op != "hello" for op, _ in where), "the pod was asked"
    for _ in range(SAMPLE):
        (op, at), what = rng.choice(where), rng.choice(list(ODD))
        check(stage, command, Lie(op, at, ODD[what]), what)


def values(i: int, places: int, command: tuple[str, ...], rng: random.Random, *, whole: bool) -> list[str]:
    """What is said in the i-th of so many places."""
    if whole:
        return list(ODD) if places < 20 else [list(ODD)[i % len(ODD)], *rng.sample(list(ODD), 1)]
    first, one_in = i + zlib.crc32(" ".join(command).encode()), -(-places // AT_MOST)
    if first % one_in:
        return []
    return [list(ODD)[(first // one_in + k * places) % len(ODD)] for k in range(-(-AT_LEAST // places))]


@WHOLE
@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_lie(stage: Stage, command: tuple[str, ...], whole: bool) -> None:
    where = places(stage.say(*command))
    rng = random.Random(7)
    wrong = []
    for i, (op, at) in enumerate(where):
        for what in values(i, len(where), command, rng, whole=whole):
            try:
                check(stage, command, Lie(op, at, ODD[what]), what)
            except AssertionError as e:
                wrong.append(str(e)[:1200])
    assert not wrong, f"{len(wrong)} lies did harm\n" + "\n".join(wrong[:12])


def documents(stage: Stage) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(path, row) of every JSON document of the running run; of a file of lines its last."""
    run = stage.runs["running"].run
    for path in sorted(p for p in run.path.rglob("*.json*") if p.is_file()):
        yield path, json.loads(path.read_text().splitlines()[-1])


READERS = [
    ("status", "{run}"), ("status",), ("status", "{run}", "--json"), ("logs", "{run}", "--errors"), ("dump", "{run}"),
    ("halt", "{run}", "--no-wait"), ("pull", "{run}"),
]  # fmt: skip


def check_file(stage: Stage, command: tuple[str, ...], path: Any, row: dict[str, Any], at: Path_, what: str) -> None:
    before = path.read_bytes()
    text = json.dumps(changed(row, at, ODD[what])) + "\n"
    path.write_text((before.decode() if path.suffix == ".jsonl" else "") + text)
    try:
        check(stage, command, Lie(), f"{what} in {path.name} {list(at)}")
    finally:
        path.write_bytes(before)


def test_some_files_that_lie(stage: Stage) -> None:
    """What a program on the pod wrote into a run directory, or the host did."""
    rng = random.Random(11)
    where = [(path, row, at) for path, row in documents(stage) for at in leaves(row)]
    assert {p.name for p, _, _ in where} >= {"status.json", "run.json", "events.jsonl", "heartbeat_rank0.jsonl"}
    for i in range(20):
        path, row, at = rng.choice(where)
        check_file(stage, READERS[i % len(READERS)], path, row, at, rng.choice(list(ODD)))


@WHOLE
@pytest.mark.long
@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_every_file_that_lies(stage: Stage, command: tuple[str, ...], whole: bool) -> None:
    rng, wrong = random.Random(13 if whole else zlib.crc32(" ".join(command).encode())), []
    where = [(path, row, at) for path, row in documents(stage) for at in leaves(row)]
    for path, row, at in where if whole else rng.sample(where, min(AT_MOST, len(where))):
        for what in rng.sample(list(ODD), 2 if whole else 1):
            try:
                check_file(stage, command, path, row, at, what)
            except AssertionError as e:
                wrong.append(str(e)[:1200])
    assert not wrong, f"{len(wrong)} lies did harm\n" + "\n".join(wrong[:12])
