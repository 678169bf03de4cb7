"""Attention with and without a key/value cache: the public functions of the family.

They check what they are given, have `dispatch` choose between the Triton kernels, SDPA and the reference (`backend=`,
or KERNELS_BACKEND in the environment, forces one) and return. Inference only; nothing is cast, clipped or dropped
silently. For a decode loop that must not wait or allocate use `plan.DecodePlan`, or `cache.KVCache`, which keeps one.

Letters: B rows, H query heads, K key/value heads (H is a multiple of K), S queries a row, N keys, C capacity of a
cache, D head size of queries and keys, E head size of values (1 to 256, any).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.kv_decode import sdpa
from kernels.kv_decode.dispatch import Ask, Backend, Choice, choose
from kernels.kv_decode.plan import DecodePlan, overflow_text, resolved
from kernels.kv_decode.reference import attention_reference, attention_with_kv_cache_reference, full

Cache = tuple[Tensor, Tensor]
_flags: dict[torch.device, Tensor] = {}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    block_m: int | None = None,
    block_n: int | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v over the first kv_lens[b] keys of each row (None: all N).

    q [B, H, S, D], k [B, K, N, D], v [B, K, N, E], one dtype (fp16 or bf16; others through the reference), any strides.
    Causal: query i sees key j iff j <= kv_lens[b] - S + i (the last query sees all). A query that sees nothing gives 0.
    `kv_lens`: int32 or int64 [B] on the device of q. A length outside 0..N gives that row output 0, and
    `check_overflow` raises it (the reference raises at once). `scale` None: 1/sqrt(D). `block_m`, `block_n`: tile sizes
    of the kernel, powers of two from 16 to 256, None to choose. `backend`: see `dispatch`.

    Returns out [B, H, S, E] (in `out` when given), with `return_lse` also the LSE, fp32 [B, H, S], natural logarithm,
    -inf for a query that saw nothing. ValueError when shapes, dtypes or devices do not fit, or a gradient is wanted.

    >>> o = attention(torch.randn(2, 8, 4, 64), torch.randn(2, 2, 33, 64), torch.randn(2, 2, 33, 48))
    >>> tuple(o.shape)
    (2, 8, 4, 48)
    """
    _check_inputs({"q": q, "k": k, "v": v})
    shape = (*q.shape[:3], v.shape[3])
    _check_out(out, shape, q)
    if kv_lens is not None:
        kv_lens = _checked_lens("kv_lens", kv_lens, q)
    no = sdpa.why_not(
        q.shape[2], k.shape[2], causal=causal, lse=return_lse, same_lengths=kv_lens is None,
        blocks=block_m is not None or block_n is not None,
    )  # fmt: skip
    choice = _choose(q, k, v, k.shape[2], no, backend)
    if choice.sdpa:
        found_o = sdpa.attend(q, k, v, causal=causal, scale=scale, backend=choice.backend)
        return found_o if out is None else out.copy_(found_o)
    if choice.backend == "reference":
        wide = torch.promote_types(q.dtype, torch.float32)
        found = attention_reference(q, k, v, causal=causal, scale=scale, kv_lens=kv_lens, dtype=wide, return_lse=True)
        result = found[0].to(q.dtype) if out is None else out.copy_(found[0])
        return (result, found[1].float()) if return_lse else result
    result = torch.empty(shape, dtype=q.dtype, device=q.device) if out is None else out
    if 0 in shape:
        return (result, torch.empty(q.shape[:3], device=q.device)) if return_lse else result
    plan = _plan(q, k, v, causal, scale, block_m, block_n, return_lse)
    plan.run(q, None, None, k, v, kv_lens, out=result)
    return _answer(result, plan, return_lse)


def attention_with_kv_cache(
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
    backend: Backend = "auto",
) -> tuple[Tensor | tuple[Tensor, Tensor], Cache | None]:
    """Append S new tokens to every row of a cache, in place, and attend from them: prefill and decode in one call.

    query [B, H, S, D], key [B, K, S, D], value [B, K, S, E]; `past_key_value`: (k [B, K, C, D], v [B, K, C, E]) of the
    same dtype, or None: a cache of `cache_max_len` slots is made (none with `update_cache=False`). `seq_lens`: int32
    (or int64) [B] on the same device, tokens in the cache BEFORE the call; never modified: add S yourself. None means
    zeros for a cache made here. Query i sees the old tokens and, when causal, new tokens 0..i.
    `update_cache=False`: new tokens are attended to but written nowhere.

    A row that would exceed its capacity: ValueError naming row and capacity, nothing written (this waits for the
    device). `check=False` does not wait: that row writes nothing, its output is 0 (LSE -inf) and `check_overflow`
    raises it later; other rows are served.

    Returns (out [B, H, S, E], cache), with `return_lse` ((out, LSE fp32 [B, H, S]), cache); the cache is the pair that
    was given. ValueError also when shapes, dtypes or devices do not fit, or a gradient is wanted.

    >>> q, k, v = (torch.randn(1, h, 5, 64) for h in (4, 2, 2))
    >>> o, cache = attention_with_kv_cache(q, k, v, cache_max_len=128)                      # prefill
    >>> lens = torch.tensor([5], dtype=torch.int32)
    >>> o, cache = attention_with_kv_cache(q[:, :, :1], k[:, :, :1], v[:, :, :1], cache, lens)  # one decode step
    >>> tuple(o.shape), tuple(cache[0].shape)
    ((1, 4, 1, 64), (1, 2, 128, 64))
    """
    call = _Call(query, key, value, causal, scale, (block_m, block_n), out, return_lse, check, backend)
    call.check_shapes()
    cache, lens, held = _cache_and_lens(key, value, past_key_value, seq_lens, cache_max_len, update_cache, check)
    return call.answer(cache, lens, held, update_cache), cache


def check_overflow(device: torch.device | str | None = None) -> None:
    """ValueError for a row that did not fit in a call that did not wait (`check=False`, `kv_lens`); clears it. Waits.

    `device` None: every device on which such a call was made.
    """
    for where, flag in _flags.items():
        if device is None or where == resolved(torch.device(device)):
            row, length, capacity, tokens = (int(n) for n in flag.tolist())
            if row:
                flag.zero_()
                raise ValueError(overflow_text(row - 1, length, tokens, capacity))


@dataclass(slots=True)
class _Call:
    """One call of `attention_with_kv_cache`, whose words these are, but for the cache."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    scale: float | None
    blocks: tuple[int | None, int | None]
    out: Tensor | None
    lse: bool
    check: bool
    backend: Backend

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        return (*self.query.shape[:3], self.value.shape[3])

    def check_shapes(self) -> None:
        _check_inputs({"query": self.query, "key": self.key, "value": self.value})
        if self.key.shape[2] != self.query.shape[2]:
            raise ValueError(
                f"query has {self.query.shape[2]} tokens, key {tuple(self.key.shape)} must have as many in its third "
                "place"
            )
        _check_out(self.out, self.shape, self.query)

    def answer(
        self, cache: Cache | None, lens: Tensor, held: list[int], update: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        """By the backend that fits. `held`: the lengths on the host, where it knows them."""
        tokens = self.key.shape[2]
        seen = tokens + held[0] if held else tokens if cache is None else cache[0].shape[2]
        no = sdpa.why_not(
            tokens, seen, causal=self.causal, lse=self.lse, same_lengths=len(set(held)) == 1,
            blocks=self.blocks != (None, None), apart=cache is not None and not update,
        )  # fmt: skip
        choice = _choose(self.query, self.key, self.value, seen, no, self.backend)
        if choice.sdpa:
            k, v = (self.key, self.value) if cache is None else _appended(cache, self.key, self.value, seen)
            found = sdpa.attend(self.query, k, v, causal=self.causal, scale=self.scale, backend=choice.backend)
            return found if self.out is None else self.out.copy_(found)
        if choice.backend == "reference":
            return attention_with_kv_cache_reference(
                self.query, self.key, self.value, cache, None if cache is None else lens, update_cache=update,
                scale=self.scale, causal=self.causal, out=self.out, return_lse=self.lse, check=self.check,
            )[0]  # fmt: skip
        return self._by_triton(cache, lens, update)

    def _by_triton(self, cache: Cache | None, lens: Tensor, update: bool) -> Tensor | tuple[Tensor, Tensor]:
        q = self.query
        result = torch.empty(self.shape, dtype=q.dtype, device=q.device) if self.out is None else self.out
        if 0 in self.shape:
            return (result, torch.empty(self.shape[:3], device=q.device)) if self.lse else result
        if cache is None:  # nothing is kept and nothing was there
            plan = _plan(q, self.key, self.value, self.causal, self.scale, *self.blocks, self.lse)
            plan.run(q, None, None, self.key, self.value, None, out=result)
        else:
            plan = _plan(q, *cache, self.causal, self.scale, *self.blocks, self.lse)
            plan.run(q, self.key, self.value, *cache, lens, out=result, update_cache=update)
        return _answer(result, plan, self.lse)


def _choose(q: Tensor, k: Tensor, v: Tensor, length: int, sdpa_no: str, backend: Backend) -> Choice:
    batch, heads, queries, dim = q.shape
    return choose(Ask(batch, heads, k.shape[1], queries, dim, v.shape[3], length, q.dtype, q.device, sdpa_no), backend)


def _appended(cache: Cache, key: Tensor, value: Tensor, end: int) -> Cache:
    """The first `end` slots of the cache, the new tokens written into the last of them."""
    for room, new in zip(cache, (key, value), strict=True):
        room[:, :, end - new.shape[2] : end] = new
    return cache[0][:, :, :end], cache[1][:, :, :end]


def _answer(out: Tensor, plan: DecodePlan, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    if not return_lse:
        return out
    assert plan.lse is not None
    return out, plan.lse


def _plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float | None,
    block_m: int | None,
    block_n: int | None,
    lse: bool,
) -> DecodePlan:
    batch, heads, queries, dim = q.shape
    if q.device not in _flags:
        _flags[q.device] = torch.zeros(4, dtype=torch.int32, device=q.device)
    return DecodePlan(
        batch, heads, k.shape[1], dim, k.shape[2], v_head_dim=v.shape[3], queries=queries, dtype=q.dtype,
        device=q.device, scale=scale, causal=causal, block_m=block_m, block_n=block_n, lse=lse,
        overflow=_flags[q.device], backend="triton",
    )  # fmt: skip


def _cache_and_lens(
    key: Tensor,
    value: Tensor,
    past: Cache | None,
    seq_lens: Tensor | None,
    max_len: int,
    update: bool,
    check: bool,
) -> tuple[Cache | None, Tensor, list[int]]:
    """The cache, the lengths on the device, and on the host where it knows them without one more wait (else none)."""
    batch, kv_heads, tokens, _ = key.shape
    held = [0] * batch if seq_lens is None else []
    if past is not None and seq_lens is None:
        raise ValueError("seq_lens is missing: int32 [B], the tokens that past_key_value held before this call")
    if seq_lens is None:
        lens = torch.zeros(batch, dtype=torch.int32, device=key.device)
    else:
        lens = _checked_lens("seq_lens", seq_lens, key)
    capacity = max_len if past is None else past[0].shape[2]
    for name, new, old in (("key", key, past[0]), ("value", value, past[1])) if past is not None else ():
        want = (batch, kv_heads, capacity, new.shape[-1])
        if old.shape != want or old.dtype != new.dtype or old.device != new.device:
            raise ValueError(
                f"the cache's {name} {tuple(old.shape)} {old.dtype} on {old.device} does not fit {name} "
                f"{tuple(new.shape)} {new.dtype} on {new.device}: it must be {want} of that dtype and device"
            )
    need = tokens if update else 0
    if seq_lens is not None and (check or past is None):
        held = seq_lens.tolist()
        for row, length in enumerate(held):
            if past is None and length:
                raise ValueError(f"row {row} has a length of {length}, but no past_key_value holds those tokens")
            if not 0 <= length <= capacity - need:
                raise ValueError(full(row, length, need, capacity))
    elif past is None and need > capacity:
        raise ValueError(full(0, 0, need, capacity))
    if past is not None or not update:
        return past, lens, held
    shape = (batch, kv_heads, max_len)
    return (key.new_empty(*shape, key.shape[3]), value.new_empty(*shape, value.shape[3])), lens, held


def _checked_lens(name: str, lens: Tensor, like: Tensor) -> Tensor:
    """The lengths, contiguous."""
    if lens.shape != like.shape[:1] or lens.dtype not in (torch.int32, torch.int64) or lens.device != like.device:
        raise ValueError(
            f"{name} must be int32 [{like.shape[0]}] on {like.device}, "
            f"not {lens.dtype} {tuple(lens.shape)} on {lens.device}"
        )
    return lens.contiguous()


def _check_inputs(tensors: dict[str, Tensor]) -> None:
    (q_name, q), (k_name, k), (v_name, v) = tensors.items()
    said = ", ".join(f"{name} {tuple(t.shape)} {t.dtype} on {t.device}" for name, t in tensors.items())
    if not q.dim() == k.dim() == v.dim() == 4:
        raise ValueError(f"{q_name} [B, H, S, D], {k_name} [B, K, N, D], {v_name} [B, K, N, E] are needed, not {said}")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"one dtype and one device are needed, not {said}")
    if not q.is_floating_point():
        raise ValueError(f"floating point is needed (fp16 or bf16), not {said}")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError(
            "no gradient flows through these kernels: call under torch.no_grad(), "
            "or use torch.nn.functional.scaled_dot_product_attention (SDPA) where one is needed"
        )
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"{said} do not fit: {k_name} must be [{q.shape[0]}, K, N, {q.shape[3]}], {v_name} [{q.shape[0]}, K, N, E]"
        )
    if not (q.shape[3] and v.shape[3]):
        raise ValueError(f"head sizes of 1 or more are needed, not {said}")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads: H must be a multiple of K")


def _check_out(out: Tensor | None, shape: tuple[int, ...], q: Tensor) -> None:
    if out is not None and (out.shape != shape or out.dtype != q.dtype or out.device != q.device):
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; {shape} {q.dtype} on {q.device} is needed"
        )
