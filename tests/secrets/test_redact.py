"""A secret is not shown in any form that programs print it in, and other text stays as it is."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.redact import redact_error, redactor, secrets_of
from workloads.contract.errors import RemoteError
from workloads.contract.rundir import RunDir

TOKEN = 'hf_ab/cd+ef="gh&ij\\kl é'
SHOWN = "[secret HF_TOKEN]"


@pytest.mark.parametrize(
    "form",
    [
        TOKEN, f"x{TOKEN}y", quote(TOKEN), quote(TOKEN, safe=""), quote_plus(TOKEN), repr(TOKEN), json.dumps(TOKEN),
        json.dumps(TOKEN, ensure_ascii=False), repr(TOKEN.encode()), TOKEN.encode().hex(), json.dumps([{"a": TOKEN}]),
        f"https://me:{quote(TOKEN, safe='')}@host/x", f"Authorization: Bearer {TOKEN}",
    ],
)  # fmt: skip
def test_the_forms_it_is_printed_in(form: str) -> None:
    shown = redactor({"HF_TOKEN": TOKEN})(form)
    assert SHOWN in shown and "ab/cd" not in shown and "ab%2Fcd" not in shown
    assert "gh" not in shown.replace("https", "") and TOKEN.encode().hex()[10:20] not in shown


@given(st.binary(max_size=12), st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=9, max_size=40))
def test_base64_wherever_it_stands(before: bytes, value: str) -> None:
    """As in `Authorization: Basic base64(user:token)`."""
    whole = before + value.strip().encode()
    if len(value.strip()) < 9:
        return
    text = base64.b64encode(whole + b"tail").decode()
    shown = redactor({"T": value})(f"<{text}>")
    inner = base64.b64encode(value.strip()[3:-3].encode()).decode()[:-4]
    assert "[secret T]" in shown and (len(inner) < 4 or inner not in shown.replace("[secret T]", ""))


def test_longer_first_overlapping_and_several() -> None:
    values = {"A": "abcdefgh", "B": "abcdefghijkl", "C": "ghijklmnop"}
    redact = redactor(values)
    assert redact("abcdefghijkl") == "[secret B]"
    assert redact("-abcdefgh-ghijklmnop-") == "-[secret A]-[secret C]-"
    assert redact("abcdefghijklmnop!") == "[secret B]!"  # what two of them cover is hidden whole


def test_each_line_of_a_key() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nshort\n-----END KEY-----\n"
    redact = redactor({"KEY": key})
    assert redact("out: MIIEvQIBADANBgkqhkiG9w0BAQ") == "out: [secret KEY]"
    assert redact("a short word") == "a short word"
    assert redact(f"<{key}>") == "<[secret KEY]>"


def test_nothing_to_hide() -> None:
    for values in ({}, {"A": ""}, {"A": "short"}):
        assert redactor(values)("a short text") == "a short text"


@given(st.dictionaries(st.sampled_from("ABC"), st.text(min_size=8, max_size=20), max_size=3), st.text(max_size=50))
def test_no_value_is_left(values: dict[str, str], text: str) -> None:
    redact = redactor(values)
    whole = text.join([*values.values(), *values.values()])
    shown = redact(whole)
    marks = "".join(f"[secret {n}]" for n in values)
    assert all(v not in shown or v in marks for v in values.values())


def test_an_error_block() -> None:
    error = RemoteError("E-X-001", f"no {TOKEN}", where=TOKEN, value=[TOKEN], fix=f"x {TOKEN}")
    text = redact_error(error, redactor({"HF_TOKEN": TOKEN})).render()
    assert text.count(SHOWN) == 4 and "ab/cd" not in text


def test_a_large_log_is_quick() -> None:
    redact = redactor({f"S{i}": f"secret-value-{i}-{'x' * 30}" for i in range(5)})
    line = "step 12 | loss 2.3456 | toks/s 123456 | fetch 1ms | secret-valve-1 https://host/path?x=1\n"
    began = time.perf_counter()
    for _ in range(100):
        assert redact(line * 1000) == line * 1000
    took = time.perf_counter() - began
    assert took < 4.0, f"{len(line) * 100_000 / took / 1e6:.0f} MB/s"


def test_the_secrets_of_a_directory(tmp_path: object) -> None:
    assert secrets_of(RunDir(tmp_path / "nowhere")) == {}  # type: ignore[operator]
