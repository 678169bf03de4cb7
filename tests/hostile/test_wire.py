"""A process that does not keep to the protocol: cut, slow, endless or odd frames cost a bound and end in one block."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pods.pod import MAX_NOISE_BYTES, FarPod
from pods.remote.wire import GREETING, MAX_DATA_BYTES, MAX_JSON_BYTES, VERSION, FrameError, error_of, pack, unpack
from pods.transport.base import Process
from tests.hostile.corpus import ALL_ESCAPES, ODD, harm_in
from tests.mirror.liar import Liar
from workloads.contract.errors import OrchError, RemoteError, UnreachableError

HELLO = f"{GREETING} {VERSION}\n".encode() + pack({"v": VERSION, "home": "/root/.orch"})
Chunks = Callable[[], Iterator[bytes]]


class Says:
    """A process that says these bytes, in these pieces, and then nothing or its end."""

    def __init__(self, chunks: Iterator[bytes], pause_s: float = 0.0, ends: bool = True) -> None:
        self.chunks, self.pause_s, self.ends = chunks, pause_s, ends

    def write(self, data: bytes, *, timeout_s: float) -> None:
        return

    def read(self, *, timeout_s: float) -> bytes:
        if self.pause_s > timeout_s:
            time.sleep(timeout_s)
            raise UnreachableError("E-POD-001", "it says nothing")
        time.sleep(self.pause_s)
        chunk = next(self.chunks, b"")
        if not chunk and not self.ends:
            raise UnreachableError("E-POD-001", "it says nothing")
        return chunk

    def stderr(self) -> str:
        return ALL_ESCAPES

    def close(self) -> None:
        return


class Talks(Liar):
    def __init__(self, make: Callable[[], Says]) -> None:
        self.make = make

    def start(self, argv: Sequence[str], *, timeout_s: float) -> Process:
        return self.make()


def pod(make: Callable[[], Says]) -> FarPod:
    return FarPod("liar", Talks(make))


def said(*parts: bytes, pause_s: float = 0.0) -> FarPod:
    return pod(lambda: Says(iter(parts), pause_s))


def told(pod: FarPod, timeout_s: float = 5.0) -> OrchError:
    with pytest.raises(OrchError) as caught:
        pod.call("runs.keeper", timeout_s=timeout_s)
    assert not harm_in(caught.value.render()) and not harm_in(json.dumps(caught.value.as_dict()))
    assert len(caught.value.render()) < 4000
    return caught.value


@given(st.lists(st.integers(1, 400), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_frame_cut_anywhere_is_the_same_frame(sizes: list[int]) -> None:
    whole = b"Welcome to the pod!\r\n" + HELLO + pack({"ok": True, "fields": {"a": "b" * 50}}, b"d" * 900)
    parts, rest = [], whole
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    answer = said(*[p for p in (*parts, rest) if p]).call("x.y")
    assert (answer.fields, answer.data) == ({"a": "b" * 50}, b"d" * 900)


@pytest.mark.parametrize("end", range(1, len(pack({"ok": True, "fields": {}})), 5))
def test_a_frame_without_its_end(end: int) -> None:
    assert told(said(HELLO, pack({"ok": True, "fields": {}})[:end])).code == "E-POD-024"


def test_a_slow_drip_costs_the_bound_and_no_more() -> None:
    frame = pack({"ok": True, "fields": {"a": "b" * 5000}})
    dripping = pod(lambda: Says(iter([HELLO, *(frame[i : i + 1] for i in range(len(frame)))]), 0.01))
    began = time.monotonic()
    assert isinstance(told(dripping, timeout_s=0.5), UnreachableError)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "head",
    [
        struct.pack(">II", MAX_JSON_BYTES + 1, 0), struct.pack(">II", 2, MAX_DATA_BYTES + 1),
        b"\xff" * 8, struct.pack(">II", 4, 0) + b"\xff\xfe\x00\x01", struct.pack(">II", 6, 0) + b'"text"',
    ],
)  # fmt: skip
def test_heads_that_are_none(head: bytes) -> None:
    assert told(said(HELLO, head)).code == "E-POD-025"


@pytest.mark.parametrize("text", ["[" * 5_000_000, '{"a":' * 200_000, "1" * 1_000_000, '{"z": 99}', "", "nul", "{}{}"])
def test_json_that_is_none(text: str) -> None:
    began = time.process_time()
    error = told(said(HELLO, struct.pack(">II", len(text), 0) + text.encode()))
    assert error.code in ("E-POD-025", "E-POD-010") and time.process_time() - began < 5.0


def test_a_bomb_is_not_inflated() -> None:
    import zlib

    bomb = zlib.compress(b"\0" * (256 << 20), 9)
    for size in (1 << 20, 1 << 40, -1, 10**400, 1.5, None, "1", True):
        text = json.dumps({"ok": True, "fields": {}, "z": size}).encode()
        frame = struct.pack(">II", len(text), len(bomb)) + text + bomb
        if size is None:
            continue
        assert told(said(HELLO, frame)).code == "E-POD-025"


def test_endless_noise_before_the_greeting() -> None:
    def noise() -> Iterator[bytes]:
        while True:
            yield b"\x1b[2J" * 10_000

    began = time.monotonic()
    assert told(pod(lambda: Says(noise()))).code == "E-POD-023"
    assert time.monotonic() - began < 30 and MAX_NOISE_BYTES <= 1 << 20


@pytest.mark.parametrize(
    "line",
    [
        "ORCH-NEEDS", "ORCH-NEEDS ", "ORCH-NEEDS x", "ORCH-NEEDS bundle", "ORCH-NEEDS python relative",
        f"ORCH-NEEDS {ALL_ESCAPES!r} /x", f"{GREETING} {VERSION + 1}", f"{GREETING} \x1b[2J", GREETING,
        f"{GREETING} {'9' * 5000}", "ORCH-NEEDS bundle /endless",
    ],
)  # fmt: skip
def test_first_lines_that_are_none(line: str) -> None:
    assert told(said(line.encode() + b"\n")).exit_code in (4, 7)


@pytest.mark.parametrize("home", [None, "", "relative", 3, [], "/a\0b", True])
def test_a_home_that_is_none(home: Any) -> None:
    hello = {"v": VERSION} | ({} if home is None else {"home": home})
    assert told(said(f"{GREETING} {VERSION}\n".encode() + pack(hello))).code in ("E-POD-026", "E-POD-027")


@pytest.mark.parametrize("key", ["kind", "code", "what", "where", "value", "expected", "did_you_mean", "fix"])
@pytest.mark.parametrize("odd", ODD)
def test_every_field_of_an_error(key: str, odd: str) -> None:
    row = {"kind": "RemoteError", "code": "E-RUN-001", "what": "x", "where": "x", "fix": "x", key: ODD[odd]}
    began = time.process_time()
    error = error_of(row, "box")
    text = error.render()
    assert not harm_in(text) and len(text) < 3000 and text.count("error[") - str(ODD[odd]).count("error[") <= 1
    assert len([line for line in text.splitlines() if line.startswith("error[")]) == 1
    json.dumps(error.as_dict(), allow_nan=False)
    assert len(json.dumps(error.as_dict())) < 50_000 and time.process_time() - began < 1.0


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_frame_or_none(data: bytes) -> None:
    rest = data

    def take(count: int) -> bytes:
        nonlocal rest
        if count > len(rest):
            raise EOFError
        got, rest = rest[:count], rest[count:]
        return got

    try:
        message, _ = unpack(take)
    except (FrameError, EOFError):
        return
    assert isinstance(message, dict)


def test_an_error_that_is_none_is_an_error() -> None:
    for row in (None, 3, [], "x", {}):
        assert isinstance(error_of(row, "box"), RemoteError)
