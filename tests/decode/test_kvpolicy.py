"""The operator's grammar of a cache policy against the kernels' own parser, on right lines and broken ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.decoupled import policy
from workloads.contract.config import kvpolicy
from workloads.contract.config.job import DecodeSpec

ITEM = st.builds(
    "{}{}{}".format,
    st.sampled_from(["ksem", "kgeo", "v", "resid", " v ", "k", "", "KSEM"]),
    st.sampled_from(["=", " = ", "==", ""]),
    st.sampled_from([*policy.FORMATS, "q4_0", "q5@32", "0", "128", " 7 ", "-1", "1234567890", "x", ""]),
)
RIGHT = st.tuples(*[st.sampled_from(policy.FORMATS)] * 3, st.integers(0, 999_999_999)).map(
    lambda p: f"ksem={p[0]},kgeo={p[1]},v={p[2]},resid={p[3]}"
)


@given(st.one_of(RIGHT, st.lists(ITEM, max_size=6).map(",".join), st.text(max_size=40)))
def test_what_one_takes_the_other_takes(text: str) -> None:
    try:
        policy.KVCachePolicy.parse(text)
    except ValueError:
        assert kvpolicy.mistake(text) is not None
    else:
        assert kvpolicy.mistake(text) is None


def test_both_show_the_same_example() -> None:
    assert kvpolicy.EXAMPLE == policy.EXAMPLE


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ksem=q5@32,kgeo=fp16,v=fp16,resid=0", "'ksem=q5@32' is not q4_0@32 or q8_0@32 or fp16 .did you mean 'q"),
        ("kgeo=fp16,v=fp16,resid=0", "without ksem"),
        ("v=fp16,v=fp16,kgeo=fp16,ksem=fp16", "v is given twice"),
    ],
)
def test_a_job_file_with_a_wrong_one_is_refused_with_the_item(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        DecodeSpec(backend="decoupled", kv_policy=text)
    assert kvpolicy.EXAMPLE in str(caught.value)
