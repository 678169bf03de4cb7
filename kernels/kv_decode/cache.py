"""The key/value cache of one attention layer: append, attend, truncate, fork, growth.

`lengths` is int32[B] on the device and changes in place: slots at or above it hold anything and are never read. The
host knows only an upper bound, `longest`; a decode step waits for nothing while that bound is below the capacity.

In a CUDA graph: `attend` (and `append`) may be captured once there is room (`reserve`); each replay advances `lengths`
on the device. Tell the host with `replayed`. A row that is full writes nothing, does not advance, gives output 0 and is
remembered until `check` raises it. What it never does: drop a token silently, convert a dtype, or let a gradient pass.
Called by the models (`workloads/models`), one cache a layer. Not thread-safe.

Letters: B rows (sequences), H query heads, K key/value heads, C capacity in tokens, T new tokens, D head size of
queries and keys, E head size of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.kv_decode.reference import full
from kernels.kv_decode.slots import fitting, put, to_the_end, to_the_front

if TYPE_CHECKING:
    from kernels.kv_decode.plan import DecodePlan

INTEGERS = (torch.int32, torch.int64)


class KVCache:
    """k [B, K, C, D], v [B, K, C, E] of one dtype, `lengths` int32 [B] and `longest`, at least the longest of them.

    `max_capacity` (None: `capacity`): the cache doubles up to it when a row would not fit. Growing makes new tensors
    and waits for the device; a graph that was captured before then reads the old ones, so `reserve` first.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: torch.dtype,
        device: torch.device | str,
        max_capacity: int | None = None,
    ) -> None:
        sizes = {"batch": batch, "capacity": capacity, "kv_heads": kv_heads, "head_dim": head_dim}
        sizes["v_head_dim"] = head_dim if v_head_dim is None else v_head_dim
        if min(sizes.values()) < 1:
            raise ValueError(f"a cache needs sizes of at least 1, not {sizes}")
        self.max_capacity = capacity if max_capacity is None else max_capacity
        if self.max_capacity < capacity:
            raise ValueError(f"max_capacity {max_capacity} is below the capacity {capacity}")
        self.k = torch.empty(batch, kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.v = torch.empty(batch, kv_heads, capacity, sizes["v_head_dim"], dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self.longest = 0
        self._refused = torch.zeros(batch, dtype=torch.int32, device=device)  # by append
        self._overflow = torch.zeros(
            4, dtype=torch.int32, device=device
        )  # by a plan: row + 1, length, capacity, tokens
        self._plans: dict[tuple[object, ...], DecodePlan] = {}

    @property
    def batch(self) -> int:
        return self.k.shape[0]

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    @property
    def size_bytes(self) -> int:
        """What k and v hold, used or not."""
        return self.k.nbytes + self.v.nbytes

    def append(self, k_BKTD: Tensor, v_BKTE: Tensor, counts: Tensor | None = None) -> None:
        """Put T new tokens behind each row; with `counts` (int[B], 0..T) only the first counts[b] of row b.

        Any strides. ValueError, with nothing written, when a shape or dtype differs or a row is full.
        """
        self._check_new(k_BKTD, v_BKTE)
        longest, counts = self._room(k_BKTD.shape[2], counts)
        self._write(k_BKTD, v_BKTE, counts)
        self.longest = longest

    def attend(
        self,
        q_BHTD: Tensor,
        k_BKTD: Tensor,
        v_BKTE: Tensor,
        *,
        scale: float | None = None,
        causal: bool = True,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Append, and attend from the new tokens over their whole row, themselves included: out [B, H, T, E].

        Token i of row b is at place lengths[b] + i and sees, when causal, the places up to its own. With `counts` the
        rest of a row is padding: neither stored nor seen, and its output is 0. Scale None: 1/sqrt(D).
        """
        self._check_new(k_BKTD, v_BKTE)
        if q_BHTD.dim() != 4 or (q_BHTD.shape[0], *q_BHTD.shape[2:]) != (self.batch, *k_BKTD.shape[2:]):
            raise ValueError(f"q {tuple(q_BHTD.shape)} does not fit k {tuple(k_BKTD.shape)}: [B, H, T, D] is needed")
        tokens = q_BHTD.shape[2]
        longest, counts = self._room(tokens, counts)
        if counts is not None:
            out_BHTE = self._attend_ragged(q_BHTD, k_BKTD, v_BKTE, scale, causal, counts)
        else:
            out_BHTE = q_BHTD.new_empty(*q_BHTD.shape[:3], self.v.shape[3])
            if out_BHTE.numel() == 0:
                return out_BHTE
            plan = self._plan(q_BHTD, scale, causal)
            plan.run(q_BHTD, k_BKTD, v_BKTE, self.k, self.v, self.lengths, out=out_BHTE)
            self._advance(tokens)
        self.longest = longest
        return out_BHTE

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row, now. ValueError naming row and capacity when there cannot be."""
        self._room(tokens, None)

    def replayed(self, tokens: int) -> None:
        """A captured graph has appended `tokens` to each row since: raises the host's bound, waits for nothing."""
        self.longest = min(self.longest + tokens, self.capacity)

    def truncate(self, lengths: Tensor | int) -> None:
        """Forget the tokens at or above `lengths` (one number, or int[B]); a row that is shorter stays as it is.

        Waits for the device (a tensor's values, what `check` finds); ValueError for a negative length.
        """
        wanted = torch.full_like(self.lengths, lengths) if isinstance(lengths, int) else lengths
        if wanted.shape != self.lengths.shape or wanted.dtype not in INTEGERS:
            raise ValueError(f"truncate to a number or int[{self.batch}], not {wanted.dtype} {tuple(wanted.shape)}")
        if int(wanted.min()) < 0:
            raise ValueError(f"truncate to lengths of 0 or more, not {wanted.tolist()}")
        self.check()
        self.lengths.copy_(torch.minimum(self.lengths, wanted.to(self.lengths)))
        self.longest = int(self.lengths.max())

    def fork(self, rows: Sequence[int] | Tensor) -> KVCache:
        """A new cache whose row i starts as a copy of row rows[i]: a shared prefix, beams. Shares no memory.

        Waits for the device, and raises what `check` raises. ValueError for a row that is not there.
        """
        numbers = [int(r) for r in rows]
        if not numbers or min(numbers) < 0 or max(numbers) >= self.batch:
            raise ValueError(f"rows {numbers} to fork: each must be in 0..{self.batch - 1}, and one at least")
        self.check()
        _, kv_heads, capacity, head_dim = self.k.shape
        child = KVCache(
            len(numbers),
            capacity,
            kv_heads,
            head_dim,
            v_head_dim=self.v.shape[3],
            dtype=self.k.dtype,
            device=self.k.device,
            max_capacity=self.max_capacity,
        )
        for i, row in enumerate(numbers):
            child.k[i, :, : self.longest] = self.k[row, :, : self.longest]
            child.v[i, :, : self.longest] = self.v[row, :, : self.longest]
            child.lengths[i] = self.lengths[row]
        child.longest = self.longest
        return child

    def check(self, *, values: bool = False) -> None:
        """ValueError naming row, length and capacity when a row was full in a step that the host did not see.

        Also when a length cannot be, or (`values`) a valid slot is not finite. Clears what it raised; makes `longest`
        exact. Waits for the device once: call it every so many steps.
        """
        found = torch.cat((self.lengths, self._refused, self._overflow)).tolist()
        lengths, refused, (marked, held, capacity, more) = found[: self.batch], found[self.batch : -4], found[-4:]
        self._refused.zero_()
        self._overflow.zero_()
        if marked:
            raise ValueError(full(marked - 1, held, more, capacity))
        for row, (length, tokens) in enumerate(zip(lengths, refused, strict=True)):
            if tokens:
                raise ValueError(full(row, length, tokens, self.capacity))
            if not 0 <= length <= self.capacity:
                raise ValueError(f"row {row} has a length of {length}: the capacity is {self.capacity}")
        self.longest = max(lengths)
        for row, length in enumerate(lengths if values else ()):
            if not (self.k[row, :, :length].isfinite().all() and self.v[row, :, :length].isfinite().all()):
                raise ValueError(f"row {row}: one of its {length} keys and values is not finite")

    def _check_new(self, k_BKTD: Tensor, v_BKTE: Tensor) -> None:
        for name, new, old in (("k", k_BKTD, self.k), ("v", v_BKTE, self.v)):
            fits = new.dim() == 4 and (*new.shape[:2], new.shape[3]) == (*old.shape[:2], old.shape[3])
            if not fits or new.shape[2] != k_BKTD.shape[2] or (new.dtype, new.device) != (old.dtype, old.device):
                raise ValueError(
                    f"{name} {tuple(new.shape)} {new.dtype} on {new.device} cannot be put into a cache "
                    f"{tuple(old.shape)} {old.dtype} on {old.device}: [B, K, T, D] of its sizes and dtype is needed"
                )
            if new.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{name} requires a gradient and a cache passes none: use torch.no_grad, or SDPA")

    def _room(self, tokens: int, counts: Tensor | None) -> tuple[int, Tensor | None]:
        """Grow if a row needs it. Returns the bound after `tokens` more, and the counts on the device."""
        top = tokens
        if counts is not None:
            if counts.shape != (self.batch,) or counts.dtype not in INTEGERS:
                raise ValueError(f"counts must be int[{self.batch}], not {counts.dtype} {tuple(counts.shape)}")
            if not counts.is_cuda:  # then the host may look at them
                _check_counts(counts.tolist(), tokens)
                top = int(counts.max())
            counts = counts.to(self.lengths)
        if self.longest + top <= self.capacity:
            return self.longest + top, counts
        if self.k.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError(f"a row may hold {self.longest} of {self.capacity} tokens: reserve before a capture")
        self.check()
        lengths = self.lengths.tolist()
        more = [tokens] * self.batch if counts is None else counts.tolist()
        _check_counts(more, tokens)
        for row, (length, count) in enumerate(zip(lengths, more, strict=True)):
            if length + count > self.max_capacity:
                raise ValueError(full(row, length, count, self.max_capacity))
        needed = max(length + count for length, count in zip(lengths, more, strict=True))
        if needed > self.capacity:
            self._grow(min(max(2 * self.capacity, needed), self.max_capacity))
        return needed, counts

    def _grow(self, capacity: int) -> None:
        for name in ("k", "v"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.longest] = old[:, :, : self.longest]
            setattr(self, name, new)
        self._plans.clear()

    def _write(self, k_BKTD: Tensor, v_BKTE: Tensor, counts: Tensor | None) -> Tensor:
        """Append without a sync; returns int[B], what each row took: none where it is full or its count is not 0..T."""
        tokens = k_BKTD.shape[2]
        wanted = torch.full_like(self.lengths, tokens) if counts is None else counts
        fits = fitting(wanted, self.lengths, tokens, self.capacity)
        taken = wanted.where(fits, 0)
        put(k_BKTD.detach(), self.k, self.lengths, taken)
        put(v_BKTE.detach(), self.v, self.lengths, taken)
        self.lengths.add_(taken)
        self._refused.copy_(torch.where(fits, self._refused, wanted))
        return taken

    def _attend_ragged(
        self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTE: Tensor, scale: float | None, causal: bool, counts: Tensor
    ) -> Tensor:
        from kernels.kv_decode import api

        taken = self._write(k_BKTD, v_BKTE, counts)
        q_BHTD = to_the_end(q_BHTD, taken)
        out_BHTE = api.attention(q_BHTD, self.k, self.v, causal=causal, scale=scale, kv_lens=self.lengths)
        assert isinstance(out_BHTE, Tensor)
        return to_the_front(out_BHTE, taken)

    def _advance(self, tokens: int) -> None:
        """After a plan has appended: a row that was full stays as it is (the plan's flag remembers it)."""
        if tokens == 1:
            self.lengths.add_(1).clamp_(max=self.capacity)
        else:
            self.lengths.add_((self.lengths <= self.capacity - tokens) * tokens)

    def _plan(self, q_BHTD: Tensor, scale: float | None, causal: bool) -> DecodePlan:
        """The plan of a decode step is kept; one of a prefill is made for its length."""
        from kernels.kv_decode.plan import DecodePlan

        _, heads, tokens, head_dim = q_BHTD.shape
        key = (heads, scale, causal)
        if tokens == 1 and key in self._plans:
            return self._plans[key]
        plan = DecodePlan(
            self.batch,
            heads,
            self.k.shape[1],
            head_dim,
            self.capacity,
            v_head_dim=self.v.shape[3],
            queries=tokens,
            dtype=self.k.dtype,
            device=self.k.device,
            scale=scale,
            causal=causal,
            overflow=self._overflow,
        )
        if tokens == 1:
            self._plans[key] = plan
        return plan


def _check_counts(counts: list[int], tokens: int) -> None:
    for row, count in enumerate(counts):
        if not 0 <= count <= tokens:
            raise ValueError(f"row {row} is to take {count} of {tokens} new tokens: counts are 0..{tokens}")
