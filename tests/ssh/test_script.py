"""Marks in streams: output told from noise however the bytes are cut; refusals before anything is sent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.transport.script import MAX_NOISE_BYTES, Stream, login_line, run_script, start_script
from workloads.contract.errors import RemoteError, UsageError

MARK = "orch-0123"


@given(noise=st.binary(max_size=60), output=st.binary(max_size=200), cuts=st.lists(st.integers(1, 9), max_size=40))
def test_output_is_what_is_between_the_marks_however_it_is_cut(noise: bytes, output: bytes, cuts: list[int]) -> None:
    raw = noise + f"\n{MARK}\n".encode() + output + f"\n{MARK}. 3\n".encode() + b"later"
    stream = Stream(MARK, "box")
    for size in [*cuts, len(raw)]:
        stream.feed(raw[:size])
        raw = raw[size:]
    assert (bytes(stream.output), stream.exit_code) == (output, 3)


def test_output_beyond_the_bound_is_dropped_and_the_end_still_seen() -> None:
    stream = Stream(MARK, "box", limit=100)
    stream.feed(f"\n{MARK}\n".encode())
    for _ in range(50):
        stream.feed(b"x" * 1000)
    stream.feed(f"\n{MARK}. 0\n".encode())
    assert bytes(stream.output) == b"x" * 100
    assert stream.exit_code == 0


def test_endless_noise_is_an_error_and_not_memory() -> None:
    stream = Stream(MARK, "box")
    with pytest.raises(RemoteError) as caught:
        for _ in range(MAX_NOISE_BYTES // 1000 + 2):
            stream.feed(b"y" * 999 + b"\n")
    assert caught.value.code == "E-SSH-045"


@pytest.mark.parametrize(
    ("status", "code"), [("0", 0), ("137", -9), ("143", -15), ("255", 255), ("200", 200), ("x", 255)]
)
def test_the_shells_status_as_an_exit_code(status: str, code: int) -> None:
    stream = Stream(MARK, "box")
    stream.feed(f"\n{MARK}\n\n{MARK}. {status}\n".encode())
    assert stream.exit_code == code


@pytest.mark.parametrize(("argv", "env"), [
    (["echo", "a\0b"], {}), (["echo", "\udc80"], {}), ([], {}), ([""], {}), (["-x"], {}),
    (["true"], {"A B": "1"}), (["true"], {"A": "\0"}), (["true"], {"": "1"}), (["true"], {"A;id": "1"}),
])  # fmt: skip
def test_what_no_command_can_be_given_is_refused(argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        run_script(argv, env, MARK)
    assert caught.value.code in ("E-SSH-047", "E-SSH-048")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_script_that_arrived_in_part_does_nothing(shell: str, tmp_path: Path) -> None:
    """Every seventh beginning of it, and all but its last byte: no word of the command is carried out."""
    place = tmp_path / "place"
    place.mkdir()
    for whole in (start_script(["touch", "one", "two"], MARK), run_script(["touch", "one"], {"A": "b"}, MARK)):
        line = login_line(whole)
        for size in [*range(0, len(whole) - 1, 7), len(whole) - 1]:
            done = subprocess.run([shell, "-c", line], input=whole[:size], capture_output=True, cwd=place)
            assert MARK.encode() not in done.stdout, whole[:size]
        assert list(place.iterdir()) == []
    subprocess.run([shell, "-c", line], input=whole, cwd=place, check=True, capture_output=True)
    assert [p.name for p in place.iterdir()] == ["one"]


def test_the_line_is_the_same_for_every_command_but_for_the_length() -> None:
    """Nothing of the command is in what the login shell reads."""
    script = start_script(["sh", "-c", "!; \\ \n '\"`"], MARK)
    assert login_line(script).replace(str(len(script)), "1") == login_line(b"x")
    assert not set(login_line(script)) & set("!\\\n`*?[]{}~#;<|%^")
