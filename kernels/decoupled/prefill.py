"""Decoupled attention for many queries at once: one dense attention by q' and k', through PyTorch's SDPA.

    s_tu = tau_h [ 2 g_t (q^s_t . k^s_u) / sqrt(S) + 2 (1 - g_t) (q^g_t . k^g_u) / sqrt(G) ]
         = q'_t . k'_u     q' = tau [ 2 g q^s / sqrt(S) ; 2 (1 - g) q^g / sqrt(G) ],   k' = [ k^s ; k^g ]

Differentiable: prefill and training use it; `reference` and the kernels are for decode. RoPE is the caller's: q_geo and
k_geo come rotated, the null token never is. It converts no dtype and keeps no cache. Called by models and tests.

Shape letters: B rows, H query heads, K KV heads, T queries, N keys, S = d_sem, G = d_geo, V = d_v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from kernels.decoupled.reference import NullToken


def gated_queries(
    q_sem: Tensor, q_geo: Tensor, gate: Tensor, temperature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(tau 2 g q_sem / sqrt(S), tau 2 (1 - g) q_geo / sqrt(G)): what `decoupled_decode` takes, in the queries' dtype.

    q_sem [B,H,S] or [B,H,T,S], q_geo alike, gate (0..1) [B,H] or [B,H,T], temperature [H] (None: 1).
    """
    if q_sem.shape[:-1] != q_geo.shape[:-1] or gate.shape != q_sem.shape[:-1] or q_sem.dim() not in (3, 4):
        raise ValueError(
            f"q_sem {tuple(q_sem.shape)}, q_geo {tuple(q_geo.shape)} and gate {tuple(gate.shape)} do not fit: "
            "[B,H,T,ds], [B,H,T,dg], [B,H,T], or all without T"
        )
    if temperature is not None:
        if temperature.shape != q_sem.shape[1:2]:
            raise ValueError(f"temperature is {tuple(temperature.shape)}; it must be [{q_sem.shape[1]}], one a head")
        tau_H = temperature.reshape(-1, *[1] * (gate.dim() - 2))
    else:
        tau_H = gate.new_ones(())
    sem = (2 / math.sqrt(q_sem.shape[-1])) * tau_H * gate
    geo = (2 / math.sqrt(q_geo.shape[-1])) * tau_H * (1 - gate)
    return (q_sem * sem.unsqueeze(-1)).to(q_sem.dtype), (q_geo * geo.unsqueeze(-1)).to(q_geo.dtype)


def decoupled_prefill(
    q_sem: Tensor,
    q_geo: Tensor,
    k_sem: Tensor,
    k_geo: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    temperature: Tensor | None = None,
    null: NullToken | None = None,
    causal: bool = True,
) -> Tensor:
    """q_sem [B,H,T,S], q_geo [B,H,T,G], k_sem [B,K,N,S], k_geo [B,K,N,G], v [B,K,N,V], gate [B,H,T] -> [B,H,T,V].

    causal: bottom-right, query i sees the keys u <= N - T + i and always the null token. N >= T >= 1, one dtype.
    With N = T (and where not causal) there is no mask tensor: memory is that of SDPA's fused kernels. ValueError when
    the shapes or dtypes do not fit.
    """
    _check(q_sem, q_geo, k_sem, k_geo, v)
    batch, heads, queries, _ = q_sem.shape
    kv_heads, keys = k_sem.shape[1:3]
    q_BHTD = torch.cat(gated_queries(q_sem, q_geo, gate, temperature), dim=-1)
    k_BKND = torch.cat((k_sem, k_geo), dim=-1)
    first = 0
    if null is not None:
        n_sem, n_geo, n_v = null.rows(batch, kv_heads, (k_sem.shape[-1], k_geo.shape[-1], v.shape[-1]))
        null_BK1D = torch.cat((n_sem, n_geo), dim=-1).unsqueeze(2).to(k_BKND.dtype)
        k_BKND = torch.cat((null_BK1D, k_BKND), dim=2)
        v = torch.cat((n_v.unsqueeze(2).to(v.dtype), v), dim=2)
        if causal and keys == queries:  # a query for the null token makes it square; its answer is dropped
            q_BHTD, first = pad(q_BHTD, (0, 0, 1, 0)), 1
    square = q_BHTD.shape[2] == k_BKND.shape[2]
    mask_TN = None
    if causal and not square:  # is_causal would align top-left
        mask_TN = torch.ones(queries, k_BKND.shape[2], dtype=torch.bool, device=v.device)
        mask_TN = mask_TN.tril(k_BKND.shape[2] - queries)
    out_BHTV = scaled_dot_product_attention(
        q_BHTD, k_BKND, v, mask_TN, is_causal=causal and square, scale=1.0, enable_gqa=heads != kv_heads
    )
    return out_BHTV[:, :, first:]


def _check(q_sem: Tensor, q_geo: Tensor, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> None:
    tensors = {"q_sem": q_sem, "q_geo": q_geo, "k_sem": k_sem, "k_geo": k_geo, "v": v}
    said = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
    if any(x.dim() != 4 for x in tensors.values()) or q_sem.shape[:3] != q_geo.shape[:3]:
        raise ValueError(f"{said}: [B,H,T,ds], [B,H,T,dg], [B,K,N,ds], [B,K,N,dg], [B,K,N,dv] are needed")
    batch, heads, queries, _ = q_sem.shape
    fits = k_sem.shape[:3] == k_geo.shape[:3] == v.shape[:3] and k_sem.shape[0] == batch
    fits = fits and q_sem.shape[3] == k_sem.shape[3] and q_geo.shape[3] == k_geo.shape[3]
    if not fits or k_sem.shape[1] == 0 or heads % k_sem.shape[1]:
        raise ValueError(f"{said} do not belong together: same B, ds, dg; N of all keys; H a multiple of K")
    if not 1 <= queries <= k_sem.shape[2]:
        raise ValueError(f"{queries} queries over {k_sem.shape[2]} keys: the keys include the queries' own tokens")
    if len({x.dtype for x in tensors.values()}) != 1:
        raise ValueError(f"one dtype is needed, not {', '.join(f'{n} {x.dtype}' for n, x in tensors.items())}")
