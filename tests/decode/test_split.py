"""A cache held by a policy: with fp16 it is plain attention; else what it holds is rounded, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.decoupled.policy import KVCachePolicy
from kernels.kv_decode.cache import KVCache
from tests.decode.desk import SPEC
from workloads.decode import figures
from workloads.decode.conversation import Conversation
from workloads.decode.splitcache import SplitCache
from workloads.models.decoder import Decoder

FP16 = "ksem=fp16,kgeo=fp16,v=fp16,resid={}"
MIXED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid={}"
ROWS, HEADS, KV_HEADS, DIM, ROOM = 3, 4, 2, 64, 40


def caches(policy: str) -> tuple[SplitCache, KVCache]:
    how: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    held = SplitCache(ROWS, ROOM, KV_HEADS, DIM, policy=KVCachePolicy.parse(policy), **how)
    return held, KVCache(ROWS, ROOM, KV_HEADS, DIM, **how)


def step(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; the keys and values are exact in fp16."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(ROWS, heads, tokens, DIM, generator=gen) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q, k.half().float(), v.half().float()


def test_in_fp16_it_is_the_plain_cache() -> None:
    for resid in (0, 5):
        held, plain = caches(FP16.format(resid))
        counts = torch.tensor([7, 3, 1], dtype=torch.int32)
        for seed, (tokens, some) in enumerate([(7, counts), (1, None), (1, None), (4, None), (1, None)]):
            q, k, v = step(tokens, seed)
            ours, theirs = (cache.attend(q, k, v, counts=some) for cache in (held, plain))
            for row, real in enumerate(counts.tolist() if some is not None else [tokens] * ROWS):
                torch.testing.assert_close(ours[row, :, :real], theirs[row, :, :real], rtol=0, atol=1e-5)
            assert held.lengths.tolist() == plain.lengths.tolist() and held.longest >= int(held.lengths.max())
        held.truncate(torch.tensor([5, 20, 2], dtype=torch.int32))
        plain.truncate(torch.tensor([5, 20, 2], dtype=torch.int32))
        q, k, v = step(2, 9)
        ours, theirs = held.fork([2, 0]), plain.fork([2, 0])
        q, k, v = q[:2], k[:2], v[:2]
        torch.testing.assert_close(ours.attend(q, k, v), theirs.attend(q, k, v), rtol=0, atol=1e-5)
        assert ours.lengths.tolist() == [4, 7] and held.lengths.tolist() == [5, 10, 2]


def test_a_prompt_sees_stored_tokens_as_stored_and_its_own_exactly() -> None:
    held, _ = caches(MIXED.format(4))
    held.attend(*step(12, 0))
    k_sem, k_geo, v_old = held.held.dequantized(torch.float32)
    k_old = torch.cat((k_sem, k_geo), -1)[:, :, :12]
    q, k, v = step(5, 1)
    mask = torch.ones(5, 17, dtype=torch.bool).tril(12)
    expected = scaled_dot_product_attention(
        q, torch.cat((k_old, k), 2), torch.cat((v_old[:, :, :12], v), 2), mask, enable_gqa=True
    )
    torch.testing.assert_close(held.attend(q, k, v), expected, rtol=0, atol=1e-5)
    exact = step(12, 0)[1]
    assert (k_old[:, :, 8:] == exact[:, :, 8:]).all() and not torch.equal(k_old[:, :, :8], exact[:, :, :8])
    held.attend(*step(1, 2))
    after = held.held.dequantized(torch.float32)
    assert torch.equal(torch.cat(after[:2], -1)[:, :, 17:18], step(1, 2)[1])  # the newest token lies in the tail


def test_a_long_prompt_is_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for chunk in (512, 3):
        monkeypatch.setattr("workloads.decode.splitcache.CHUNK", chunk)
        held, _ = caches(MIXED.format(4))
        held.attend(*step(9, 0), counts=torch.tensor([9, 2, 5], dtype=torch.int32))
        both.append(held.attend(*step(11, 1)))
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)


def test_what_a_captured_graph_is_warmed_up_with_leaves_no_trace() -> None:
    held, _ = caches(MIXED.format(4))
    held.attend(*step(10, 0))
    same = held.fork(range(ROWS))
    mark = held.mark()
    for seed in (1, 2):
        held.attend(*step(1, seed))
        held.reset(mark)
    assert held.lengths.tolist() == [10] * ROWS and held.longest == 10
    for seed in range(3, 9):  # what left the tail meanwhile is quantized again, and from the right values
        assert torch.equal(held.attend(*step(1, seed)), same.attend(*step(1, seed)))
    assert all(map(torch.equal, held.held.dequantized(), same.held.dequantized()))


def test_conversations_with_a_policy_keep_what_was_said(model: Decoder) -> None:
    plain = Conversation(model, rows=2, capacity=64)
    held = Conversation(model, rows=2, capacity=64, policy=KVCachePolicy.parse(FP16.format(4)))
    for turn in ([[5, 6, 7], [9]], [[], [1, 2]], [[4], [4]]):
        assert held.turn(turn, 6) == plain.turn(turn, 6)
    assert held.logits is not None and plain.logits is not None
    torch.testing.assert_close(held.logits, plain.logits, rtol=0, atol=0.05)
    held.back()
    plain.back()
    assert held.turn([[8], [7]], 4) == plain.turn([[8], [7]], 4) and held.tokens == plain.tokens
    with pytest.raises(ValueError, match="row 0 is full"):
        held.turn([[1] * 60, [1]], 4)
    assert held.tokens == plain.tokens  # as before the turn
    with pytest.raises(ValueError, match="does not grow beyond 8"):
        Conversation(model, capacity=8, max_capacity=16, policy=KVCachePolicy.parse(FP16.format(4)))


def test_equal_seeds_draw_equally_and_a_watch_hears_every_step(model: Decoder) -> None:
    from workloads.decode.sampling import Sampling

    heard: list[int] = []
    talk = Conversation(model, capacity=64, sampling=Sampling(1.5, seed=1), watch=heard.append)
    first = talk.turn([[3]], 12)
    talk.back()
    other = talk.turn([[3]], 12)
    talk.back()
    talk.reseed(1)
    assert talk.turn([[3]], 12) == first != other and heard == [*range(12)] * 3


@pytest.mark.parametrize("resid", [0, 4, 64])
def test_bytes_are_those_of_the_tensors(resid: int) -> None:
    """What a step is said to read of a full cache is what its tensors hold, books and rounding of slots aside."""
    model, policy = Decoder(SPEC, 256), KVCachePolicy.parse(MIXED.format(resid))
    half, heads = SPEC.d_head // 2, SPEC.kv_heads
    length = 64 + resid
    stored = policy.bytes(1, 64, heads, half, half, SPEC.d_head) - 12  # 64 quantized, a full tail
    assert figures.cache_bytes(model, policy, length) == SPEC.layers * stored
    plain = model.new_caches(1, 100)
    assert figures.cache_bytes(model, None, 100) == sum(cache.size_bytes for cache in plain)
    tied = Decoder(SPEC.model_copy(update={"tie_embeddings": True}), 256)
    assert figures.weight_bytes(tied) == figures.tensor_bytes(tied)
    assert figures.weight_bytes(model) == figures.tensor_bytes(model) - 255 * SPEC.dim * 4
