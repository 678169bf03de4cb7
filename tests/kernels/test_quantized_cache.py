"""The quantized cache against a list of tokens a row; its books; what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.codec import CODES, dequantize, quantize
from kernels.decoupled.policy import KVCachePolicy
from kernels.decoupled.reference import decoupled_decode_reference, streaming_reference

Token = tuple[Tensor, Tensor, Tensor]
DIMS = (12, 40, 32)
HEADS = 2
Q4Q8Q4 = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
POLICIES = (Q4Q8Q4, "ksem=fp16,kgeo=q4_0@32,v=q8_0@32", "ksem=q8_0@32,kgeo=fp16,v=fp16")


BACKENDS = pytest.mark.parametrize("backend", ["reference", "triton"])


@pytest.fixture(autouse=True, scope="module")
def _the_definition() -> Iterator[None]:
    """Steps by PyTorch; the tests that take `backend` run the kernel as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNELS_BACKEND", "reference")
        yield


def make(resid: int = 4, batch: int = 2, capacity: int = 20, formats: str = Q4Q8Q4, **kw: Any) -> QuantizedCache:
    policy = KVCachePolicy.parse(f"{formats},resid={resid}")
    return QuantizedCache(batch, capacity, HEADS, *DIMS, policy, kw.pop("device", "cpu"), **kw)


def tokens(count: int, batch: int = 2, seed: int = 0) -> Token:
    """k_sem, k_geo, v [batch, HEADS, count, D] in fp16, of different sizes a token."""
    gen = torch.Generator().manual_seed(seed)
    k_sem, k_geo, v = (
        (
            torch.randn(batch, HEADS, count, d, generator=gen) * (1 + torch.rand(batch, HEADS, count, 1, generator=gen))
        ).half()
        for d in DIMS
    )
    return k_sem, k_geo, v


def used(cache: QuantizedCache) -> list[Tensor]:
    """Every stored bit that a token was written to; the rest is set to 0."""
    at = torch.arange(cache.sem.tensors()[0].shape[-2])
    parts = []
    for part in cache.parts:
        for x in part.tensors():
            slot_dim = 3 if x is part.codes or x is part.scales else 2
            shape = [1] * x.dim()
            shape[0], shape[slot_dim] = cache.batch, x.shape[slot_dim]
            parts.append(x.masked_fill((at >= cache.packed[:, None]).reshape(shape), 0))
    hidden = ~cache.tail().visible_BR[:, None, :, None]
    return [*parts, *(x.masked_fill(hidden, 0) for x in cache.tails), cache.lengths, cache.packed, cache.overflow]


def same(a: QuantizedCache, b: QuantizedCache) -> bool:
    return all(torch.equal(x, y) for x, y in zip(used(a), used(b), strict=True))


@dataclass
class Row:
    """The model: all tokens, and how many have left the tail."""

    tokens: list[Token] = field(default_factory=list)
    packed: int = 0

    def add(self, new: list[Token], resid: int) -> None:
        self.tokens.extend(new)
        self.packed = max(self.packed, len(self.tokens) - resid)

    def cut(self, length: int) -> None:
        del self.tokens[length:]
        self.packed = min(self.packed, len(self.tokens))


class Against(RuleBasedStateMachine):
    """Appends, cuts and forks in any order, against lists of tokens."""

    capacity = 13

    @initialize(resid=st.sampled_from([0, 1, 3, 5, 20]), formats=st.sampled_from(POLICIES))
    def start(self, resid: int, formats: str) -> None:
        self.cache = make(resid, 2, self.capacity, formats)
        self.rows = [Row(), Row()]
        self.resid = resid
        self.seed = 0

    def _new(self, count: int) -> Token:
        self.seed += 1
        return tokens(count, self.cache.batch, self.seed)

    @rule(count=st.integers(1, 9), counted=st.booleans(), check=st.booleans(), data=st.data())
    def append(self, count: int, counted: bool, check: bool, data: st.DataObject) -> None:
        new = self._new(count)
        batch = self.cache.batch
        counts = data.draw(st.lists(st.integers(0, count), min_size=batch, max_size=batch)) if counted else None
        each = counts or [count] * batch
        full = [len(row.tokens) + n > self.capacity for row, n in zip(self.rows, each, strict=True)]
        given_counts = None if counts is None else torch.tensor(counts)
        if check and any(full):
            before = [x.clone() for x in used(self.cache)]
            with pytest.raises(ValueError, match=f"row {full.index(True)} is full.*capacity of {self.capacity}"):
                self.cache.append(*new, given_counts)
            assert all(torch.equal(x, y) for x, y in zip(before, used(self.cache), strict=True))
            return
        self.cache.append(*new, given_counts, check=check)
        for b, row in enumerate(self.rows):
            if not full[b]:
                row.add([(new[0][b, :, t], new[1][b, :, t], new[2][b, :, t]) for t in range(each[b])], self.resid)
        if any(full):
            with pytest.raises(ValueError, match=f"row {full.index(True)} was full.*capacity {self.capacity}"):
                self.cache.check()
        self.cache.check()

    @rule(length=st.integers(0, 14), each=st.booleans())
    def truncate(self, length: int, each: bool) -> None:
        wanted = [length if b == 0 or not each else 14 - length for b in range(self.cache.batch)]
        self.cache.truncate(torch.tensor(wanted) if each else length)
        for row, n in zip(self.rows, wanted, strict=True):
            row.cut(n)

    @rule(rows=st.lists(st.integers(0, 1), min_size=2, max_size=2))
    def fork(self, rows: list[int]) -> None:
        parent, self.cache = self.cache, self.cache.fork(rows)
        for x in parent.tensors():  # a child that shared memory with its parent would now be seen
            x.fill_(torch.nan if x.is_floating_point() else 77)
        self.rows = [Row(list(self.rows[r].tokens), self.rows[r].packed) for r in rows]

    @invariant()
    def holds_the_tokens(self) -> None:
        assert self.cache.lengths.tolist() == [len(row.tokens) for row in self.rows]
        assert self.cache.packed.tolist() == [row.packed for row in self.rows]
        assert self.cache.longest >= int(self.cache.lengths.max())
        values = self.cache.dequantized(torch.float32)
        for which, (part, got) in enumerate(zip(self.cache.parts, values, strict=True)):
            for b, row in enumerate(self.rows):
                length = len(row.tokens)
                assert got[b, :, length:].eq(0).all()
                if not length:
                    continue
                want = torch.stack([token[which] for token in row.tokens], 1).float()
                if part.kind != "fp16" and row.packed:
                    code = CODES[part.kind]
                    old = want[:, : row.packed]
                    want[:, : row.packed] = dequantize(code, *quantize(code, old), part.dim)
                assert torch.equal(got[b, :, :length], want)


Against.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestAgainstLists = Against.TestCase


@pytest.mark.parametrize("formats", POLICIES)
@pytest.mark.parametrize("resid", [0, 1, 4, 64])
@BACKENDS
def test_how_the_tokens_came_changes_no_bit(
    formats: str, resid: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, one by one, and in chunks; compared as stored."""
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    count = 17 if backend == "reference" else 6
    new = tokens(count)
    caches = [make(resid, formats=formats) for _ in range(3)]
    for cache, chunk in zip(caches, (count, 1, 5), strict=True):
        for at in range(0, count, chunk):
            k_sem, k_geo, v = (x[:, :, at : at + chunk] for x in new)
            cache.append(k_sem, k_geo, v)
    assert same(caches[0], caches[1]) and same(caches[0], caches[2])
    assert caches[0].packed.tolist() == [max(0, count - resid)] * 2


def test_a_step_looks_at_nothing_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No .item(), .tolist() or bool() of a tensor while the host knows that there is room."""
    cache, new = make(), tokens(1)

    def waits(*_: Any) -> Any:
        raise AssertionError("the step waited for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "nonzero"):
            patch.setattr(torch.Tensor, name, waits)
        for _ in range(20):
            cache.append(*new)
    assert cache.lengths.tolist() == [20, 20]


def test_a_full_row_is_refused_whole() -> None:
    cache = make(resid=3)
    cache.append(*tokens(17), torch.tensor([12, 17]))
    before = [x.clone() for x in used(cache)]
    with pytest.raises(ValueError, match=r"row 1 is full: 17 tokens and 4 more do not fit its capacity of 20"):
        cache.append(*tokens(4))
    assert all(torch.equal(x, y) for x, y in zip(before, used(cache), strict=True))
    cache.append(*tokens(4), check=False)
    assert cache.lengths.tolist() == [16, 17] and cache.overflow.tolist() == [0, 17]
    with pytest.raises(ValueError, match=r"row 1 was full: an append at length 17 of capacity 20 was refused"):
        cache.check()
    cache.check()


@BACKENDS
def test_steps_into_a_full_row_are_flagged(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    cache = make(resid=3)
    cache.append(*tokens(20), torch.tensor([18, 20]))
    before = [x[1].clone() for x in used(cache)[:-1]]
    for _ in range(2):
        cache.append(*tokens(1), check=False)
    assert cache.lengths.tolist() == [20, 20] and cache.overflow.tolist() == [0, 20]
    assert all(torch.equal(x, y[1]) for x, y in zip(before, used(cache)[:-1], strict=True))
    with pytest.raises(ValueError, match="row 1 was full"):
        cache.check()
    with pytest.raises(ValueError, match="row 0 is full: 20 tokens and 1 more"):
        cache.append(*tokens(1))


def test_replays_are_told(device: torch.device) -> None:
    cache = make(capacity=8)
    cache.append(*tokens(6))
    cache.lengths.add_(1)  # what a replayed graph does
    cache.packed.add_(1)
    cache.replayed(1)
    cache.append(*tokens(1))
    with pytest.raises(ValueError, match="row 0 is full: 8 tokens and 1 more"):
        cache.append(*tokens(1))


@BACKENDS
def test_truncate_does_not_unquantize(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below `packed` the tail is empty; the next tokens fill it again."""
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    cache = make(resid=4)
    cache.append(*tokens(12))
    cache.truncate(5)
    assert cache.packed.tolist() == [5, 5] and not cache.tail().visible_BR.any()
    cache.append(*tokens(3, seed=1))
    assert cache.packed.tolist() == [5, 5] and cache.tail().visible_BR.sum(1).tolist() == [3, 3]
    cache.append(*tokens(2, seed=2))
    assert cache.packed.tolist() == [6, 6]


@pytest.mark.parametrize("formats", POLICIES)
@pytest.mark.parametrize(("capacity", "resid"), [(20, 4), (64, 0), (65, 128), (1, 1)])
def test_the_policy_knows_the_bytes(formats: str, capacity: int, resid: int) -> None:
    cache = make(resid, batch=3, capacity=capacity, formats=formats)
    assert cache.size_bytes == cache.policy.bytes(3, capacity, HEADS, *DIMS)


def test_tail_and_prefix_are_the_whole() -> None:
    """Streaming over the prefix and the ring equals the dense definition over what `dequantized` gives."""
    cache = make(resid=5)
    cache.append(*tokens(17), torch.tensor([3, 17]))
    gen = torch.Generator().manual_seed(3)
    q_sem, q_geo = (torch.randn(2, 4, d, generator=gen, dtype=torch.float64) for d in DIMS[:2])
    want = decoupled_decode_reference(q_sem, q_geo, *cache.dequantized(torch.float64), cache.lengths)
    k_sem, k_geo, v = (p.decoded(torch.float64) for p in cache.parts)
    out = streaming_reference(q_sem, q_geo, k_sem, k_geo, v, cache.packed, partitions=3, tail=cache.tail())
    torch.testing.assert_close(out, want, rtol=0, atol=1e-14)


def test_a_thousand_steps_hold_the_same_tensors() -> None:
    cache, new = make(capacity=1000, batch=1), tokens(1, batch=1)
    where = [x.data_ptr() for x in cache.tensors()]
    for _ in range(1000):
        cache.append(*new)
    assert [x.data_ptr() for x in cache.tensors()] == where and cache.lengths.tolist() == [1000]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.append(*tokens(2)[:2], tokens(3)[2]), r"\[2, 2, T, 12\].*not \(2, 2, 2, 12\).*\(2, 2, 3, 32\)"),
        (lambda c: c.append(*tokens(2, batch=1)), r"not \(1, 2, 2, 12\)"),
        (lambda c: c.append(*(x.float() for x in tokens(1))), r"k_sem is torch.float32.*takes torch.float16"),
        (lambda c: c.append(*tokens(21)), r"21 tokens a row do not fit: row 0 has a capacity of 20"),
        (lambda c: c.append(*tokens(2), torch.tensor([1])), r"counts is torch.int64 \(1,\); it must be int \[2\]"),
        (lambda c: c.append(*tokens(2), torch.tensor([1, 3])), r"counts\[1\] is 3; it must lie in 0\.\.2"),
        (lambda c: c.append(*tokens(2), torch.tensor([-1, 1])), r"counts\[0\] is -1"),
        (lambda c: c.append(tokens(2)[0], tokens(2)[1] * 1e9, tokens(2)[2]), r"k_geo\[0, 0, 0, 0\].*is -?inf"),
        (lambda c: c.truncate(-1), r"truncate to \[-1, -1\]"),
        (lambda c: c.truncate(torch.tensor([1.5, 2.0])), r"whole numbers"),
        (lambda c: c.fork([0, 2]), r"fork rows \[0, 2\]: .*0\.\.1"),
        (lambda c: c.fork([]), r"name at least one row"),
        (lambda c: make(dtype=torch.bfloat16), r"torch.bfloat16.*\.half\(\)"),
        (lambda c: make(capacity=0), r"every size must be at least 1"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    cache = make()
    with pytest.raises(ValueError, match=message):
        call(cache)
    assert cache.lengths.tolist() == [0, 0]


def test_padding_may_hold_anything() -> None:
    """Tokens at or above counts[b] are neither read nor refused."""
    new = tokens(4)
    for x in new:
        x[0, :, 2:] = torch.nan
    cache = make()
    cache.append(*new, torch.tensor([2, 4]))
    assert all(x.isfinite().all() for x in cache.dequantized(torch.float32))


@BACKENDS
def test_a_nan_in_a_step_is_not_hidden(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    cache = make(resid=0)
    k_sem, k_geo, v = tokens(1)
    k_sem[0, 0, 0, 3] = torch.nan
    cache.append(k_sem, k_geo, v)
    got = cache.dequantized(torch.float32)[0]
    assert got[0, 0, 0].isnan().all() and got[0, 1].isfinite().all() and got[1].isfinite().all()
