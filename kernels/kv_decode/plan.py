"""A decode step planned once and run many times: splits, scratch memory, output and overflow flag belong to the plan.

`run` never waits for the device, allocates nothing after the first call and reads lengths on the device, so a CUDA
graph that captured it can be replayed while lengths grow. What a kernel could not do (a row that is full) it flags;
`check` raises that. Not thread-safe: one plan a stream. Called by `cache.py`, models and benches; `api.py` makes one a
call.

Letters: B rows, H query heads, K key/value heads, S new tokens a row, C capacity, D and E sizes of a key and a value.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kernels.device import multiprocessors
from kernels.kv_decode.config import MAX_DIM, Config, choose_config, choose_splits
from kernels.kv_decode.dispatch import PLANNED, Ask, Backend, choose, machine
from kernels.kv_decode.launch import Call, launch, make_scratch, tiles_of
from kernels.kv_decode.reference import attention_reference, attention_with_kv_cache_reference, full


class DecodePlan:
    """One shape: q [B, H, S, D] over caches [B, K, C, D] and [B, K, C, E]; fp16 or bf16 (fp32 in the interpreter).

    `splits` None: as many as fill the device once. `scale` None: 1/sqrt(D). `config`: a variant, for measurements.
    `lse=True`: `plan.lse` (fp32 [B, H, S], natural logarithm) is written by each run. ValueError for sizes that do not
    fit each other. Where Triton does not run (a CPU without its interpreter) `run` is the reference, which waits.
    """

    def __init__(
        self,
        batch: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        v_head_dim: int | None = None,
        queries: int = 1,
        dtype: torch.dtype,
        device: torch.device | str,
        splits: int | None = None,
        scale: float | None = None,
        causal: bool = True,
        block_m: int | None = None,
        block_n: int | None = None,
        config: Config | None = None,
        lse: bool = False,
        overflow: Tensor | None = None,
        backend: Backend = "auto",
    ) -> None:
        v_dim = head_dim if v_head_dim is None else v_head_dim
        _check_sizes(batch, q_heads, kv_heads, head_dim, v_dim, capacity, queries)
        if splits is not None and splits < 1:
            raise ValueError(f"splits is {splits}: 1 or more, or None for our choice")
        self.device = resolved(torch.device(device))
        self.q_shape = (batch, q_heads, queries, head_dim)
        self.kv_heads, self.v_dim, self.capacity, self.dtype, self.causal = kv_heads, v_dim, capacity, dtype, causal
        self.scale = 1 / math.sqrt(head_dim) if scale is None else scale
        rows = q_heads // kv_heads * queries
        ask = Ask(batch, q_heads, kv_heads, queries, head_dim, v_dim, capacity, dtype, self.device, PLANNED)
        self.choice = choose(ask, backend)
        self.triton = self.choice.triton
        self.slots = multiprocessors(self.device)
        share = capacity // (splits or max(1, self.slots // (batch * kv_heads)))
        if config is None:
            limits = machine(self.device) if self.triton else {}
            config = choose_config(rows, head_dim, v_dim, dtype, share, block_m=block_m, block_n=block_n, **limits)
        self.config = config
        self.tiles = tiles_of(self.config, batch, kv_heads, rows)
        self.forced = splits is not None
        self.splits = splits or choose_splits(self.tiles, capacity, self.config.block_n, self.slots)
        self._scratch = make_scratch(self.config, self.splits, self.tiles, v_dim, self.device, overflow)
        self.lse = torch.empty(batch, q_heads, queries, dtype=torch.float32, device=self.device) if lse else None
        self._out: Tensor | None = None

    @property
    def overflow(self) -> Tensor:
        """int32 [4] on the device: row + 1 of a row that did not fit (0: none), its length, capacity, new tokens."""
        return self._scratch.overflow

    def run(
        self,
        q: Tensor,
        k_new: Tensor | None,
        v_new: Tensor | None,
        k_cache: Tensor,
        v_cache: Tensor,
        seq_lens: Tensor | None,
        out: Tensor | None = None,
        *,
        update_cache: bool = True,
    ) -> Tensor:
        """Append k_new [B, K, S, D], v_new [B, K, S, E] at seq_lens (int [B], before the call, never modified), attend.

        Query i sees the cached tokens and, when causal, new tokens 0..i. Without new tokens (None) seq_lens (None: C)
        counts all keys and causal queries are the last S of them. `update_cache=False`: new tokens are seen, not kept.
        A row that does not fit writes nothing, its output is 0, its LSE -inf, and `check` will raise it.
        Returns `out`, by default the plan's own, overwritten by the next run. ValueError when shapes or dtypes differ.
        """
        new = None if k_new is None or v_new is None else (k_new, v_new)
        if (k_new is None) != (v_new is None):
            raise ValueError("k_new and v_new: both or neither")
        if out is None:
            if self._out is None:
                shape = (*self.q_shape[:3], self.v_dim)
                self._out = torch.empty(shape, dtype=self.dtype, device=self.device)
            out = self._out
        self._check_run(q, new, k_cache, v_cache, seq_lens, out)
        if new is not None and seq_lens is None:
            raise ValueError("seq_lens is missing: int32 [B], the tokens in the cache before this call")
        write = new is not None and update_cache
        if not self.triton:
            return self._reference(q, new, k_cache, v_cache, seq_lens, out, write)
        call = Call(q, k_cache, v_cache, new, seq_lens, out, self.lse, self.scale, self.causal, write)
        launch(call, self.config, self.splits, self._scratch)
        return out

    def check(self) -> None:
        """ValueError naming row, length and capacity when a row did not fit since the last check; clears it. Waits."""
        row, length, capacity, tokens = (int(n) for n in self.overflow.tolist())
        if not row:
            return
        self.overflow.zero_()
        raise ValueError(overflow_text(row - 1, length, tokens, capacity))

    def why(self) -> str:
        """What was chosen, and from what."""
        if not self.triton:
            return f"reference: {self.choice.why}"
        chosen = "given" if self.forced else f"one program on each of {self.slots} multiprocessors"
        name = "split" if self.splits == 1 else "splits"
        said = f"{self.config}; {self.tiles} tiles x {self.splits} {name} ({chosen}), capacity {self.capacity}"
        return f"{said}; triton: {self.choice.why}"

    def _check_run(
        self,
        q: Tensor,
        new: tuple[Tensor, Tensor] | None,
        k_cache: Tensor,
        v_cache: Tensor,
        seq_lens: Tensor | None,
        out: Tensor,
    ) -> None:
        batch, heads, queries, dim = self.q_shape
        slots = (batch, self.kv_heads, self.capacity)
        wanted = [
            ("q", q, self.q_shape),
            ("k_cache", k_cache, (*slots, dim)),
            ("v_cache", v_cache, (*slots, self.v_dim)),
        ]
        if new is not None:
            fresh = (batch, self.kv_heads, queries)
            wanted += [("k_new", new[0], (*fresh, dim)), ("v_new", new[1], (*fresh, self.v_dim))]
        wanted.append(("out", out, (batch, heads, queries, self.v_dim)))
        for name, tensor, shape in wanted:
            if tensor.shape != shape or tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}; "
                    f"this plan takes {shape} {self.dtype} on {self.device}"
                )
        if seq_lens is not None and (
            seq_lens.shape != (batch,)
            or seq_lens.dtype not in (torch.int32, torch.int64)
            or seq_lens.device != self.device
            or not seq_lens.is_contiguous()
        ):
            raise ValueError(
                f"seq_lens is {tuple(seq_lens.shape)} {seq_lens.dtype} on {seq_lens.device}; "
                f"a contiguous int32 [{batch}] on {self.device} is needed"
            )

    def _reference(
        self,
        q: Tensor,
        new: tuple[Tensor, Tensor] | None,
        k_cache: Tensor,
        v_cache: Tensor,
        seq_lens: Tensor | None,
        out: Tensor,
        write: bool,
    ) -> Tensor:
        if new is None or seq_lens is None:
            wide = torch.promote_types(self.dtype, torch.float32)
            o, lse = attention_reference(
                q, k_cache, v_cache, causal=self.causal, scale=self.scale, kv_lens=seq_lens, dtype=wide, return_lse=True
            )
            out.copy_(o)
        else:
            need = self.q_shape[2] if write else 0
            for row, length in enumerate(seq_lens.tolist()):
                if not int(self.overflow[0]) and not 0 <= length <= self.capacity - need:
                    self.overflow.copy_(torch.tensor([row + 1, length, self.capacity, need]))
            (_, lse), _ = attention_with_kv_cache_reference(
                q, *new, (k_cache, v_cache), seq_lens, update_cache=write, scale=self.scale, causal=self.causal,
                out=out, return_lse=True, check=False,
            )  # fmt: skip
        if self.lse is not None:
            self.lse.copy_(lse)
        return out


def overflow_text(row: int, length: int, tokens: int, capacity: int) -> str:
    """What is said of a row that does not fit: `reference.full`, or for plain attention a length beyond the keys."""
    if tokens or length < 0:
        return full(row, length, tokens, capacity)
    return f"row {row} has a length of {length}: there are {capacity} keys"


def resolved(device: torch.device) -> torch.device:
    """cuda becomes cuda:<the current one>, so that it equals the device of a tensor."""
    return torch.empty(0, device=device).device


def choose_backend(tensor: Tensor, dtype: torch.dtype, backend: Backend = "auto") -> Literal["triton", "reference"]:
    """Whether Triton runs this dtype on the tensor's device and nothing (backend, KERNELS_BACKEND) says otherwise.

    What a plan would be given to, but for its head sizes. ValueError as `dispatch.choose` raises it.
    """
    ask = Ask(1, 1, 1, 1, 16, 16, 0, dtype, tensor.device, PLANNED)
    return "triton" if choose(ask, backend).triton else "reference"


def _check_sizes(batch: int, q_heads: int, kv_heads: int, dim: int, v_dim: int, capacity: int, queries: int) -> None:
    if min(batch, q_heads, kv_heads, queries) < 1 or capacity < 0:
        raise ValueError(
            f"batch {batch}, q_heads {q_heads}, kv_heads {kv_heads}, queries {queries} must be 1 or more, "
            f"capacity {capacity} 0 or more"
        )
    if q_heads % kv_heads:
        raise ValueError(f"{q_heads} query heads cannot share {kv_heads} key heads: H must be a multiple of K")
    if not (1 <= dim <= MAX_DIM and 1 <= v_dim <= MAX_DIM):
        raise ValueError(f"head sizes {dim} (keys) and {v_dim} (values): each must be in 1..{MAX_DIM}")
