"""Attention with a key/value cache, as a definition: plain PyTorch, row by row, readable beside the equations.

For the query at place i of S in a row with n valid keys (causal, aligned to the bottom right):

    visible(i) = {j < n : j <= n - S + i}              all j < n when not causal
    s_ij = scale * q_i . k_j                           scale = 1/sqrt(D) unless given (Vaswani et al., 2017, eq. 1)
    m_i = max_visible s_ij    l_i = sum_visible exp(s_ij - m_i)
    o_i = sum_visible exp(s_ij - m_i) v_j / l_i        LSE_i = m_i + log l_i
    nothing visible: o_i = 0, LSE_i = -inf

What it never does: read a slot at or above a row's length, run fast, or call a kernel. Called by the public functions
where Triton does not run, by the parity cells (`parity.py`) and by tests.

Letters: B rows, H query heads, K key/value heads (G = H/K query heads share one), S queries a row, N or C key slots a
row (C: a cache's capacity), D head size, E head size of the values, T new tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor]


def attention_reference(
    q_BHSD: Tensor,
    k_BKND: Tensor,
    v_BKNE: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition above, computed and returned in `dtype`.

    `kv_lens`: int[B], valid keys a row (None: all N). Slots at or above it may hold anything, NaN as well.
    Returns out [B, H, S, E], and LSE [B, H, S] (natural logarithm) with `return_lse`.
    ValueError when shapes do not fit or a length is outside 0..N (this waits for the device).
    """
    batch, heads, queries, _ = q_BHSD.shape
    kv_heads, slots, out_dim = v_BKNE.shape[1:]
    _check_shapes(q_BHSD, k_BKND, v_BKNE)
    lens = [slots] * batch if kv_lens is None else _lengths(kv_lens, batch, slots)
    scale = 1 / math.sqrt(q_BHSD.shape[-1]) if scale is None else scale
    out_BHSE = q_BHSD.new_zeros(batch, heads, queries, out_dim, dtype=dtype)
    lse_BHS = q_BHSD.new_full((batch, heads, queries), -math.inf, dtype=dtype)
    for b, n in enumerate(lens):
        if n == 0 or queries == 0:
            continue
        q_KGSD = q_BHSD[b].to(dtype).reshape(kv_heads, heads // kv_heads, queries, -1)
        k_KND, v_KNE = k_BKND[b, :, :n].to(dtype), v_BKNE[b, :, :n].to(dtype)
        s_KGSN = scale * torch.einsum("kgsd,knd->kgsn", q_KGSD, k_KND)
        if causal:
            s_KGSN = s_KGSN.masked_fill(~visible(queries, n, s_KGSN.device), -math.inf)
        lse_KGS = s_KGSN.logsumexp(-1)
        p_KGSN = s_KGSN.softmax(-1).masked_fill((lse_KGS == -math.inf).unsqueeze(-1), 0.0)
        out_BHSE[b] = torch.einsum("kgsn,kne->kgse", p_KGSN, v_KNE).flatten(0, 1)
        lse_BHS[b] = lse_KGS.flatten(0, 1)
    return (out_BHSE, lse_BHS) if return_lse else out_BHSE


def visible(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [S, N], true where query i sees key j: j <= N - S + i (the last query sees every key)."""
    place = torch.arange(queries, device=device).unsqueeze(1) + (keys - queries)
    return torch.arange(keys, device=device) <= place


def attention_with_kv_cache_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key_value: Cache | None = None,
    seq_lens: Tensor | None = None,
    cache_max_len: int = 4096,
    update_cache: bool = True,
    block_m: int | None = None,
    block_n: int | None = None,
    scale: float | None = None,
    *,
    causal: bool = True,
    out: Tensor | None = None,
    return_lse: bool = False,
    check: bool = True,
) -> tuple[Tensor | tuple[Tensor, Tensor], Cache | None]:
    """Append S new tokens to each row of a cache, in place, and attend from them over the whole row.

    query [B, H, S, D]; key [B, K, S, D]; value [B, K, S, E]; `past_key_value`: a pair [B, K, C, D], [B, K, C, E] of the
    dtype of the keys, or None: one of `cache_max_len` slots is made (unless `update_cache` is False).
    `seq_lens`: int32 or int64 [B], the tokens in the cache *before* the call, never modified; None means 0 for a cache
    that is made here, and is an error for one that was given.
    `update_cache=False`: the new tokens are attended to but written nowhere; the cache comes back as it was given.
    `block_m`, `block_n` (tile sizes of the kernel) change nothing here.

    A row that would grow past its capacity: ValueError naming it, before anything is written. With `check=False` that
    row writes nothing and its output is 0 (LSE -inf); the other rows are served.

    Returns (out [B, H, S, E] in the dtype of the query, cache), or ((out, LSE float32 [B, H, S]), cache). Sums are
    float32 at least. `out`, when given, receives the output and is what is returned.
    """
    _check_shapes(query, key, value)
    batch, _, tokens, _ = query.shape
    if key.shape[2] != tokens:
        raise ValueError(f"query has {tokens} tokens, key {tuple(key.shape)} must have as many in its third place")
    cache, before = _cache_of(key, value, past_key_value, seq_lens, cache_max_len, update_cache)
    lens = [int(n) for n in before]
    capacity = cache[0].shape[2] if cache is not None else tokens
    needed = [n + tokens if update_cache else n for n in lens]
    bad = [b for b in range(batch) if lens[b] < 0 or needed[b] > capacity]
    if bad and check:
        raise ValueError(full(bad[0], lens[bad[0]], tokens if update_cache else 0, capacity))
    compute = torch.promote_types(query.dtype, torch.float32)
    result = query.new_zeros(*query.shape[:3], value.shape[-1]) if out is None else out
    if result.shape != (*query.shape[:3], value.shape[-1]) or result.dtype != query.dtype:
        raise ValueError(f"out must be {(*query.shape[:3], value.shape[-1])} {query.dtype}, not {tuple(result.shape)}")
    lse_BHS = query.new_full(query.shape[:3], -math.inf, dtype=torch.float32)
    for b, n in enumerate(lens):
        if b in bad:
            result[b] = 0
            continue
        k_KND, v_KNE = _row(cache, key, value, b, n, update_cache)
        o_1HSE, lse_1HS = attention_reference(
            query[b : b + 1], k_KND[None], v_KNE[None], causal=causal, scale=scale, dtype=compute, return_lse=True
        )
        result[b] = o_1HSE[0].to(query.dtype)
        lse_BHS[b] = lse_1HS[0].to(torch.float32)
    return ((result, lse_BHS) if return_lse else result), cache


def full(row: int, length: int, tokens: int, capacity: int) -> str:
    """What every part of this family says of a row that cannot take more tokens."""
    if length < 0 or not tokens:
        return f"row {row} has a length of {length}: lengths are 0 to the capacity, {capacity}"
    return f"row {row} holds {length} tokens and {tokens} more do not fit: the cache's capacity is {capacity}"


def _row(cache: Cache | None, key: Tensor, value: Tensor, b: int, n: int, update: bool) -> tuple[Tensor, Tensor]:
    """All keys and values of row b, the new ones behind n old ones; written into the cache when it is updated."""
    if cache is None:
        return key[b], value[b]
    if not update:
        return torch.cat((cache[0][b, :, :n], key[b]), dim=1), torch.cat((cache[1][b, :, :n], value[b]), dim=1)
    end = n + key.shape[2]
    cache[0][b, :, n:end] = key[b]
    cache[1][b, :, n:end] = value[b]
    return cache[0][b, :, :end], cache[1][b, :, :end]


def _cache_of(
    key: Tensor, value: Tensor, past: Cache | None, seq_lens: Tensor | None, max_len: int, update: bool
) -> tuple[Cache | None, Tensor]:
    batch, kv_heads, _, _ = key.shape
    if past is None:
        lens = torch.zeros(batch, dtype=torch.int32) if seq_lens is None else seq_lens
        _lengths(lens, batch, 0)  # there is nothing yet, so nothing but zeros is right
        if not update:
            return None, lens
        shape = (batch, kv_heads, max_len)
        return (key.new_empty(*shape, key.shape[-1]), value.new_empty(*shape, value.shape[-1])), lens
    if seq_lens is None:
        raise ValueError("seq_lens is missing: int32 [B], the tokens that past_key_value held before this call")
    for name, new, old in (("key", key, past[0]), ("value", value, past[1])):
        want = (batch, kv_heads, past[0].shape[2], new.shape[-1])
        if old.shape != want or old.dtype != new.dtype or old.device != new.device:
            raise ValueError(
                f"the cache's {name} {tuple(old.shape)} {old.dtype} on {old.device} does not fit "
                f"{name} {tuple(new.shape)} {new.dtype} on {new.device}: it must be {want}"
            )
    if seq_lens.shape != (batch,) or seq_lens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"seq_lens must be int32 [{batch}], not {seq_lens.dtype} {tuple(seq_lens.shape)}")
    return past, seq_lens


def _lengths(lens: Tensor, batch: int, slots: int) -> list[int]:
    if lens.shape != (batch,) or lens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths must be int32 [{batch}], not {lens.dtype} {tuple(lens.shape)}")
    values = [int(n) for n in lens]
    for b, n in enumerate(values):
        if not 0 <= n <= slots:
            raise ValueError(f"row {b} has a length of {n}: there are {slots} keys")
    return values


def _check_shapes(q_BHSD: Tensor, k_BKND: Tensor, v_BKNE: Tensor) -> None:
    if not q_BHSD.dim() == k_BKND.dim() == v_BKNE.dim() == 4:
        raise ValueError(
            f"query [B, H, S, D], key [B, K, N, D], value [B, K, N, E] are needed, not {tuple(q_BHSD.shape)}, "
            f"{tuple(k_BKND.shape)}, {tuple(v_BKNE.shape)}"
        )
    batch, heads, _, dim = q_BHSD.shape
    if k_BKND.shape[0] != batch or k_BKND.shape[3] != dim or k_BKND.shape[:3] != v_BKNE.shape[:3]:
        raise ValueError(
            f"query {tuple(q_BHSD.shape)}, key {tuple(k_BKND.shape)} and value {tuple(v_BKNE.shape)} do not fit: "
            f"key must be [{batch}, K, N, {dim}], value [{batch}, K, N, E]"
        )
    if k_BKND.shape[1] < 1 or heads % k_BKND.shape[1]:
        raise ValueError(f"{heads} query heads cannot share {k_BKND.shape[1]} key heads: H must be a multiple of K")
