"""A decode step as a CUDA graph: one launch of the host's instead of some hundred.

The graph reads the lengths on the device, so one capture serves every length. It is captured at the first step and
again when a cache or the rotary tables have grown (their tensors are others then); a step with counts, which is for
the rare full cache, is computed as the model does it. Called by `workloads.decode.generate` and
`workloads.decode.conversation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.decoupled.dispatch import by_triton
from kernels.kv_decode.cache import KVCache
from kernels.kv_decode.plan import choose_backend
from workloads.decode.splitcache import Mark, SplitCache
from workloads.decode.steps import plain_step
from workloads.models.cache import LayerCache
from workloads.models.decoder import Decoder

WARM_UP = 2
"""steps before a capture: the first compiles kernels and makes plans"""


def graphed_step(model: Decoder, caches: Sequence[LayerCache]) -> GraphedStep:
    """A `Step` that replays. ValueError where the caches do not go through Triton on a CUDA device: what the host
    computes cannot be captured.

    The logits that a step returns are overwritten by the next one.
    """
    dtype, device = model.embed.weight.dtype, caches[0].lengths.device
    if not can_graph(caches, dtype):
        raise ValueError(f"a CUDA graph needs Triton's kernels (fp16 or bf16 on CUDA), not {dtype} on {device}")
    return GraphedStep(model, caches)


def can_graph(caches: Sequence[LayerCache], dtype: torch.dtype) -> bool:
    """Whether a step on these caches, of a model in `dtype`, is computed by kernels alone."""
    first = caches[0]
    if not first.lengths.is_cuda:
        return False
    if isinstance(first, KVCache):
        return choose_backend(first.k, dtype) == "triton"
    return by_triton(first.lengths)


class GraphedStep:
    def __init__(self, model: Decoder, caches: Sequence[LayerCache]) -> None:
        self._caches, self._rope, self._plain = caches, model.rope, plain_step(model, caches)
        self._tokens_B1 = torch.zeros(caches[0].batch, 1, dtype=torch.int64, device=caches[0].lengths.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV = torch.empty(0)
        self._captured: list[int] = []

    def __call__(self, tokens_B1: Tensor, counts_B: Tensor | None) -> Tensor:
        if counts_B is not None:
            return self._plain(tokens_B1, counts_B)
        self._tokens_B1.copy_(tokens_B1)
        self.prepare()
        assert self._graph is not None
        self._graph.replay()
        for cache in self._caches:
            cache.replayed(1)
        return self._logits_BV

    def prepare(self) -> None:
        """Capture now what the next step would capture first. Needs room for one more token in every row."""
        if self._reads() != self._captured:
            self._graph = None  # frees what it holds before the next one is made
            self._capture()
            self._captured = self._reads()

    def _reads(self) -> list[int]:
        """Where a step reads, and how far: a graph may be replayed as long as that is what it was when captured."""
        tables = (self._rope.cos_PH, self._rope.sin_PH)  # the model's: another conversation may make them grow
        held = [t for cache in self._caches for t in _tensors(cache)]
        return [t.data_ptr() for t in (*tables, *held)] + [cache.capacity for cache in self._caches]

    def _capture(self) -> None:
        """Warm up and capture on the caches themselves; their lengths are as before when it is done."""
        before = [_mark(cache) for cache in self._caches]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._plain(self._tokens_B1, None)
                self._restore(before)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_BV = self._plain(self._tokens_B1, None)
        self._restore(before)

    def _restore(self, before: list[Mark]) -> None:
        for cache, mark in zip(self._caches, before, strict=True):
            if isinstance(cache, SplitCache):
                cache.reset(mark)
            else:
                cache.lengths.copy_(mark[0][0])
                cache.longest = mark[1]


def _tensors(cache: LayerCache) -> Sequence[Tensor]:
    if isinstance(cache, SplitCache):
        return cache.tensors()
    assert isinstance(cache, KVCache)
    return cache.k, cache.v


def _mark(cache: LayerCache) -> Mark:
    """What a step changes below the cache's length; slots above it hold anything."""
    return cache.mark() if isinstance(cache, SplitCache) else ((cache.lengths.clone(),), cache.longest)
