"""Cells whose point is not a shape: a full row, the same answer twice, alone as in a batch, in a replayed graph, with
offsets beyond 2^31. Called by `parity.run`; what is judged and how: `parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kernels.checks import Verdict
from kernels.kv_decode.parity import Inputs, call, expected_cache, judged, make, plan_of, poison, same_bits
from kernels.parity import Cell, Wrong


def run(cell: Cell, device: torch.device, seed: int) -> Verdict:
    kinds: dict[str, Callable[[dict[str, Any], torch.device, int], Verdict]] = {
        "overflow": overflow,
        "twice": twice,
        "alone": alone,
        "expanded": expanded,
        "graph": graph,
        "far": far,
    }
    return kinds[cell.params["kind"]](dict(cell.params), device, seed)


def overflow(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """Row 1 is full already: it writes nothing, gives 0 and is named; the others are served."""
    from kernels.kv_decode import api

    x = make(params, device, seed)
    capacity = x.k_BKCD.shape[2]
    for cache in (x.k_BKCD, x.v_BKCE):
        cache[1] = torch.randn(cache[1].shape, generator=torch.Generator().manual_seed(seed)).to(cache)
    before = x.k_BKCD.clone(), x.v_BKCE.clone()
    want_k, want_v = expected_cache(x)
    want_k[1], want_v[1] = before[0][1], before[1][1]
    x.lengths[1] = capacity
    x.lens[1] = capacity
    if params["call"] == "step":
        new = (x.q_BHSD, x.k_new_BKSD, x.v_new_BKSE, (x.k_BKCD, x.v_BKCE), x.lens)
        expect_overflow(lambda: api.attention_with_kv_cache(*new), 1, capacity)
        same_bits("after a refused call the key cache", x.k_BKCD, before[0])
        same_bits("after a refused call the value cache", x.v_BKCE, before[1])
        (out, lse), _ = api.attention_with_kv_cache(*new, out=x.out_BHSE, return_lse=True, check=False)
        expect_overflow(lambda: api.check_overflow(device), 1, capacity)
        api.check_overflow(device)
    else:
        plan = plan_of(x)
        out = plan.run(x.q_BHSD, x.k_new_BKSD, x.v_new_BKSE, x.k_BKCD, x.v_BKCE, x.lens, out=x.out_BHSE)
        lse = plan.lse
        expect_overflow(plan.check, 1, capacity)
        plan.check()
    same_bits("the key cache", x.k_BKCD, want_k)
    same_bits("the value cache", x.v_BKCE, want_v)
    same_bits("the output of the full row", out[1], torch.zeros_like(out[1]))
    same_bits("the LSE of the full row", lse[1], torch.full_like(lse[1], -torch.inf))
    return judged(x, out, lse, [b for b in range(len(x.lengths)) if b != 1])


def expect_overflow(attempt: Callable[[], object], row: int, capacity: int) -> None:
    try:
        attempt()
    except ValueError as e:
        said = str(e)
        if f"row {row} " not in said or str(capacity) not in said:
            raise Wrong(f"a full row is refused with {said!r}: row {row} and capacity {capacity} must be named") from e
        return
    raise Wrong(f"row {row} is full and nothing was raised")


def twice(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """Bit for bit the same, whatever the scratch memory held."""
    x = make(params, device, seed)
    first, lse = call(x)
    kept = first.clone(), lse.clone()
    for _ in range(8 if device.type == "cuda" else 1):
        again = make(params, device, seed)
        out, lse = call(again)
        same_bits("the second output", out, kept[0])
        same_bits("the second LSE", lse, kept[1])
    return judged(x, *kept)


def alone(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """A row gives the same bits alone as in a batch, with the same number of splits."""
    x = make(params, device, seed)
    capacity = x.k_BKCD.shape[2]
    single = [make({**params, "capacity": capacity}, device, seed) for _ in x.lengths]
    out, lse = call(x)
    for b, one in enumerate(single):
        mine = slice(b, b + 1)
        tensors = (one.q_BHSD, one.k_new_BKSD, one.v_new_BKSE, one.k_BKCD, one.v_BKCE, one.out_BHSE)
        row = Inputs(params, [one.lengths[b]], one.lens[mine], *(t[mine] for t in tensors))
        row_out, row_lse = call(row)
        same_bits(f"row {b} alone", row_out[0], out[b])
        same_bits(f"the LSE of row {b} alone", row_lse[0], lse[b])
    return judged(x, out, lse)


def expanded(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """One prompt for all rows: keys and values with a stride of 0."""
    x = make(params, device, seed)
    x.k_BKCD = make(params, device, seed + 1).k_BKCD[:1].expand_as(x.k_BKCD)
    x.v_BKCE = make(params, device, seed + 1).v_BKCE[:1].expand_as(x.v_BKCE)
    x.lens.clamp_(max=x.lengths[0])
    x.lengths = x.lens.tolist()
    return judged(x, *call(x))


def graph(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """Capture one step, then change lengths, tokens and caches on the device and replay: each replay is judged."""
    x = make({**params, "capacity": 1000}, device, seed)
    plan = plan_of(x)
    step = (x.q_BHSD, x.k_new_BKSD, x.v_new_BKSE, x.k_BKCD, x.v_BKCE, x.lens)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plan.run(*step, out=x.out_BHSE)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        plan.run(*step, out=x.out_BHSE)
    worst: Verdict | None = None
    for turn, length in enumerate((0, 1, 63, 64, 65, 511, 998, 999)):
        lengths = [(length + 37 * b) % 1000 for b in range(len(x.lengths))]
        y = make({**params, "capacity": 1000, "lengths": lengths}, device, seed + turn)
        y.lens = y.lens.to(x.lens)
        fresh = (y.q_BHSD, y.k_new_BKSD, y.v_new_BKSE, y.k_BKCD, y.v_BKCE, y.lens)
        for mine, new in zip((*step, x.out_BHSE), (*fresh, y.out_BHSE), strict=True):
            mine.copy_(new)
        poison(plan)
        captured.replay()
        plan.check()
        for what, got, want in zip(("key", "value"), (x.k_BKCD, x.v_BKCE), expected_cache(y), strict=True):
            same_bits(f"the {what} cache after a replay at {lengths}", got, want)
        verdict = judged(y, x.out_BHSE, plan.lse)
        worst = verdict if worst is None or verdict.err / verdict.tol > worst.err / worst.tol else worst
    assert worst is not None
    return worst


def far(params: dict[str, Any], device: torch.device, seed: int) -> Verdict:
    """More than 2^31 elements in a cache: between rows and heads ("plain"), or within a row ("tokens-first").

    The first, last and middle key of the last head are made to matter; two heads are judged, for memory's sake.
    """
    deep = params["layout"] == "tokens-first"
    batch, kv_heads, dim = (1, params["kv_heads"], params["dim"]) if deep else (3, params["kv_heads"], params["dim"])
    capacity = 2**31 // (kv_heads * dim) + 1000 if deep else 2**31 // ((batch * kv_heads - 1) * dim) + 1000
    lengths = [capacity - 1] if deep else [70, 1, capacity - 1]
    dtype = getattr(torch, params["dtype"])
    torch.manual_seed(seed)
    shape = (batch, capacity, kv_heads, dim) if deep else (batch, kv_heads, capacity, dim)
    k, v = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    k, v = (k.transpose(1, 2), v.transpose(1, 2)) if deep else (k, v)
    q, k_new, v_new = (torch.randn(batch, kv_heads, 1, dim, dtype=dtype, device=device) for _ in range(3))
    for b, n in enumerate(lengths):
        for at in {0, n // 2, n - 1}:
            aligned = q[b, :, 0].float()
            k[b, :, at] = (aligned * (17 * dim**0.5 / aligned.square().sum(-1, keepdim=True))).to(dtype)
        k[b, :, n:] = torch.nan
        v[b, :, n:] = torch.nan
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    x = Inputs(params, lengths, lens, q, k, v_new, k, v, torch.full_like(q, torch.nan))
    x.k_new_BKSD = k_new
    if (batch * kv_heads * capacity - 1) * dim < 2**31:
        raise ValueError("a far cell must reach beyond 2^31 elements")
    out, lse = call(x)
    heads = torch.tensor([0, kv_heads - 1], device=device)
    for b, n in enumerate(lengths):
        same_bits(f"the new key of row {b}", k[b, :, n], k_new[b, :, 0])
        same_bits(f"the new value of row {b}", v[b, :, n], v_new[b, :, 0])
    part = Inputs(params, lengths, lens, q[:, heads], k_new[:, heads], v_new[:, heads], k[:, heads], v[:, heads], out)
    return judged(part, out[:, heads], lse[:, heads])
