"""A cache policy in one line of text: what parses comes back the same, what does not is told what was meant."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.decoupled.policy import EXAMPLE, FORMATS, KVCachePolicy, PartFormat

FORMAT = st.sampled_from(FORMATS)


@given(ksem=FORMAT, kgeo=FORMAT, v=FORMAT, resid=st.integers(0, 10**9 - 1), order=st.permutations(range(4)))
def test_every_policy_comes_back(ksem: str, kgeo: str, v: str, resid: int, order: list[int]) -> None:
    items = [f"ksem={ksem}", f"kgeo={kgeo}", f"v={v}", f"resid={resid}"]
    policy = KVCachePolicy.parse(",".join(items))
    assert str(policy) == ",".join(items)
    assert KVCachePolicy.parse(" , ".join(items[i] for i in order)) == policy
    assert (policy.ksem, policy.kgeo, policy.v) == tuple(map(PartFormat.parse, (ksem, kgeo, v)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ksem=q4_1@32,kgeo=q8_0@32,v=q4_0@32,resid=128", "'q4_1@32' is no format; did you mean 'q4_0@32'?"),
        ("ksem=q4_0@64,kgeo=q8_0@32,v=q4_0@32,resid=128", "'q4_0@64' is no format; did you mean 'q4_0@32'?"),
        ("ksem=q4_0,kgeo=q8_0@32,v=q4_0@32,resid=128", "did you mean 'q4_0@32'?"),
        ("ksem=q4_0@32,kgeo=Q8_0@32,v=q4_0@32,resid=128", "'Q8_0@32' is no format; did you mean 'q8_0@32'?"),
        ("ksem=q4_0@32,kgeo=q80@32,v=q4_0@32,resid=128", "did you mean 'q8_0@32'?"),
        ("ksem=fp16@32,kgeo=q8_0@32,v=q4_0@32,resid=128", "did you mean 'fp16'?"),
        ("ksem=float16,kgeo=q8_0@32,v=q4_0@32,resid=128", "did you mean 'fp16'?"),
        ("ksme=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128", "'ksme' is no key; did you mean 'ksem'?"),
        ("k_geo=q8_0@32,ksem=q4_0@32,v=q4_0@32,resid=128", "'k_geo' is no key; did you mean 'kgeo'?"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,residual=128", "'residual' is no key; did you mean 'resid'?"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32", "without resid"),
        ("resid=1", "without ksem, kgeo, v"),
        ("", "an empty item; without ksem, kgeo, v, resid"),
        (EXAMPLE + ",", "an empty item"),
        (EXAMPLE + ",v=fp16", "'v' is given twice, 'q4_0@32' and 'fp16'"),
        ("ksem=q4_0@32;kgeo=q8_0@32,v=q4_0@32,resid=128", "without kgeo"),
        ("ksem,kgeo=q8_0@32,v=q4_0@32,resid=128", "'ksem' is not KEY=VALUE"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=-1", "resid=-1: it must be a whole number of tokens, 0 or more"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=many", "resid=many: it must be a whole number"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=1.5", "resid=1.5: it must be a whole number"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=", "resid=: it must be a whole number"),
        ("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=²", "resid=²: it must be a whole number"),
    ],
)
def test_nonsense_is_told_the_nearest_right_form(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        KVCachePolicy.parse(text)
    message = str(caught.value)
    assert said in message and repr(text) in message and repr(EXAMPLE) in message


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        KVCachePolicy.parse("ksem=q5@32,kgo=fp16,v=q4_0@32,resid=x")
    message = str(caught.value)
    assert all(word in message for word in ("'q5@32'", "'kgo'", "resid=x", "without kgeo"))


def test_what_the_constructor_refuses() -> None:
    part = PartFormat("fp16")
    with pytest.raises(ValueError, match="'q4_0@64' is no format"):
        PartFormat("q4_0", 64)
    for resid in (-1, True, 1.0):
        with pytest.raises(ValueError, match="whole number of tokens"):
            KVCachePolicy(part, part, part, resid)  # type: ignore[arg-type]


def test_what_a_token_costs() -> None:
    """sem 32 (18 B), geo 32 (34 B), v 64 (36 B): 88 B a token and head; fp16 256 B."""
    policy = KVCachePolicy.parse(EXAMPLE)
    assert policy.bytes_per_token(1, 32, 32, 64) == 88
    assert policy.bytes_per_token(8, 32, 32, 64) == 704
    assert KVCachePolicy.parse("ksem=fp16,kgeo=fp16,v=fp16,resid=0").bytes_per_token(1, 32, 32, 64) == 256
    assert policy.bits_per_value(32, 32, 64) == pytest.approx(8 * 88 / 128)


@pytest.mark.parametrize(("text", "bits"), [("q4_0@32", 4.5), ("q8_0@32", 8.5), ("fp16", 16.0)])
def test_bits_of_a_value(text: str, bits: float) -> None:
    assert PartFormat.parse(text).bits_per_value() == bits
    assert PartFormat.parse(text).bits_per_value(96) == bits


def test_a_padded_group_is_paid_for() -> None:
    assert PartFormat.parse("q4_0@32").bytes(40) == 36
    assert PartFormat.parse("q8_0@32").bytes(12) == 34
    assert PartFormat.parse("fp16").bytes(12) == 24
    with pytest.raises(ValueError, match="at least 1"):
        PartFormat.parse("q4_0@32").bytes(0)


def test_formats_are_ordered_by_size() -> None:
    sizes = [PartFormat.parse(text).bytes(64) for text in ("q4_0@32", "q8_0@32", "fp16")]
    assert all(a < b for a, b in itertools.pairwise(sizes))
