"""Decode over a semantic and a geometric key, from a cache in 4 and 8 bits: see README.md.

    from kernels.decoupled import KVCachePolicy, NullToken, QuantizedCache, decoupled_decode, DecoupledPlan

Importing this needs no Triton.
"""

from kernels.decoupled.api import decoupled_decode
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.plan import DecoupledPlan
from kernels.decoupled.policy import KVCachePolicy
from kernels.decoupled.reference import NullToken

__all__ = ["DecoupledPlan", "KVCachePolicy", "NullToken", "QuantizedCache", "decoupled_decode"]
