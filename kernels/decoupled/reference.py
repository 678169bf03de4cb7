"""Decoupled attention over one new token's queries: the dense definition, and the streaming one the kernels follow.

    s_u = scale_sem (q_sem . k_sem_u) + scale_geo (q_geo . k_geo_u)         u < length; one softmax over u and the null
    out = sum_u softmax(s)_u v_u                                            output 0, LSE -inf where nothing is visible

The gate, the temperature and 2/sqrt(d) are in the queries already (see `prefill.gated_queries`). Plain PyTorch, in
fp64 unless asked; keys at or above a row's length are never read (they may hold NaN). Called by tests, parity and, on
machines without Triton, by the api. It never looks at quantized codes: `QuantizedCache.dequantized` makes the values.

Shape letters: B rows, H query heads, K KV heads (query head h reads KV head h // (H / K)), J = H / K, N keys,
S = d_sem, G = d_geo, V = d_v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NullToken:
    """A learned token that every query sees, without RoPE: [K, d] for all rows, or [B, K, d]; any strides."""

    k_sem: Tensor
    k_geo: Tensor
    v: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(x.shape) for x in (self.k_sem, self.k_geo, self.v)]
        if any(len(s) not in (2, 3) for s in shapes) or len({s[:-1] for s in shapes}) != 1:
            raise ValueError(
                f"a null token is k_sem, k_geo, v of [Hkv, d] or all of [B, Hkv, d], not {', '.join(map(str, shapes))}"
            )

    def rows(self, batch: int, kv_heads: int, dims: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(k_sem, k_geo, v) as [B, K, d] views; dims = (S, G, V). ValueError unless they fit."""
        parts = (self.k_sem, self.k_geo, self.v)
        for name, x, dim in zip(("k_sem", "k_geo", "v"), parts, dims, strict=True):
            if x.shape not in ((kv_heads, dim), (batch, kv_heads, dim)):
                raise ValueError(
                    f"null {name} is {tuple(x.shape)}; it must be [{kv_heads}, {dim}] or [{batch}, {kv_heads}, {dim}]"
                )
        k_sem, k_geo, v = (x.expand(batch, kv_heads, x.shape[-1]) for x in parts)
        return k_sem, k_geo, v


@dataclass(frozen=True)
class Tail:
    """Tokens beside the prefix, in any order: [B, K, R, d]; row b sees `visible_BR` (bool). Hidden ones may be NaN."""

    k_sem: Tensor
    k_geo: Tensor
    v: Tensor
    visible_BR: Tensor


@dataclass(frozen=True)
class State:
    """The running softmax of some keys: m = max s (-inf: none), d = sum e^(s-m), o = sum e^(s-m) v (not divided)."""

    m_BH: Tensor
    d_BH: Tensor
    o_BHV: Tensor


def decoupled_decode_reference(
    q_sem: Tensor,
    q_geo: Tensor,
    k_sem: Tensor,
    k_geo: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    null: NullToken | None = None,
    scale_sem: float = 1.0,
    scale_geo: float = 1.0,
    dtype: torch.dtype = torch.float64,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition. q_sem [B,H,S], q_geo [B,H,G], k_sem [B,K,N,S], k_geo [B,K,N,G], v [B,K,N,V], lengths int [B].

    lengths None: all N keys. Computed and returned in `dtype`: out [B,H,V], with return_lse also lse [B,H].
    ValueError when the shapes do not belong together or a length is outside 0..N.
    """
    problem = _Problem(q_sem, q_geo, k_sem, k_geo, v, scale_sem, scale_geo, dtype)
    visible_BN = _visible(lengths, k_sem)
    s_BHN = problem.scores(k_sem, k_geo, visible_BN)
    v_BHNV = problem.values(v, visible_BN)
    if null is not None:
        n_sem, n_geo, n_v = _null_keys(null, problem)
        s_BHN = torch.cat((problem.scores(n_sem, n_geo), s_BHN), dim=-1)
        v_BHNV = torch.cat((problem.values(n_v), v_BHNV), dim=-2)
    lse_BH = torch.logsumexp(s_BHN, dim=-1)
    empty_BH1 = lse_BH.isneginf().unsqueeze(-1)
    p_BHN = torch.softmax(s_BHN.masked_fill(empty_BH1, 0.0), dim=-1).masked_fill(empty_BH1, 0.0)
    out_BHV = torch.einsum("bhn,bhnv->bhv", p_BHN, v_BHNV)
    return (out_BHV, lse_BH) if return_lse else out_BHV


def streaming_reference(
    q_sem: Tensor,
    q_geo: Tensor,
    k_sem: Tensor,
    k_geo: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    partitions: int,
    passes: int = 2,
    block: int = 64,
    null: NullToken | None = None,
    tail: Tail | None = None,
    scale_sem: float = 1.0,
    scale_geo: float = 1.0,
    dtype: torch.dtype = torch.float64,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same sum in the order of the kernels; arguments as above, `lengths` those of the prefix (without the tail).

    passes=2: each of `partitions` ranges of a row's own length gives a State; the null token and the tail are two more;
    `merge` reduces them. partitions=0 takes no prefix (every length 0), and the reduce runs on the two alone.
    passes=1: one State, seeded by the null token, goes over the prefix in blocks and takes the tail as a last block.
    """
    if passes not in (1, 2) or partitions < 0 or (passes == 1 and partitions != 1) or block < 1:
        raise ValueError(
            f"passes={passes}, partitions={partitions}, block={block}: passes is 1 (with partitions 1) or 2 "
            "(partitions 0 or more), block at least 1"
        )
    problem = _Problem(q_sem, q_geo, k_sem, k_geo, v, scale_sem, scale_geo, dtype)
    visible_BN = _visible(lengths, k_sem)
    if partitions == 0 and bool(visible_BN.any()):
        raise ValueError(f"partitions=0 takes an empty prefix, but the longest row has {int(visible_BN.sum(1).max())}")
    nothing = problem.empty()
    null_state = nothing if null is None else _absorb(problem, nothing, *_null_keys(null, problem), None)
    if passes == 1:
        state = _over(problem, null_state, (k_sem, k_geo, v), visible_BN, block)
        if tail is not None:
            state = _absorb(problem, state, tail.k_sem, tail.k_geo, tail.v, tail.visible_BR)
        return _finish([state], return_lse)
    states = []
    index_N = torch.arange(k_sem.shape[2], device=k_sem.device)
    share = max(partitions, 1)
    per_B = (visible_BN.sum(1) + share - 1) // share
    for p in range(partitions):
        mine_BN = visible_BN & (index_N >= p * per_B[:, None]) & (index_N < (p + 1) * per_B[:, None])
        states.append(_over(problem, nothing, (k_sem, k_geo, v), mine_BN, block))
    if tail is not None:
        states.append(_absorb(problem, nothing, tail.k_sem, tail.k_geo, tail.v, tail.visible_BR))
    return _finish([null_state, *states], return_lse)


def merge(states: Sequence[State]) -> State:
    """m = max m_p; d = sum w_p d_p, o = sum w_p o_p with w_p = e^(m_p - m), and weight 0 where m_p = -inf."""
    m_PBH = torch.stack([s.m_BH for s in states])
    m_BH = m_PBH.amax(0)
    w_PBH = torch.where(m_PBH.isneginf(), 0.0, torch.exp(m_PBH - m_BH.masked_fill(m_BH.isneginf(), 0.0)))
    d_BH = (w_PBH * torch.stack([s.d_BH for s in states])).sum(0)
    o_BHV = (w_PBH.unsqueeze(-1) * torch.stack([s.o_BHV for s in states])).sum(0)
    return State(m_BH, d_BH, o_BHV)


def _finish(states: Sequence[State], return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    state = merge(states)
    some_BH = state.d_BH > 0
    out_BHV = torch.where(some_BH.unsqueeze(-1), state.o_BHV / state.d_BH.unsqueeze(-1), 0.0)
    lse_BH = torch.where(some_BH, state.m_BH + torch.log(state.d_BH), -torch.inf)
    return (out_BHV, lse_BH) if return_lse else out_BHV


@dataclass(frozen=True)
class _Problem:
    """Queries and scales, and how keys become scores: one place for both references."""

    q_sem: Tensor
    q_geo: Tensor
    k_sem: Tensor
    k_geo: Tensor
    v: Tensor
    scale_sem: float
    scale_geo: float
    dtype: torch.dtype

    def __post_init__(self) -> None:
        shapes = [tuple(x.shape) for x in (self.q_sem, self.q_geo, self.k_sem, self.k_geo, self.v)]
        q_s, q_g, k_s, k_g, v_s = shapes
        fits = [len(s) for s in shapes] == [3, 3, 4, 4, 4]
        fits = fits and q_s[:2] == q_g[:2] and k_s[:3] == k_g[:3] == v_s[:3] and q_s[0] == k_s[0]
        if not fits or q_s[2] != k_s[3] or q_g[2] != k_g[3] or k_s[1] == 0 or q_s[1] % k_s[1]:
            raise ValueError(
                f"q_sem {q_s}, q_geo {q_g}, k_sem {k_s}, k_geo {k_g}, v {v_s} do not belong together: they are "
                "[B,Hq,ds], [B,Hq,dg], [B,Hkv,N,ds], [B,Hkv,N,dg], [B,Hkv,N,dv] with Hq a multiple of Hkv"
            )

    def scores(self, k_sem: Tensor, k_geo: Tensor, visible_BN: Tensor | None = None) -> Tensor:
        """[B,H,N], -inf where hidden; a hidden key is not read."""
        s_BHN = self.scale_sem * _dot(self.q_sem, k_sem, self.dtype)
        s_BHN = s_BHN + self.scale_geo * _dot(self.q_geo, k_geo, self.dtype)
        return s_BHN if visible_BN is None else s_BHN.masked_fill(~visible_BN[:, None], -torch.inf)

    def values(self, v: Tensor, visible_BN: Tensor | None = None) -> Tensor:
        """[B,H,N,V], 0 where hidden."""
        v = v.to(self.dtype)
        if visible_BN is not None:
            v = v.masked_fill(~visible_BN[:, None, :, None], 0.0)
        return v.repeat_interleave(self.q_sem.shape[1] // v.shape[1], dim=1)

    def empty(self) -> State:
        batch, heads = self.q_sem.shape[:2]
        zeros_BHV = self.q_sem.new_zeros(batch, heads, self.v.shape[-1], dtype=self.dtype)
        return State(torch.full_like(zeros_BHV[..., 0], -torch.inf), zeros_BHV[..., 0], zeros_BHV)


def _over(problem: _Problem, state: State, keys: tuple[Tensor, Tensor, Tensor], seen_BN: Tensor, block: int) -> State:
    """Go over the keys block by block."""
    k_sem, k_geo, v = keys
    for at in range(0, k_sem.shape[2], block):
        cut = slice(at, at + block)
        state = _absorb(problem, state, k_sem[:, :, cut], k_geo[:, :, cut], v[:, :, cut], seen_BN[:, cut])
    return state


def _absorb(
    problem: _Problem, state: State, k_sem: Tensor, k_geo: Tensor, v: Tensor, visible_BN: Tensor | None
) -> State:
    """One step of the online softmax: `state` and these keys together."""
    if k_sem.shape[2] == 0:
        return state
    s_BHN = problem.scores(k_sem, k_geo, visible_BN)
    m_BH = torch.maximum(state.m_BH, s_BHN.amax(-1))
    base_BH = m_BH.masked_fill(m_BH.isneginf(), 0.0)  # exp(-inf - -inf) is NaN: a block may be hidden whole
    p_BHN = torch.exp(s_BHN - base_BH.unsqueeze(-1))
    w_BH = torch.exp(state.m_BH - base_BH)
    o_BHV = w_BH.unsqueeze(-1) * state.o_BHV + torch.einsum("bhn,bhnv->bhv", p_BHN, problem.values(v, visible_BN))
    return State(m_BH, w_BH * state.d_BH + p_BHN.sum(-1), o_BHV)


def _dot(q_BHD: Tensor, k_BKND: Tensor, dtype: torch.dtype) -> Tensor:
    batch, _, dim = q_BHD.shape
    q_BKJD = q_BHD.to(dtype).reshape(batch, k_BKND.shape[1], -1, dim)
    return torch.einsum("bkjd,bknd->bkjn", q_BKJD, k_BKND.to(dtype)).flatten(1, 2)


def _null_keys(null: NullToken, problem: _Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The null token as N = 1 keys."""
    batch, kv_heads = problem.k_sem.shape[:2]
    dims = (problem.k_sem.shape[-1], problem.k_geo.shape[-1], problem.v.shape[-1])
    k_sem, k_geo, v = (x.unsqueeze(2) for x in null.rows(batch, kv_heads, dims))
    return k_sem, k_geo, v


def _visible(lengths: Tensor | None, k_sem: Tensor) -> Tensor:
    """bool [B, N]: below the row's length."""
    batch, _, keys, _ = k_sem.shape
    if lengths is None:
        return torch.ones(batch, keys, dtype=torch.bool, device=k_sem.device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(f"lengths is {lengths.dtype} {tuple(lengths.shape)}; it must be int [{batch}]")
    if batch and (int(lengths.min()) < 0 or int(lengths.max()) > keys):
        raise ValueError(f"lengths {lengths.tolist()} must lie in 0..{keys} (the keys given)")
    return torch.arange(keys, device=k_sem.device) < lengths[:, None]
