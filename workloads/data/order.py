"""The order of samples: a seeded permutation of window numbers, computed one index at a time. Pure.

Nothing is shuffled in memory, so any position can be entered at once and the state of the order is one number.
A four-round Feistel network permutes the next power of four at or above n; values at or above n walk the cycle
until they are inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Called by
`workloads.data.batches`.
"""

from __future__ import annotations

from functools import cached_property

_MASK64 = (1 << 64) - 1
_ROUNDS = 4


def _mix(x: int) -> int:
    """splitmix64's finaliser: a fixed 64-bit mixing function (Steele, Lea, Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


class Permutation:
    """A bijection of range(n), fixed by (seed, epoch)."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if n < 1:
            raise ValueError(f"cannot permute {n} samples")
        self.n, self._seed, self._epoch = n, seed, epoch
        self._half_bits = max(1, -(-(n - 1).bit_length() // 2))

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        return tuple(_mix(_mix(self._seed) ^ _mix((self._epoch << 8) | r)) for r in range(_ROUNDS))

    def __call__(self, i: int) -> int:
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is not in range({self.n})")
        bits, mask = self._half_bits, (1 << self._half_bits) - 1
        while True:
            left, right = i >> bits, i & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & mask)
            i = left << bits | right
            if i < self.n:
                return i
