"""attention and attention_with_kv_cache: what they compute, what they leave alone, and what they say of bad input.

Letters: B rows, H query heads, K key/value heads, S queries, N keys, C capacity, D and E head sizes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.checks import judge
from kernels.kv_decode import api
from kernels.kv_decode.config import Config
from kernels.kv_decode.plan import DecodePlan
from kernels.kv_decode.reference import attention_reference, attention_with_kv_cache_reference

HALF = torch.float16


def rand(*shape: int, device: torch.device, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32, device=device).to(dtype)


def peer(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None = None, causal: bool = True) -> Tensor:
    """PyTorch's attention in the dtype of q; rows that see nothing are 0."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    for b in range(q.shape[0]):
        n = k.shape[2] if lens is None else int(lens[b])
        place = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + (n - q.shape[2])
        mask = (torch.arange(n, device=q.device) <= place) if causal else torch.ones_like(place).bool().expand(-1, n)
        if n:
            o = torch.nn.functional.scaled_dot_product_attention(
                q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], attn_mask=mask, enable_gqa=True
            )
            out[b] = o[0].masked_fill(~mask.any(1)[None, :, None], 0)
    return out


def held(out: Tensor, q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None = None, causal: bool = True) -> None:
    ref = attention_reference(q, k, v, kv_lens=lens, causal=causal)
    assert isinstance(ref, Tensor)
    verdict = judge(out, ref, peer(q, k, v, lens, causal))
    assert verdict.ok, str(verdict)


def step(
    device: torch.device, b: int, h: int, kv: int, s: int, lens: list[int], cap: int, d: int = 64, e: int = 64
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Random inputs of one call; slots at or above a row's length hold NaN."""
    q, k, v = rand(b, h, s, d, device=device), rand(b, kv, s, d, device=device), rand(b, kv, s, e, device=device)
    cache = rand(b, kv, cap, d, device=device), rand(b, kv, cap, e, device=device)
    for row, n in enumerate(lens):
        cache[0][row, :, n:] = math.nan
        cache[1][row, :, n:] = math.nan
    return q, k, v, cache, torch.tensor(lens, dtype=torch.int32, device=device)


@pytest.mark.parametrize(("b", "h", "s"), [(1, 8, 32), (4, 8, 128), (8, 16, 256)])
def test_the_named_prefills_at_1e3(device: torch.device, b: int, h: int, s: int) -> None:
    """(B1 H8 S32), (B4 H8 S128), (B8 H16 S256): all of it on a GPU, the first two rows in the interpreter."""
    b = min(b, 2) if device.type == "cpu" else b
    h = min(h, 4) if device.type == "cpu" and s == 256 else h
    q, k, v = (rand(b, h, s, 64, device=device) for _ in range(3))
    out, cache = api.attention_with_kv_cache(q, k, v, cache_max_len=s)
    assert isinstance(out, Tensor)
    assert cache is not None and torch.equal(cache[0], k) and torch.equal(cache[1], v)
    held(out, q, k, v)
    ref = attention_reference(q, k, v)
    assert isinstance(ref, Tensor)
    torch.testing.assert_close(out.double(), ref, atol=1e-3, rtol=1e-3)


def test_prefill_of_64_and_10_single_steps_at_1e3(device: torch.device) -> None:
    full = [rand(2, heads, 74, 64, device=device) for heads in (8, 2, 2)]
    outs, lens = [], torch.zeros(2, dtype=torch.int32, device=device)
    cache = None
    for start, end in [(0, 64), *((t, t + 1) for t in range(64, 74))]:
        q, k, v = (t[:, :, start:end] for t in full)
        given = lens.clone()
        out, cache = api.attention_with_kv_cache(q, k, v, cache, lens if start else None, cache_max_len=80)
        assert torch.equal(lens, given), "seq_lens was modified"
        lens = lens + (end - start)
        assert isinstance(out, Tensor)
        outs.append(out)
    together = torch.cat(outs, 2)
    held(together, *full)
    ref = attention_reference(*full)
    assert isinstance(ref, Tensor)
    torch.testing.assert_close(together.double(), ref, atol=1e-3, rtol=1e-3)


def test_one_step_on_256_at_1e3(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 1, 8, 8, 1, [256], 257)
    out, same = api.attention_with_kv_cache(q, k, v, cache, lens)
    assert isinstance(out, Tensor) and same is not None
    assert same[0] is cache[0] and same[1] is cache[1]
    held(out, q, cache[0], cache[1])
    ref = attention_reference(q, *cache)
    assert isinstance(ref, Tensor)
    torch.testing.assert_close(out.double(), ref, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 12, 16])
def test_every_size_of_a_group_ragged_with_an_empty_row(device: torch.device, group: int) -> None:
    q, k, v, cache, lens = step(device, 3, 2 * group, 2, 1, [0, 37, 65], 66, 40, 24)
    (out, lse), _ = api.attention_with_kv_cache(q, k, v, cache, lens, return_lse=True)
    held(out, q, *cache, lens + 1)
    _, want = attention_reference(q, *cache, kv_lens=lens + 1, return_lse=True)
    torch.testing.assert_close(lse.double(), want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("d", "e"), [(16, 16), (96, 64), (192, 128), (256, 256), (17, 33)])
def test_head_sizes_and_dtypes(device: torch.device, dtype: torch.dtype, d: int, e: int) -> None:
    q, k = rand(1, 4, 3, d, device=device, dtype=dtype), rand(1, 2, 35, d, device=device, dtype=dtype)
    v = rand(1, 2, 35, e, device=device, dtype=dtype)
    out = api.attention(q, k, v)
    assert isinstance(out, Tensor) and out.dtype == dtype
    held(out, q, k, v)


def test_queries_beyond_the_keys_see_nothing(device: torch.device) -> None:
    q, k, v = rand(2, 2, 5, 32, device=device), rand(2, 2, 9, 32, device=device), rand(2, 2, 9, 32, device=device)
    lens = torch.tensor([0, 3], dtype=torch.int32, device=device)
    out, lse = api.attention(q, k, v, kv_lens=lens, return_lse=True)
    held(out, q, k, v, lens)
    assert bool((out[0] == 0).all()) and bool((out[1, :, :2] == 0).all())
    assert bool((lse[0] == -math.inf).all()) and bool((lse[1, :, :2] == -math.inf).all())
    assert bool(lse[1, :, 2:].isfinite().all())


def test_no_keys_at_all(device: torch.device) -> None:
    out, lse = api.attention(
        rand(1, 2, 1, 32, device=device), *(rand(1, 2, 0, 32, device=device) for _ in "kv"), return_lse=True
    )
    assert bool((out == 0).all()) and bool((lse == -math.inf).all())


def test_not_causal(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, 3, [20, 5], 24)
    out, _ = api.attention_with_kv_cache(q, k, v, cache, lens, causal=False)
    assert isinstance(out, Tensor)
    held(out, q, *cache, lens + 3, causal=False)


def test_scale_and_big_logits(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 1, 2, 2, 1, [40], 48)
    q[...] = 100 * q
    out, _ = api.attention_with_kv_cache(q, k, v, cache, lens, scale=2.0)
    ref = attention_reference(q, *cache, kv_lens=lens + 1, scale=2.0)
    assert isinstance(ref, Tensor) and isinstance(out, Tensor)
    torch.testing.assert_close(out.double(), ref, atol=2e-3, rtol=2e-3)


def test_strides_of_every_kind(device: torch.device) -> None:
    """[B, N, K, D] storage, every second head size, a row that is shared by expand, an output inside another."""
    base = rand(1, 50, 2, 64, device=device).transpose(1, 2)
    k = base.expand(2, -1, -1, -1)
    v = rand(2, 2, 50, 128, device=device)[..., ::2]
    q = rand(2, 3, 8, 64, device=device).transpose(1, 2)
    room = torch.full((2, 8, 3, 96), math.nan, dtype=HALF, device=device)
    out = room[..., 16:80]
    assert api.attention(q, k, v, out=out) is out
    held(out, q, k, v)
    assert bool(room[..., :16].isnan().all()) and bool(room[..., 80:].isnan().all())


@pytest.mark.parametrize("tokens", [1, 19])
def test_only_the_new_slots_are_written(device: torch.device, tokens: int) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, tokens, [3, 30], 50, 40, 24)
    before, given = [t.clone() for t in cache], lens.clone()
    api.attention_with_kv_cache(q, k, v, cache, lens)
    for now, old, new in zip(cache, before, (k, v), strict=True):
        for row, n in enumerate((3, 30)):
            assert torch.equal(now[row, :, n : n + tokens], new[row])
            assert torch.equal(now[row, :, :n], old[row, :, :n])
            assert bool(now[row, :, n + tokens :].isnan().all())
    assert torch.equal(lens, given)


@pytest.mark.parametrize("tokens", [1, 5])
def test_update_cache_false_sees_the_new_tokens_and_writes_nothing(device: torch.device, tokens: int) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, tokens, [3, 40], 40)  # row 1 is full: nothing is to be written
    before = [t.clone() for t in cache]
    out, same = api.attention_with_kv_cache(q, k, v, cache, lens, update_cache=False)
    assert same is not None and same[0] is cache[0]
    for now, old in zip(cache, before, strict=True):
        assert torch.equal(now.nan_to_num(7), old.nan_to_num(7))
    longer = [torch.cat((old, new), 2) for old, new in zip(cache, (k, v), strict=True)]
    for name, new in enumerate((k, v)):
        for row, n in enumerate((3, 40)):
            longer[name][row, :, n : n + tokens] = new[row]
    assert isinstance(out, Tensor)
    held(out, q, *longer, lens + tokens)


def test_update_cache_false_without_a_cache(device: torch.device) -> None:
    q, k, v = (rand(1, 2, 6, 32, device=device) for _ in range(3))
    out, cache = api.attention_with_kv_cache(q, k, v, update_cache=False)
    assert cache is None and isinstance(out, Tensor)
    held(out, q, k, v)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_row_that_does_not_fit_is_named_and_nothing_is_written(device: torch.device, tokens: int) -> None:
    q, k, v, cache, lens = step(device, 3, 2, 2, tokens, [2, 16, 5], 16)
    before = [t.clone() for t in cache]
    with pytest.raises(ValueError, match=rf"row 1 holds 16 tokens and {tokens} more do not fit.*capacity is 16"):
        api.attention_with_kv_cache(q, k, v, cache, lens)
    for now, old in zip(cache, before, strict=True):
        assert torch.equal(now.nan_to_num(7), old.nan_to_num(7))


def test_without_the_check_other_rows_are_served_and_it_is_flagged(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 3, 2, 2, 1, [2, 16, 5], 16)
    before = [t.clone() for t in cache]
    (out, lse), _ = api.attention_with_kv_cache(q, k, v, cache, lens, check=False, return_lse=True)
    assert bool((out[1] == 0).all()) and bool((lse[1] == -math.inf).all())
    assert torch.equal(cache[0][1], before[0][1]) and torch.equal(cache[1][1], before[1][1])
    rows = [0, 2]
    held(out[rows], q[rows], cache[0][rows], cache[1][rows], lens[rows] + 1)
    with pytest.raises(ValueError, match=r"row 1 holds 16 tokens and 1 more do not fit.*capacity is 16"):
        api.check_overflow(q.device)
    api.check_overflow()  # raised once


def test_a_length_beyond_the_keys_is_flagged(device: torch.device) -> None:
    q, k, v = rand(2, 2, 1, 32, device=device), rand(2, 2, 9, 32, device=device), rand(2, 2, 9, 32, device=device)
    out = api.attention(q, k, v, kv_lens=torch.tensor([9, 10], dtype=torch.int32, device=device))
    assert isinstance(out, Tensor) and bool((out[1] == 0).all())
    with pytest.raises(ValueError, match="row 1 has a length of 10: there are 9 keys"):
        api.check_overflow()


def test_int64_lengths(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 2, 2, 1, [2, 9], 16)
    out, _ = api.attention_with_kv_cache(q, k, v, cache, lens.long())
    assert isinstance(out, Tensor)
    held(out, q, *cache, lens + 1)


@pytest.mark.parametrize(("m", "n"), [(16, 16), (32, 64), (64, 128)])
def test_block_sizes_change_nothing_but_rounding(device: torch.device, m: int, n: int) -> None:
    q, k, v = rand(1, 4, 20, 64, device=device), rand(1, 2, 90, 64, device=device), rand(1, 2, 90, 64, device=device)
    out = api.attention(q, k, v, block_m=m, block_n=n)
    assert isinstance(out, Tensor)
    held(out, q, k, v)


def test_the_kernel_ran_and_agrees_with_the_reference_function(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, 2, [2, 9], 16)
    plan = DecodePlan(2, 4, 2, 64, 16, queries=2, dtype=HALF, device=device)
    assert plan.triton and "dot" in plan.why()
    other = tuple(t.clone() for t in cache)
    (want, want_lse), _ = attention_with_kv_cache_reference(q, k, v, (other[0], other[1]), lens, return_lse=True)
    (out, lse), _ = api.attention_with_kv_cache(q, k, v, cache, lens, return_lse=True)
    torch.testing.assert_close(out, want, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, want_lse, atol=1e-4, rtol=1e-5)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(cache, other, strict=True))


def test_the_environment_forces_a_backend(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (rand(1, 2, 3, 32, device=device) for _ in range(3))
    monkeypatch.setenv("KERNELS_BACKEND", "reference")
    assert not DecodePlan(1, 2, 2, 32, 3, dtype=HALF, device=device).triton
    monkeypatch.setattr("kernels.kv_decode.plan.launch", None)  # a launch would fail
    out = api.attention(q, k, v)
    assert isinstance(out, Tensor)
    held(out, q, k, v)
    monkeypatch.setenv("KERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="backend 'fast': one of auto, triton, reference"):
        api.attention(q, k, v)
    monkeypatch.delenv("KERNELS_BACKEND")
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        api.attention(q.double(), k.double(), v.double(), backend="triton")


def test_errors_name_shapes_values_and_the_right_form(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [2, 9], 16)
    call = api.attention_with_kv_cache
    with pytest.raises(ValueError, match=r"seq_lens is missing: int32 \[B\]"):
        call(q, k, v, cache)
    with pytest.raises(ValueError, match=r"seq_lens must be int32 \[2\] on"):
        call(q, k, v, cache, lens[:1])
    with pytest.raises(ValueError, match=r"seq_lens must be int32 \[2\] on .* not torch.float32"):
        call(q, k, v, cache, lens.float())
    with pytest.raises(ValueError, match=r"cache's value .* must be \(2, 2, 16, 64\)"):
        call(q, k, v, (cache[0], cache[1][:, :, :9]), lens)
    with pytest.raises(ValueError, match=r"cache's key .*float32"):
        call(q, k, v, (cache[0].float(), cache[1]), lens)
    with pytest.raises(ValueError, match="one dtype and one device"):
        call(q, k.float(), v, cache, lens)
    with pytest.raises(ValueError, match="must have as many in its third place"):
        call(q.repeat(1, 1, 2, 1), k, v, cache, lens)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        api.attention(q, *(rand(2, 3, 9, 64, device=device) for _ in "kv"))
    with pytest.raises(ValueError, match=r"key must be \[2, K, N, 64\]|k must be \[2, K, N, 64\]"):
        api.attention(q, *(rand(2, 2, 9, 32, device=device) for _ in "kv"))
    with pytest.raises(ValueError, match=r"block_m is 24: a power of two from 16 to 256"):
        api.attention(q, *cache, block_m=24)
    with pytest.raises(ValueError, match="bytes of shared memory"):
        wide = [rand(1, 1, 9, 256, device=device) for _ in range(3)]
        api.attention(*wide, block_n=256)
    with pytest.raises(ValueError, match="floating point"):
        api.attention(*(t.int() for t in (q, *cache)))
    with pytest.raises(ValueError, match=r"out is .* is needed"):
        api.attention(q, *cache, out=q[:1])
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        api.attention(q.requires_grad_(), *cache)
    with torch.no_grad():
        api.attention(q, *cache, kv_lens=lens)
    with pytest.raises(ValueError, match=r"head sizes 264 .* must be in 1..256"):
        api.attention(*(rand(1, 1, 4, 264, device=device) for _ in range(3)))


def test_a_length_without_a_cache_is_refused(device: torch.device) -> None:
    q, k, v = (rand(1, 2, 3, 32, device=device) for _ in range(3))
    with pytest.raises(ValueError, match="row 0 has a length of 4, but no past_key_value holds those tokens"):
        api.attention_with_kv_cache(q, k, v, seq_lens=torch.tensor([4], dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="3 more do not fit: the cache's capacity is 2"):
        api.attention_with_kv_cache(q, k, v, cache_max_len=2)


@pytest.mark.parametrize("shape", [(0, 2, 1), (2, 2, 0)])
def test_nothing_to_do(device: torch.device, shape: tuple[int, int, int]) -> None:
    q, k, v = (rand(*shape, 32, device=device) for _ in range(3))
    out, cache = api.attention_with_kv_cache(q, k, v, cache_max_len=8)
    assert isinstance(out, Tensor) and out.shape == (*shape, 32)
    assert cache is not None and cache[0].shape == (shape[0], 2, 8, 32)


def test_a_config_is_described() -> None:
    assert str(Config("one", 1, 128, 4, 4)) == "one 1x128, 4 warps, 4 stages, pdl 2"


def test_lengths_near_2_to_the_31_fit_nowhere(device: torch.device) -> None:
    """length + tokens must not wrap around in 32 bits: it would write far outside of the cache."""
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [2, 9], 16)
    before = [t.clone() for t in cache]
    lens[1] = 2**31 - 1
    out, _ = api.attention_with_kv_cache(q, k, v, cache, lens, check=False)
    assert isinstance(out, Tensor) and not out[1].any() and out[0].any()
    for now, then in zip(cache, before, strict=True):
        assert torch.equal(now[1].nan_to_num(), then[1].nan_to_num())
    with pytest.raises(ValueError, match="row 1 holds 2147483647 tokens"):
        api.check_overflow()


def test_lengths_with_strides_and_lengths_that_are_none(device: torch.device) -> None:
    q, k, v = (rand(2, 2, 9, 32, device=device) for _ in range(3))
    wide = torch.tensor([3, -7, 8, -7], dtype=torch.int32, device=device)
    got = api.attention(q, k, v, kv_lens=wide[::2])
    want = api.attention(q, k, v, kv_lens=wide[::2].clone())
    assert isinstance(got, Tensor) and isinstance(want, Tensor) and torch.equal(got, want)
    with pytest.raises(ValueError, match=r"kv_lens must be int32 \[2\] on .* not torch.int32 \(4,\)"):
        api.attention(q, k, v, kv_lens=wide)
    with pytest.raises(ValueError, match="row 1 has a length of 5, but no past_key_value holds those tokens"):
        lens = torch.tensor([0, 5], device=device)
        api.attention_with_kv_cache(q, k, v, seq_lens=lens, cache_max_len=16, check=False)
    with pytest.raises(ValueError, match="head sizes of 1 or more"):
        api.attention(q, k, v[..., :0])


@pytest.mark.long
def test_small_weights_are_not_lost_beside_a_large_one(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of 1 and 9599 of 2^-25, 600 of them in its own slot: added to it one by one they come to nothing."""
    n, dim = 9600, 16
    q, k, v = (torch.zeros(1, 1, length, dim, dtype=HALF, device=device) for length in (1, n, n))
    q[..., 0] = 1.0
    k[..., 1:, 0] = -25.0  # to base 2
    lens = torch.tensor([n - 1], dtype=torch.int32, device=device)
    want = math.log1p((n - 1) * 2.0**-25)

    def off_by() -> float:
        one = Config("one", 1, 16, 4, 2)
        plan = DecodePlan(1, 1, 1, dim, n, dtype=HALF, device=device, splits=1, scale=math.log(2), config=one, lse=True)
        plan.run(q, k[:, :, -1:].clone(), v[:, :, -1:].clone(), k, v, lens)
        assert plan.lse is not None
        return abs(float(plan.lse) - want)

    assert off_by() < 1e-6
    monkeypatch.setattr("kernels.kv_decode.launch.ONE_BY_ONE", n)
    assert off_by() > 1e-5
