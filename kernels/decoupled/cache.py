"""The decoupled cache: k_sem, k_geo and v in the formats of a policy, and the newest tokens in fp16 beside them.

Token u of a row lies in the parts while u < packed and in the tail (ring slot u mod R) while packed <= u < lengths.
It is quantized once, when it leaves the tail, so the same tokens give the same bits however they came: one at a time,
in chunks, with or without a kernel. The PyTorch code here is the definition of an append; where Triton runs, a
single-token step is one launch of `triton_append`, which must equal it bit for bit.

A step never waits for the device and never raises for what only the device knows: it sets `overflow`, writes nothing
for that row, and `check()` raises. A NaN in a step comes back as NaN (see `codec`); in a longer append it is refused.
Called by models, the api (which reads the attributes below), tests and benches.

Shape letters: B rows, H KV heads, T new tokens, C capacity, R ring slots, D values of a token in a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.decoupled.dispatch import by_triton
from kernels.decoupled.part import Part, put, take
from kernels.decoupled.policy import KVCachePolicy, storage_slots
from kernels.decoupled.reference import Tail
from kernels.device import runs_triton

Parts3 = tuple[Tensor, Tensor, Tensor]


class QuantizedCache:
    """Room for `capacity` tokens a row; the newest `policy.resid` of them in fp16.

    sem, geo, v: `Part`; tail_sem, tail_geo, tail_v: fp16 [B, H, R, D] (R = policy.resid); lengths, packed: int32 [B]
    on the device; overflow: int32 [B], 0 or the length at which a row refused an append; longest: what the host knows
    of max(lengths), never too small if `replayed` is told of a captured graph's replays (`check` looks again).
    `dtype` is float16: that of the tail, of fp16 parts and of what is appended. ValueErrors name shapes and values.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        kv_heads: int,
        d_sem: int,
        d_geo: int,
        d_v: int,
        policy: KVCachePolicy,
        device: torch.device | str,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        sizes = {"batch": batch, "capacity": capacity, "kv_heads": kv_heads, "d_sem": d_sem, "d_geo": d_geo, "d_v": d_v}
        if min(sizes.values()) < 1:
            raise ValueError(f"a cache of {sizes}: every size must be at least 1")
        if dtype != torch.float16:
            raise ValueError(
                f"dtype {dtype}: tail and fp16 parts are torch.float16; convert keys and values with .half()"
            )
        self.policy, self.batch, self.capacity, self.kv_heads = policy, batch, capacity, kv_heads
        self.device, self.dtype = torch.device(device), dtype
        shape = (batch, kv_heads, storage_slots(capacity))
        self.sem = Part(policy.ksem, d_sem, shape, self.device)
        self.geo = Part(policy.kgeo, d_geo, shape, self.device)
        self.v = Part(policy.v, d_v, shape, self.device)
        self.tail_sem, self.tail_geo, self.tail_v = (
            torch.empty(batch, kv_heads, policy.resid, dim, dtype=dtype, device=self.device) for dim in self.dims
        )
        self.lengths, self.packed, self.overflow = (
            torch.zeros(batch, dtype=torch.int32, device=self.device) for _ in range(3)
        )
        self.longest = 0

    @property
    def dims(self) -> tuple[int, int, int]:
        """(d_sem, d_geo, d_v)."""
        return self.sem.dim, self.geo.dim, self.v.dim

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        return self.sem, self.geo, self.v

    @property
    def tails(self) -> Parts3:
        return self.tail_sem, self.tail_geo, self.tail_v

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is stored; `policy.bytes` is the sum of their sizes."""
        return (*(x for p in self.parts for x in p.tensors()), *self.tails, self.lengths, self.packed, self.overflow)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors, used or not: what `policy.bytes` says."""
        return sum(x.nbytes for x in self.tensors())

    def append(
        self, k_sem: Tensor, k_geo: Tensor, v: Tensor, counts: Tensor | None = None, *, check: bool = True
    ) -> None:
        """Add T tokens a row: k_sem [B,H,T,S], k_geo [B,H,T,G'], v [B,H,T,V], fp16; counts int [B]: only the first
        counts[b] of them are real (None: all T).

        check: ValueError with the row and the capacity when one is full, with nothing written in any row. One token
        (T = 1, counts None) costs no wait while the host's `longest` shows that there is room, and is then capturable
        in a CUDA graph; a longer append waits. check=False never raises for a full row: that row is left as it was
        and flagged in `overflow`.
        """
        new = (k_sem, k_geo, v)
        tokens = self._tokens(new)
        if tokens > self.capacity:
            raise ValueError(f"{tokens} tokens a row do not fit: row 0 has a capacity of {self.capacity}")
        step = tokens == 1 and counts is None
        counts_B = self._counts(counts, tokens)
        if check and not step:
            _refuse_not_finite(new, torch.arange(tokens, device=self.device) < counts_B[:, None])
        if check and (self.longest + tokens > self.capacity or counts is not None):
            self._refuse_full(counts_B, tokens)
        if step:
            self._append_step(k_sem, k_geo, v)
        else:
            self._append_many(new, counts_B)
        self.longest = min(self.longest + tokens, self.capacity)

    def _append_step(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> None:
        """One token a row: one launch where Triton runs, unless KERNELS_BACKEND=reference says otherwise."""
        if runs_triton(self.lengths) and by_triton(self.lengths):
            from kernels.decoupled.triton_append import append_step

            append_step(self, k_sem, k_geo, v)
        else:
            self._append_one(k_sem, k_geo, v)

    def _append_one(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> None:
        """One token a row, with index arithmetic on the device: the definition of `triton_append.append_step`."""
        resid = self.policy.resid
        length_B, packed_B = self.lengths.long(), self.packed.long()
        fits_B = length_B < self.capacity
        leaves_B = fits_B & (length_B - packed_B >= resid)
        slot_B = length_B % max(resid, 1)
        for part, tail, new in zip(self.parts, self.tails, (k_sem, k_geo, v), strict=True):
            new_BHD = new[:, :, 0]
            leaving_BHD = take(tail, slot_B) if resid else new_BHD
            part.write_one(packed_B.clamp(max=self.capacity - 1), leaving_BHD, leaves_B)
            if resid:
                put(tail, slot_B, new_BHD, fits_B)
        self._moved(fits_B.long(), leaves_B.long(), ~fits_B)

    def _append_many(self, new: Parts3, counts_B: Tensor) -> None:
        """counts[b] tokens a row. First the old tokens leave the ring, then the new ones go past it or into it."""
        resid, tokens = self.policy.resid, new[0].shape[2]
        length_B, packed_B = self.lengths.long(), self.packed.long()
        bad_B = (length_B + counts_B > self.capacity) | (counts_B < 0) | (counts_B > tokens)
        counts_B = counts_B.masked_fill(bad_B, 0)
        after_B = torch.maximum(packed_B, length_B + counts_B - resid)
        old_BR = packed_B[:, None] + torch.arange(resid, device=self.device)
        row_n, at_n = (old_BR < torch.minimum(after_B, length_B)[:, None]).nonzero(as_tuple=True)
        position_n = old_BR[row_n, at_n]
        for part, tail in zip(self.parts, self.tails, strict=True):
            if row_n.numel():
                part.write(row_n, position_n, tail[row_n, :, position_n % resid])
        index_T = torch.arange(tokens, device=self.device)
        new_BT = length_B[:, None] + index_T
        real_BT = index_T < counts_B[:, None]
        for into_tail in (False, True):
            row_n, t_n = (real_BT & ((new_BT >= after_B[:, None]) == into_tail)).nonzero(as_tuple=True)
            position_n = new_BT[row_n, t_n]
            for part, tail, x_BHTD in zip(self.parts, self.tails, new, strict=True):
                if row_n.numel() and into_tail:
                    tail[row_n, :, position_n % resid] = x_BHTD[row_n, :, t_n]
                elif row_n.numel():
                    part.write(row_n, position_n, x_BHTD[row_n, :, t_n])
        self._moved(counts_B, after_B - packed_B, bad_B)

    def _moved(self, appended_B: Tensor, left_B: Tensor, refused_B: Tensor) -> None:
        """The books, in place: the same tensors for ever, because captured graphs hold them."""
        first_B = refused_B & (self.overflow == 0)
        self.overflow.copy_(torch.where(first_B, self.lengths.clamp(min=1), self.overflow))
        self.packed.add_(left_B.to(torch.int32))
        self.lengths.add_(appended_B.to(torch.int32))

    def replayed(self, tokens: int) -> None:
        """A captured graph has appended `tokens` to each row since: raises `longest`, waits for nothing."""
        self.longest = min(self.longest + tokens, self.capacity)

    def truncate(self, lengths: int | Tensor) -> None:
        """Keep at most `lengths` tokens a row (an int for all rows, or int [B]); waits for the device.

        Tokens that had left the tail stay quantized: a shortened row may have fewer than R tokens in fp16.
        """
        keep_B = torch.as_tensor(lengths, device=self.device).expand(self.batch)
        if keep_B.is_floating_point() or int(keep_B.min()) < 0:
            raise ValueError(f"truncate to {keep_B.tolist()}: lengths must be whole numbers of tokens, 0 or more")
        self.lengths.copy_(torch.minimum(self.lengths, keep_B))
        self.packed.copy_(torch.minimum(self.packed, self.lengths))
        self.longest = int(self.lengths.max())

    def fork(self, rows: Sequence[int] | Tensor) -> QuantizedCache:
        """A cache with a row for each of `rows` (repeats allowed), a copy of it; the two share no memory."""
        chosen = [int(row) for row in rows]
        if not chosen or min(chosen) < 0 or max(chosen) >= self.batch:
            raise ValueError(f"fork rows {chosen}: name at least one row, each in 0..{self.batch - 1}")
        child = QuantizedCache(
            len(chosen), self.capacity, self.kv_heads, *self.dims, self.policy, self.device, dtype=self.dtype
        )
        index = torch.tensor(chosen, device=self.device)
        for mine, theirs in zip(self.tensors(), child.tensors(), strict=True):
            torch.index_select(mine, 0, index, out=theirs)
        child.longest = self.longest
        return child

    def check(self) -> None:
        """Wait for the device once; ValueError for the first row that refused an append, and clear the flags."""
        overflow, lengths = torch.stack((self.overflow, self.lengths)).tolist()
        self.longest = max(lengths)
        self.overflow.zero_()
        for row, at in enumerate(overflow):
            if at:
                raise ValueError(
                    f"row {row} was full: an append at length {at} of capacity {self.capacity} was refused"
                )

    def tail(self) -> Tail:
        """The tail as the streaming reference takes it: ring slots, and which of them hold a token [B, R]."""
        slots_R = torch.arange(self.policy.resid, device=self.device)
        age_BR = (slots_R - self.packed[:, None]) % max(self.policy.resid, 1)
        return Tail(*self.tails, age_BR < (self.lengths - self.packed)[:, None])

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Parts3:
        """(k_sem, k_geo, v) [B, H, C, D] in `dtype`, the tail in its place, 0 at and above a row's length."""
        at_C = torch.arange(self.capacity, device=self.device)
        past_BC = (at_C >= self.lengths[:, None])[:, None, :, None]
        in_tail_BC = (at_C >= self.packed[:, None])[:, None, :, None]

        def whole(part: Part, tail: Tensor) -> Tensor:
            x_BHCD = part.decoded(dtype)[:, :, : self.capacity]
            if self.policy.resid:
                x_BHCD = torch.where(in_tail_BC, tail[:, :, at_C % self.policy.resid].to(dtype), x_BHCD)
            return x_BHCD.masked_fill(past_BC, 0.0)

        return whole(self.sem, self.tail_sem), whole(self.geo, self.tail_geo), whole(self.v, self.tail_v)

    def _tokens(self, new: Parts3) -> int:
        shapes = [tuple(x.shape) for x in new]
        tokens = shapes[0][2] if len(shapes[0]) == 4 else -1
        if shapes != [(self.batch, self.kv_heads, tokens, dim) for dim in self.dims]:
            want = ", ".join(f"[{self.batch}, {self.kv_heads}, T, {dim}]" for dim in self.dims)
            raise ValueError(f"append takes k_sem, k_geo, v of {want}, not {', '.join(map(str, shapes))}")
        for name, x in zip(("k_sem", "k_geo", "v"), new, strict=True):
            if x.dtype != self.dtype or x.device != self.lengths.device:
                raise ValueError(
                    f"{name} is {x.dtype} on {x.device}; the cache takes {self.dtype} on {self.lengths.device}"
                )
        return tokens

    def _counts(self, counts: Tensor | None, tokens: int) -> Tensor:
        if counts is None:
            return torch.full((self.batch,), tokens, dtype=torch.int64, device=self.device)
        if counts.shape != (self.batch,) or counts.is_floating_point():
            raise ValueError(f"counts is {counts.dtype} {tuple(counts.shape)}; it must be int [{self.batch}]")
        return counts.to(self.device, torch.int64)

    def _refuse_full(self, counts_B: Tensor, tokens: int) -> None:
        lengths, counts = torch.stack((self.lengths.long(), counts_B)).tolist()
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            if not 0 <= count <= tokens:
                raise ValueError(f"counts[{row}] is {count}; it must lie in 0..{tokens}, the tokens given")
            if length + count > self.capacity:
                raise ValueError(
                    f"row {row} is full: {length} tokens and {count} more do not fit its capacity of {self.capacity}"
                )
        self.longest = max(lengths)


def _refuse_not_finite(new: Parts3, real_BT: Tensor) -> None:
    hidden = ~real_BT[:, None, :, None]
    wrong = [(~x.isfinite()).masked_fill(hidden, False) for x in new]
    if not bool(torch.stack([w.any() for w in wrong]).any()):
        return
    for name, x, bad in zip(("k_sem", "k_geo", "v"), new, wrong, strict=True):
        if bool(bad.any()):
            place = [int(i) for i in bad.nonzero()[0]]
            raise ValueError(f"{name}{place} (row, head, token, element) is {float(x[tuple(place)])}: not appended")
