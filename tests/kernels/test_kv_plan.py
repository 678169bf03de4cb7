"""DecodePlan: how splits are chosen, that their number changes nothing, what is flagged, and replays of a graph."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.checks import judge
from kernels.kv_decode.config import Config, choose_config, choose_splits
from kernels.kv_decode.plan import DecodePlan
from kernels.kv_decode.reference import attention_reference
from tests.kernels.test_kv_decode import HALF, held, rand, step

H200 = 132


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("queries", "group"), [(1, 4), (3, 1), pytest.param(1, 1, marks=LONG), pytest.param(3, 4, marks=LONG)]
)
def test_every_number_of_splits_gives_the_same(device: torch.device, queries: int, group: int) -> None:
    q, k, v, cache, before = step(device, 2, group, 1, queries, [0, 130], 150, 32, 32)
    outs = []
    for splits in (1, 2, 7, 64):
        plan = DecodePlan(
            2, group, 1, 32, 150, queries=queries, dtype=HALF, device=device, splits=splits, block_n=16, lse=True
        )
        assert plan.splits == splits
        for scratch in (plan._scratch.part_o, plan._scratch.part_ml):
            scratch.fill_(math.nan)
        out = plan.run(q, k, v, *cache, before).clone()
        held(out, q, *cache, before + queries)
        if splits == 7:
            assert torch.equal(out, plan.run(q, k, v, *cache, before)), "not the same from run to run"
        assert plan.lse is not None
        outs.append((out, plan.lse.clone()))
        plan.check()
    for out, lse in outs[1:]:
        torch.testing.assert_close(out, outs[0][0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(lse, outs[0][1], atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 4, 4, 2, 1, [5, 77, 31, 0], 80)
    together = DecodePlan(4, 4, 2, 64, 80, dtype=HALF, device=device, splits=3).run(q, k, v, *cache, lens)
    for row in range(4):
        alone = DecodePlan(1, 4, 2, 64, 80, dtype=HALF, device=device, splits=3)
        at = slice(row, row + 1)
        out = alone.run(q[at], k[at], v[at], cache[0][at], cache[1][at], lens[at])
        assert torch.equal(out, together[at])


def test_check_raises_what_the_kernel_flagged_once(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 2, 2, 1, [3, 8], 8)
    plan = DecodePlan(2, 2, 2, 64, 8, dtype=HALF, device=device)
    old = cache[0][1].clone()
    out = plan.run(q, k, v, *cache, lens)
    assert bool((out[1] == 0).all()) and torch.equal(cache[0][1], old)
    with pytest.raises(ValueError, match="row 1 holds 8 tokens and 1 more do not fit: the cache's capacity is 8"):
        plan.check()
    plan.check()
    plan.run(q, k, v, *cache, torch.tensor([-1, 2], dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="row 0 has a length of -1"):
        plan.check()


def test_the_reference_backend_flags_the_same(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 2, 2, 1, [3, 8], 8)
    plan = DecodePlan(2, 2, 2, 64, 8, dtype=HALF, device=device, backend="reference", lse=True)
    assert plan.why().startswith("reference")
    out = plan.run(q, k, v, *cache, lens)
    assert bool((out[1] == 0).all()) and plan.lse is not None and bool((plan.lse[1] == -math.inf).all())
    held(out[:1], q[:1], cache[0][:1], cache[1][:1], lens[:1] + 1)
    with pytest.raises(ValueError, match="row 1 holds 8 tokens and 1 more do not fit"):
        plan.check()
    out = plan.run(q, None, None, *cache, lens)
    held(out, q, *cache, lens)


def test_run_refuses_what_the_plan_is_not_for(device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [3, 8], 16)
    plan = DecodePlan(2, 4, 2, 64, 16, dtype=HALF, device=device)
    with pytest.raises(ValueError, match=r"q is \(2, 4, 2, 64\).*this plan takes \(2, 4, 1, 64\)"):
        plan.run(q.repeat(1, 1, 2, 1), k, v, *cache, lens)
    with pytest.raises(ValueError, match=r"k_cache is .*float32"):
        plan.run(q, k, v, cache[0].float(), cache[1], lens)
    with pytest.raises(ValueError, match="both or neither"):
        plan.run(q, k, None, *cache, lens)
    with pytest.raises(ValueError, match="seq_lens is missing"):
        plan.run(q, k, v, *cache, None)
    with pytest.raises(ValueError, match=r"contiguous int32 \[2\]"):
        plan.run(q, k, v, *cache, lens.repeat_interleave(2)[::2])
    with pytest.raises(ValueError, match="5 query heads cannot share 2"):
        DecodePlan(2, 5, 2, 64, 16, dtype=HALF, device=device)
    with pytest.raises(ValueError, match="splits is 0"):
        DecodePlan(2, 4, 2, 64, 16, dtype=HALF, device=device, splits=0)


def test_splits_fill_the_multiprocessors_once() -> None:
    assert choose_splits(128, 8192, 128, H200) == 1
    assert choose_splits(8, 32768, 128, H200) == 16
    assert choose_splits(64, 65536, 128, H200) == 2
    assert choose_splits(8, 256, 64, H200) == 2  # a short capacity is not cut to pieces
    assert choose_splits(1, 1 << 30, 128, 1 << 20) == 128
    assert choose_splits(500, 8192, 64, H200) == 1
    assert choose_splits(8, 0, 64, H200) == 1


def test_the_measured_choices() -> None:
    assert choose_config(1, 64, 64, HALF, 2048) == Config("one", 1, 128, 4, 4)
    assert choose_config(4, 128, 128, HALF, 260) == Config("dot", 16, 64, 4, 3)
    assert choose_config(4, 128, 128, HALF, 2048) == Config("dot", 16, 128, 4, 3)
    assert choose_config(1, 12, 12, HALF, 2048).form == "dot"  # no loads of 16 bytes


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
def test_a_choice_fits_into_shared_memory(shared: int) -> None:
    for rows in (1, 4, 16, 40, 4096):
        for d, e in ((16, 16), (64, 64), (128, 128), (192, 128), (256, 256)):
            c = choose_config(rows, d, e, HALF, 1 << 20, shared_bytes=shared)
            width = 1 << (d - 1).bit_length()
            wide = 1 << (e - 1).bit_length()
            held_bytes = (c.stages - 1) * c.block_n * (width + wide) * 2 + c.block_m * width * 2
            assert held_bytes <= shared, (rows, d, e, c)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(8, 8), (32, 8)])
def test_a_graph_is_replayed_while_lengths_grow(device: torch.device, heads: tuple[int, int]) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    q, k, v, cache, lens = step(device, 2, *heads, 1, [3, 700], 2048, 128, 128)
    plan = DecodePlan(2, *heads, 128, 2048, dtype=HALF, device=device)
    out = torch.full_like(q, math.nan)
    plan.run(q, k, v, *cache, lens, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(q, k, v, *cache, lens, out=out)
        lens += 1
    start = lens.clone()
    for i in range(40):
        for tensor in (q, k, v):
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert torch.equal(lens, start + i + 1)
        held(out, q, *cache, lens)
    plan.check()
    lens.fill_(2048)
    graph.replay()
    with pytest.raises(ValueError, match=r"row [01] holds 2048 tokens"):
        plan.check()


@pytest.mark.gpu
def test_a_thousand_steps_hold_memory_flat(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    q, k, v, cache, lens = step(device, 4, 32, 8, 1, [0, 1, 2, 3], 1100, 128, 128)
    plan = DecodePlan(4, 32, 8, 128, 1100, dtype=HALF, device=device)
    for _ in range(3):
        plan.run(q, k, v, *cache, lens)
        lens += 1
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    for _ in range(1000):
        plan.run(q, k, v, *cache, lens)
        lens += 1
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)) == before
    plan.check()
    held(plan.run(q, k, v, *cache, lens), q, *cache, lens + 1)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31(device: torch.device) -> None:
    """A cache of 2.2 G elements a tensor, rows and heads and slots all far apart: [B, N, K, D] storage as a view."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    slots, near = 1 << 20, 3
    for view in (False, True):
        shape = (2, slots + 64, 8, 128) if view else (2, 8, slots + 64, 128)
        cache = [torch.empty(shape, dtype=HALF, device=device).normal_() for _ in "kv"]
        k_c, v_c = (t.transpose(1, 2) for t in cache) if view else cache
        assert k_c.numel() > 1 << 31
        lens = torch.tensor([near, slots], dtype=torch.int32, device=device)
        q, k, v = (rand(2, h, 1, 128, device=device) for h in (16, 8, 8))
        plan = DecodePlan(2, 16, 8, 128, slots + 64, dtype=HALF, device=device)
        out = plan.run(q, k, v, k_c, v_c, lens)
        plan.check()
        for row in range(2):
            n = int(lens[row]) + 1
            assert torch.equal(k_c[row, :, n - 1], k[row, :, 0]) and torch.equal(v_c[row, :, n - 1], v[row, :, 0])
            at = slice(row, row + 1)
            refs: list[Tensor] = []
            for head in range(8):  # a head at a time: fp64 copies stay small
                part = slice(head, head + 1)
                ref = attention_reference(q[at, 2 * head : 2 * head + 2], k_c[at, part, :n], v_c[at, part, :n])
                assert isinstance(ref, Tensor)
                refs.append(ref)
            peer = torch.nn.functional.scaled_dot_product_attention(
                q[at], k_c[at, :, :n], v_c[at, :, :n], enable_gqa=True
            )
            verdict = judge(out[at], torch.cat(refs, 1), peer)
            assert verdict.ok, str(verdict)
        del cache, k_c, v_c
        torch.cuda.empty_cache()
