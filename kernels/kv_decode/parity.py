"""The cells of kv_decode for `kernels.parity`: makes a case's inputs, runs it, judges output, LSE and side effects.

A side effect is a fault too (`Wrong`): a slot of the cache that changed or stayed, lengths that were touched, another
answer the second time, in another batch or in a replayed graph. Which cases there are: `matrix.py`; those whose inputs
are special: `parity_special.py`. Called by the runner and by tests.

Letters: B rows, H query heads, K key/value heads, C capacity, S queries a row, D and E sizes of a key and a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.checks import Verdict, judge
from kernels.kv_decode.matrix import FULL, cells
from kernels.kv_decode.reference import attention_reference, visible
from kernels.parity import Cell, Wrong

__all__ = ["Inputs", "call", "cells", "judged", "make", "plan_of", "run"]

NAN = float("nan")


@dataclass
class Inputs:
    """A case on its device. `lengths`: before the call, `lens` the same as a tensor. `want_*` is what the cache must be
    afterwards, NaN in every slot that nobody may read."""

    params: dict[str, Any]
    lengths: list[int]
    lens: Tensor
    q_BHSD: Tensor
    k_new_BKSD: Tensor
    v_new_BKSE: Tensor
    k_BKCD: Tensor
    v_BKCE: Tensor
    out_BHSE: Tensor

    @property
    def scale(self) -> float | None:
        found: float | None = self.params["scale"]
        return found

    @property
    def appends(self) -> bool:
        """Whether new tokens come behind the cache (plain attention has all its keys there)."""
        return str(self.params["call"]) != "attention"

    @property
    def writes(self) -> bool:
        return str(self.params["call"]) not in ("attention", "dry")


def run(cell: Cell, device: torch.device, seed: int) -> Verdict:
    """Judge one cell; `Wrong` for a fault that is no number."""
    from kernels.kv_decode import parity_special

    if cell.params["kind"] != "matrix":
        return parity_special.run(cell, device, seed)
    x = make(dict(cell.params), device, seed)
    want_k, want_v = expected_cache(x)
    lens = x.lens.clone()
    out, lse = call(x)
    if not torch.equal(lens, x.lens):
        raise Wrong(f"the lengths changed from {lens.tolist()} to {x.lens.tolist()}")
    for name, got, want in (("key", x.k_BKCD, want_k), ("value", x.v_BKCE, want_v)):
        same_bits(f"the {name} cache", got, want)
    return judged(x, out, lse)


def make(params: dict[str, Any], device: torch.device, seed: int) -> Inputs:
    """The inputs of a case, the same on every device for one seed."""
    new = 0 if params["call"] in ("attention", "dry") else params["queries"]
    longest = max(params["lengths"])
    capacity = params.get("capacity", 100 if FULL in params["lengths"] else longest + new + 5)
    lengths = [capacity - new if n == FULL else n for n in params["lengths"]]
    dtype, batch = getattr(torch, params["dtype"]), len(lengths)
    source = torch.Generator().manual_seed(seed + 1)

    def random(heads: int, tokens: int, dim: int, times: float = 1.0) -> Tensor:
        shape = (batch, heads, tokens, dim)
        return laid_out(torch.randn(shape, generator=source) * times, params["layout"], dtype, device)

    big_q, big_k = (30.0, 100.0) if params["big"] else (1.0, 1.0)
    kv_heads, queries, dim, v_dim = (params[k] for k in ("kv_heads", "queries", "dim", "v_dim"))
    x = Inputs(
        params,
        lengths,
        torch.tensor(lengths, dtype=torch.int64 if params["lens64"] else torch.int32, device=device),
        random(params["q_heads"], queries, dim, big_q),
        random(kv_heads, queries, dim, big_k),
        random(kv_heads, queries, v_dim),
        random(kv_heads, capacity, dim, big_k),
        random(kv_heads, capacity, v_dim),
        laid_out(torch.full((batch, params["q_heads"], queries, v_dim), NAN), params["layout"], dtype, device),
    )
    for b, n in enumerate(lengths):
        x.k_BKCD[b, :, n:] = NAN
        x.v_BKCE[b, :, n:] = NAN
    return x


def laid_out(values: Tensor, layout: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[B, H, N, D] in memory: "plain" as it reads; "tokens-first" [B, N, H, D]; "odd": rows 3 elements apart and every
    second element of a row, so nothing is aligned. What lies between is NaN."""
    batch, heads, tokens, dim = values.shape
    if layout == "plain":
        view = torch.empty(batch, heads, tokens, dim, dtype=dtype, device=device)
    elif layout == "tokens-first":
        view = torch.empty(batch, tokens, heads, dim, dtype=dtype, device=device).transpose(1, 2)
    else:
        wide = torch.full((batch, heads, tokens, 2 * dim + 3), NAN, dtype=dtype, device=device)
        view = wide[..., 1 : 2 * dim + 1 : 2]
    view.copy_(values)
    return view


def plan_of(x: Inputs) -> Any:
    """The plan of a "plan<splits>" call, its scratch memory full of NaN."""
    from kernels.kv_decode.plan import DecodePlan

    p = x.params
    plan = DecodePlan(
        len(x.lengths),
        p["q_heads"],
        p["kv_heads"],
        p["dim"],
        x.k_BKCD.shape[2],
        v_head_dim=p["v_dim"],
        queries=p["queries"],
        dtype=x.q_BHSD.dtype,
        device=x.q_BHSD.device,
        splits=int(p["call"].removeprefix("plan")),
        scale=x.scale,
        causal=p["causal"],
        lse=True,
    )
    poison(plan)
    return plan


def poison(plan: Any) -> None:
    plan._scratch.part_o.fill_(NAN)
    plan._scratch.part_ml.fill_(NAN)
    plan.lse.fill_(NAN)


def call(x: Inputs) -> tuple[Tensor, Tensor]:
    """Output and LSE from the public function that the case names. A first call's cache becomes the case's."""
    from kernels.kv_decode import api

    name = x.params["call"]
    blocks = x.params["blocks"] or (None, None)
    sizes: dict[str, Any] = {"block_m": blocks[0], "block_n": blocks[1]}
    same: dict[str, Any] = {"scale": x.scale, "causal": x.params["causal"], "out": x.out_BHSE, "return_lse": True}
    if name == "attention":
        found = api.attention(x.q_BHSD, x.k_BKCD, x.v_BKCE, kv_lens=x.lens, **same, **sizes)
        return found[0], found[1]
    if name.startswith("plan"):
        plan = plan_of(x)
        plan.run(x.q_BHSD, x.k_new_BKSD, x.v_new_BKSE, x.k_BKCD, x.v_BKCE, x.lens, out=x.out_BHSE)
        plan.check()
        return x.out_BHSE, plan.lse
    past = None if name == "first" else (x.k_BKCD, x.v_BKCE)
    lens = None if name == "first" else x.lens
    (out, lse), cache = api.attention_with_kv_cache(
        x.q_BHSD, x.k_new_BKSD, x.v_new_BKSE, past, lens, x.k_BKCD.shape[2], name != "dry", **same, **sizes
    )
    if cache is None or (past is not None and cache[0].data_ptr() != past[0].data_ptr()):
        raise Wrong("the cache that was given must come back")
    if name == "first":  # slots above the new tokens were made by the call and may hold anything
        tokens = x.params["queries"]
        x.k_BKCD[:, :, :tokens], x.v_BKCE[:, :, :tokens] = cache[0][:, :, :tokens], cache[1][:, :, :tokens]
    return out, lse


def expected_cache(x: Inputs) -> tuple[Tensor, Tensor]:
    """Copies of the cache as it must be after the call."""
    k, v = x.k_BKCD.clone(), x.v_BKCE.clone()
    for b, n in enumerate(x.lengths if x.writes else ()):
        k[b, :, n : n + x.params["queries"]] = x.k_new_BKSD[b]
        v[b, :, n : n + x.params["queries"]] = x.v_new_BKSE[b]
    return k, v


def row_of(x: Inputs, b: int) -> tuple[Tensor, Tensor]:
    """Keys [1, K, n, D] and values [1, K, n, E] that row b attends to, the new ones last."""
    n = x.lengths[b]
    k, v = x.k_BKCD[b : b + 1, :, :n], x.v_BKCE[b : b + 1, :, :n]
    if not x.appends:
        return k, v
    return torch.cat((k, x.k_new_BKSD[b : b + 1]), dim=2), torch.cat((v, x.v_new_BKSE[b : b + 1]), dim=2)


def sdpa(q_1HSD: Tensor, k_1KND: Tensor, v_1KNE: Tensor, causal: bool, scale: float | None) -> Tensor:
    """PyTorch in the dtype of the inputs, with the mask written out; 0 for a query that sees nothing."""
    queries, keys, group = q_1HSD.shape[2], k_1KND.shape[2], q_1HSD.shape[1] // k_1KND.shape[1]
    mask = visible(queries, keys, q_1HSD.device)
    mask = mask if causal else torch.ones_like(mask)
    some = mask.any(1)
    out = q_1HSD.new_zeros(*q_1HSD.shape[:3], v_1KNE.shape[3])
    if some.any():
        k, v = (t.repeat_interleave(group, 1).contiguous() for t in (k_1KND, v_1KNE))
        q = q_1HSD[:, :, some].contiguous()
        out[:, :, some] = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[some], scale=scale)
    return out


def judged(x: Inputs, out_BHSE: Tensor, lse_BHS: Tensor, rows: list[int] | None = None) -> Verdict:
    """The verdict on output and LSE of these rows (all of them); the worse of the two.

    PyTorch's own error depends on the order of the sum in q . k, and at logits of 1e4 on little else: there it is the
    largest of four orders of its own, which a CPU's vector width regroups, and of one element after the other.
    """
    keep = list(range(len(x.lengths))) if rows is None else rows
    orders = orders_of(x.params["dim"], 4 if x.params["big"] else 1, x.q_BHSD.device)
    scale = 1 / math.sqrt(x.params["dim"]) if x.scale is None else x.scale
    found: list[list[Tensor]] = [[], [], [], []]
    for b in keep:
        q, (k, v), causal = x.q_BHSD[b : b + 1], row_of(x, b), x.params["causal"]
        exact = attention_reference(q, k, v, causal=causal, scale=scale, return_lse=True)
        peers = [sdpa(q[..., o], k[..., o], v, causal, scale) for o in orders]
        lses = [attention_reference(q[..., o], k[..., o], v, causal=causal, scale=scale, dtype=torch.float32,
                                    return_lse=True)[1] for o in orders]  # fmt: skip
        if x.params["big"]:
            peer, lse_peer = one_by_one(q, k, v, causal, scale)
            peers, lses = [*peers, peer], [*lses, lse_peer]
        for into, value in zip(found, (*exact, torch.stack(peers), torch.stack(lses)), strict=True):
            into.append(value)
    out, lse = torch.cat(found[0]), torch.cat(found[1])
    outs, all_lses = torch.cat(found[2], dim=1), torch.cat(found[3], dim=1)
    verdicts = [
        judge(got.expand_as(many), want.expand_as(many), many)
        for got, want, many in ((out_BHSE[keep], out, outs), (lse_BHS[keep], lse, all_lses))
    ]
    return max(verdicts, key=lambda v: v.err / v.tol)


def one_by_one(q_1HSD: Tensor, k_1KND: Tensor, v_1KNE: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """PyTorch's (out in the dtype of v, LSE) from float32 logits that are summed over the head one by one."""
    group = q_1HSD.shape[1] // k_1KND.shape[1]
    q, k, v = q_1HSD.float(), *(t.float().repeat_interleave(group, 1) for t in (k_1KND, v_1KNE))
    s_1HSN = q.new_zeros(*q.shape[:3], k.shape[2])
    for d in range(q.shape[3]):
        s_1HSN += q[..., d, None] * k[..., None, :, d]
    s_1HSN *= scale
    if causal:
        s_1HSN.masked_fill_(~visible(q.shape[2], k.shape[2], q.device), -math.inf)
    lse = s_1HSN.logsumexp(-1)
    p_1HSN = s_1HSN.softmax(-1).masked_fill((lse == -math.inf).unsqueeze(-1), 0.0)
    return (p_1HSN @ v).to(v_1KNE.dtype), lse


def orders_of(dim: int, count: int, device: torch.device) -> list[Tensor]:
    """`count` orders of the head's elements, the natural one first."""
    source = torch.Generator().manual_seed(dim)
    shuffled = [torch.randperm(dim, generator=source).to(device) for _ in range(count - 1)]
    return [torch.arange(dim, device=device), *shuffled]


def same_bits(what: str, got: Tensor, want: Tensor) -> None:
    """`Wrong` naming the first place where two tensors differ (NaN equals NaN)."""
    differ = ~((got == want) | (got.isnan() & want.isnan()))
    if differ.any():
        at = differ.nonzero()[0].tolist()
        raise Wrong(f"{what} is {got[tuple(at)]} at {at}, not {want[tuple(at)]} ({int(differ.sum())} places differ)")
