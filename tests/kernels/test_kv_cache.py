"""KVCache against a list of lists: what is valid, what attends, what is refused, and that nothing else changes.

Every token is a number; its key and value are made from it, so a row is right when it holds the right numbers in order.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor

from kernels.checks import judge
from kernels.kv_decode.cache import KVCache
from kernels.kv_decode.parity import sdpa
from kernels.kv_decode.reference import attention_reference

KV_HEADS, GROUP, DIM, V_DIM, LIMIT = 2, 2, 8, 4, 12


def rows_of(tokens: list[list[int]], width: int, heads: int, dim: int) -> Tensor:
    """[B, heads, width, dim] made from the tokens; NaN where a row is shorter: padding must never be used."""
    table = torch.randn(4096, heads, dim, generator=torch.Generator().manual_seed(heads * dim))
    out = torch.full((len(tokens), heads, width, dim), float("nan"))
    for b, row in enumerate(tokens):
        for t, token in enumerate(row):
            out[b, :, t] = table[token]
    return out


def keys_of(tokens: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    return rows_of(tokens, width, KV_HEADS, DIM), rows_of(tokens, width, KV_HEADS, V_DIM)


@dataclass
class Twin:
    """A cache and what it must hold."""

    cache: KVCache
    rows: list[list[int]] = field(default_factory=list)

    def agrees(self) -> None:
        cache = self.cache
        assert cache.lengths.tolist() == [len(row) for row in self.rows] and cache.lengths.dtype == torch.int32
        assert max(map(len, self.rows)) <= cache.longest <= cache.capacity <= cache.max_capacity
        k, v = keys_of(self.rows, cache.capacity)
        for b, row in enumerate(self.rows):
            assert torch.equal(cache.k[b, :, : len(row)].cpu(), k[b, :, : len(row)])
            assert torch.equal(cache.v[b, :, : len(row)].cpu(), v[b, :, : len(row)])


def make(batch: int = 2, capacity: int = 8, device: torch.device | str = "cpu", limit: int | None = None) -> KVCache:
    return KVCache(
        batch, capacity, KV_HEADS, DIM, v_head_dim=V_DIM, dtype=torch.float32, device=device, max_capacity=limit
    )


class Machine(RuleBasedStateMachine):
    """Random histories of up to four caches, forks of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0
        self.twins = [Twin(make(3, 2, limit=LIMIT), [[], [], []])]

    def fresh(self, counts: list[int]) -> list[list[int]]:
        made = []
        for count in counts:
            made.append([(self.next + i) % 4096 for i in range(count)])
            self.next += count
        return made

    @rule(data=st.data(), width=st.integers(0, 4), ragged=st.booleans(), attend=st.booleans())
    def put(self, data: st.DataObject, width: int, ragged: bool, attend: bool) -> None:
        twin = data.draw(st.sampled_from(self.twins))
        batch = len(twin.rows)
        counts = [data.draw(st.integers(0, width)) if ragged else width for _ in range(batch)]
        new = self.fresh(counts)
        (k, v), q = keys_of(new, width), rows_of(new, width, KV_HEADS * GROUP, DIM)
        asked = torch.tensor(counts) if ragged else None
        full = [b for b in range(batch) if len(twin.rows[b]) + counts[b] > LIMIT]
        if full:
            before = (twin.cache.k.clone(), twin.cache.v.clone())
            with pytest.raises(ValueError, match=rf"row {full[0]} holds .* capacity is {LIMIT}"):
                twin.cache.attend(q, k, v, counts=asked) if attend else twin.cache.append(k, v, asked)
            assert torch.equal(before[0].nan_to_num(), twin.cache.k.nan_to_num())
            assert torch.equal(before[1].nan_to_num(), twin.cache.v.nan_to_num())
            return
        twin.rows = [old + more for old, more in zip(twin.rows, new, strict=True)]
        if not attend:
            twin.cache.append(k, v, asked)
            return
        out = twin.cache.attend(q, k, v, counts=asked)
        for b, row in enumerate(twin.rows):
            (k_row, v_row), n = keys_of([row], len(row)), counts[b]
            want = attention_reference(q[b : b + 1, :, :n], k_row, v_row)
            assert isinstance(want, Tensor)
            assert judge(out[b : b + 1, :, :n], want).ok, (b, counts)
            assert not out[b, :, n:].any()

    @rule(data=st.data(), number=st.integers(0, LIMIT), each=st.booleans())
    def truncate(self, data: st.DataObject, number: int, each: bool) -> None:
        twin = data.draw(st.sampled_from(self.twins))
        lengths = [data.draw(st.integers(0, LIMIT)) if each else number for _ in twin.rows]
        twin.cache.truncate(torch.tensor(lengths) if each else number)
        twin.rows = [row[:n] for row, n in zip(twin.rows, lengths, strict=True)]

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        twin = data.draw(st.sampled_from(self.twins))
        numbers = data.draw(st.lists(st.integers(0, len(twin.rows) - 1), min_size=1, max_size=4))
        child = Twin(twin.cache.fork(numbers), [list(twin.rows[r]) for r in numbers])
        self.twins = [*self.twins, child][-4:]

    @rule(data=st.data(), tokens=st.integers(0, 6))
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        twin = data.draw(st.sampled_from(self.twins))
        if max(map(len, twin.rows)) + tokens <= LIMIT:
            twin.cache.reserve(tokens)
            assert twin.cache.capacity >= max(map(len, twin.rows)) + tokens
        else:
            with pytest.raises(ValueError, match=f"capacity is {LIMIT}"):
                twin.cache.reserve(tokens)

    @invariant()
    def every_cache_is_right(self) -> None:
        for twin in self.twins:
            twin.agrees()
            twin.cache.check(values=True)


@pytest.mark.parametrize("backend", ["reference"])
def test_random_histories_equal_lists(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("KERNELS_BACKEND", backend)
    quick = settings(
        max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Machine, settings=quick)


def filled(device: torch.device, counts: list[int], capacity: int = 8, limit: int | None = None) -> Twin:
    rows = [[100 * b + t for t in range(n)] for b, n in enumerate(counts)]
    twin = Twin(make(len(rows), capacity, device, limit), rows)
    k, v = keys_of(rows, max(counts))
    twin.cache.append(k.to(device), v.to(device), torch.tensor(counts))
    return twin


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("ragged", [False, True])
def test_attend_equals_the_definition(device: torch.device, tokens: int, ragged: bool) -> None:
    """Row lengths of 0, 1 and some; padding, and every slot that nothing was put into, is NaN."""
    twin = filled(device, [0, 1, 5])
    counts = [tokens, 0, 1] if ragged else [tokens] * 3
    new = [[900 + 10 * b + t for t in range(n)] for b, n in enumerate(counts)]
    (k, v), q = keys_of(new, tokens), rows_of(new, tokens, KV_HEADS * GROUP, DIM)
    asked = torch.tensor(counts, device=device) if ragged else None
    out = twin.cache.attend(q.to(device), k.to(device), v.to(device), counts=asked, scale=0.7).cpu()
    twin.rows = [old + more for old, more in zip(twin.rows, new, strict=True)]
    twin.agrees()
    for b, row in enumerate(twin.rows):
        want = attention_reference(q[b : b + 1, :, : counts[b]], *keys_of([row], len(row)), scale=0.7)
        assert isinstance(want, Tensor)
        verdict = judge(out[b : b + 1, :, : counts[b]], want)
        assert verdict.ok, (b, verdict)
        assert not out[b, :, counts[b] :].any()


def test_overflow_names_row_and_capacity_and_writes_nothing(device: torch.device) -> None:
    twin = filled(device, [3, 8, 5])
    k, v = (x.to(device) for x in keys_of([[1], [2], [3]], 1))
    q = torch.randn(3, KV_HEADS * GROUP, 1, DIM, device=device)
    said = r"row 1 holds 8 tokens and 1 more do not fit: the cache's capacity is 8"
    with pytest.raises(ValueError, match=said):
        twin.cache.append(k, v)
    with pytest.raises(ValueError, match=said):
        twin.cache.attend(q, k, v)
    twin.agrees()
    twin.cache.append(k, v, torch.tensor([1, 0, 1], device=device))  # there is room in the other rows
    assert twin.cache.lengths.tolist() == [4, 8, 6]


@pytest.mark.parametrize("how", ["attend", "append", "ragged"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_what_the_host_did_not_see_is_flagged(device: torch.device, tokens: int, how: str) -> None:
    """The host's bound is behind, as after replays: the device refuses the row, serves the others, and says so."""
    twin = filled(device, [3, 8, 5])
    twin.cache.longest = 0
    rows = [[500 + 10 * b + t for t in range(tokens)] for b in range(3)]
    (k, v), q = keys_of(rows, tokens), rows_of(rows, tokens, KV_HEADS * GROUP, DIM)
    k, v, q = k.to(device), v.to(device), q.to(device)
    kept = twin.cache.k[1].clone(), twin.cache.v[1].clone()
    counts = torch.full((3,), tokens, device=device) if how == "ragged" else None
    if how == "append":
        twin.cache.append(k, v)
    else:
        out = twin.cache.attend(q, k, v, counts=counts)
        assert not out[1].any() and out[0].any() and out[2].any()
    assert torch.equal(kept[0], twin.cache.k[1]) and torch.equal(kept[1], twin.cache.v[1])
    assert twin.cache.lengths.tolist() == [3 + tokens, 8, 5 + tokens]
    with pytest.raises(ValueError, match=rf"row 1 holds 8 tokens and {tokens} more do not fit: .* capacity is 8"):
        twin.cache.check()
    twin.cache.check()  # said once
    assert twin.cache.longest == 8
    twin.rows = [twin.rows[0] + rows[0], twin.rows[1], twin.rows[2] + rows[2]]
    twin.agrees()


def test_a_count_that_cannot_be_is_refused(device: torch.device) -> None:
    twin = filled(device, [1, 1])
    k, v = (x.to(device) for x in keys_of([[1, 2], [3, 4]], 2))
    for counts in ([3, 0], [-1, 0]):
        with pytest.raises(ValueError, match=rf"row 0 is to take {counts[0]} of 2"):
            twin.cache.append(k, v, torch.tensor(counts))
    with pytest.raises(ValueError, match=r"counts must be int\[2\]"):
        twin.cache.append(k, v, torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match=r"counts must be int\[2\]"):
        twin.cache.append(k, v, torch.tensor([1.0, 1.0]))
    twin.agrees()


def test_growth_keeps_the_contents_and_stops_at_the_limit(device: torch.device) -> None:
    twin = filled(device, [0, 3], capacity=4, limit=10)
    before = twin.cache.k
    for step in range(7):
        k, v = (x.to(device) for x in keys_of([[step], [50 + step]], 1))
        q = torch.randn(2, KV_HEADS * GROUP, 1, DIM, device=device)
        assert twin.cache.attend(q, k, v).isfinite().all()  # a plan is kept, and must grow too
        twin.rows = [twin.rows[0] + [step], twin.rows[1] + [50 + step]]
        twin.agrees()
        assert twin.cache.capacity == (4 if step == 0 else 8 if step < 5 else 10)
    assert twin.cache.k is not before
    with pytest.raises(ValueError, match=r"row 1 holds 10 tokens .* capacity is 10"):
        twin.cache.reserve(1)
    twin.agrees()


def test_room_is_looked_for_in_the_lengths_before_anything_grows(device: torch.device) -> None:
    """The bound counts padding; the rows hold less. It is made exact before memory is spent."""
    twin = filled(device, [2, 1], capacity=8, limit=16)
    k, v = (x.to(device) for x in keys_of([[1], [2, 3]], 4))
    twin.cache.append(k, v, torch.tensor([1, 2], device=device))
    twin.cache.append(k, v, torch.tensor([1, 2], device=device))
    assert twin.cache.capacity == 8 and twin.cache.lengths.tolist() == [4, 5]


def test_a_fork_shares_no_memory(device: torch.device) -> None:
    twin = filled(device, [3, 5])
    child = twin.cache.fork(torch.tensor([1, 1, 0]))
    k, v = (x.to(device) for x in keys_of([[7], [8], [9]], 1))
    child.append(k, v)
    child.truncate(4)
    twin.agrees()
    Twin(child, [twin.rows[1][:4], twin.rows[1][:4], [*twin.rows[0], 9]]).agrees()
    mine = {t.untyped_storage().data_ptr() for t in (twin.cache.k, twin.cache.v, twin.cache.lengths)}
    assert not mine & {t.untyped_storage().data_ptr() for t in (child.k, child.v, child.lengths)}
    for rows in ([2], [-1], []):
        with pytest.raises(ValueError, match="to fork"):
            twin.cache.fork(rows)


def test_shapes_dtypes_and_gradients_are_refused() -> None:
    cache = make()
    k, v = torch.ones(2, KV_HEADS, 1, DIM), torch.ones(2, KV_HEADS, 1, V_DIM)
    wrong = [(k[:1], v[:1]), (k.half(), v.half()), (k, k), (k.transpose(1, 2), v), (k.expand(-1, -1, 2, -1), v)]
    for k_bad, v_bad in wrong:
        with pytest.raises(ValueError, match=r"cannot be put into a cache \(2, 2, 8, "):
            cache.append(k_bad, v_bad)
    with pytest.raises(ValueError, match=r"q \(2, 4, 2, 8\) does not fit k \(2, 2, 1, 8\)"):
        cache.attend(torch.ones(2, 4, 2, DIM), k, v)
    with pytest.raises(ValueError, match="requires a gradient"):
        cache.append(k.clone().requires_grad_(), v)
    with torch.no_grad():
        cache.append(k.clone().requires_grad_(), v)
    assert not cache.k.requires_grad
    for lengths, said in (
        (-1, "0 or more"),
        (torch.tensor([1]), "truncate to"),
        (torch.tensor([0.5, 1]), "truncate to"),
    ):
        with pytest.raises(ValueError, match=said):
            cache.truncate(lengths)
    with pytest.raises(ValueError, match="at least 1"):
        make(capacity=0)
    with pytest.raises(ValueError, match="below the capacity"):
        make(capacity=8, limit=4)
    cache.append(torch.full_like(k, float("inf")), v)
    cache.check()
    with pytest.raises(ValueError, match="row 0: one of its 2 keys and values is not finite"):
        cache.check(values=True)


def live_bytes() -> tuple[int, int]:
    gc.collect()
    alive = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return len(alive), sum(x.untyped_storage().nbytes() for x in alive)


def test_a_thousand_steps_hold_memory_flat(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":  # what is counted is the cache's; a thousand steps of the interpreter take minutes
        monkeypatch.setenv("KERNELS_BACKEND", "reference")
    cache = KVCache(1, 1024, 1, 4, dtype=torch.float32, device=device)
    q = torch.randn(1, 2, 1, 4, device=device)
    k = torch.randn(1, 1, 1, 4, device=device)
    seen = []
    for step in range(1, 1001):
        cache.attend(q, k, k)
        if step % 250 == 0:
            allocated = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            seen.append((*live_bytes(), allocated))
    assert len(set(seen)) == 1, seen
    assert cache.lengths.tolist() == [1000] and cache.longest == 1000


@pytest.mark.gpu
def test_a_captured_step_is_replayed_until_the_cache_is_full() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda")
    cache = KVCache(3, 8, KV_HEADS, 64, dtype=torch.float16, device=device)
    first = torch.randn(2, 3, KV_HEADS, 6, 64, device=device, dtype=torch.float16)
    cache.append(first[0], first[1], torch.tensor([0, 3, 6]))
    warm = cache.fork([0, 1, 2])
    q = torch.randn(3, KV_HEADS * GROUP, 1, 64, device=device, dtype=torch.float16)
    kv = torch.randn(2, 3, KV_HEADS, 1, 64, device=device, dtype=torch.float16)
    warm.attend(q, kv[0], kv[1])  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cache.attend(q, kv[0], kv[1])
    assert cache.lengths.tolist() == [0, 3, 6]  # captured, not run
    lengths = [0, 3, 6]
    for step in range(3):
        q.normal_()
        kv.normal_()
        graph.replay()
        if step:
            cache.replayed(1)
        full = [n == 8 for n in lengths]
        lengths = [min(8, n + 1) for n in lengths]
        assert cache.lengths.tolist() == lengths
        want = attention_reference(q, cache.k, cache.v, kv_lens=cache.lengths)
        assert isinstance(want, Tensor)
        for b, n in enumerate(lengths):
            if full[b]:
                assert not out[b].any()
                continue
            peer = sdpa(q[b : b + 1], cache.k[b : b + 1, :, :n], cache.v[b : b + 1, :, :n], True, None)
            verdict = judge(out[b], want[b], peer[0])
            assert verdict.ok, (step, b, verdict)
    with pytest.raises(ValueError, match=r"row 2 holds 8 tokens and 1 more do not fit"):
        cache.check()
    cache.check(values=True)
    assert cache.longest == 8
