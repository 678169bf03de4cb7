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

from kernels.kv_decode.cache import KVCache
from kernels.kv_decode.plan import choose_backend
from workloads.decode.steps import Step, plain_step
from workloads.models.decoder import Decoder

WARM_UP = 2
"""steps before a capture: the first compiles kernels and makes plans"""


def graphed_step(model: Decoder, caches: Sequence[KVCache]) -> Step:
    """A `Step` that replays. ValueError where the caches do not go through Triton on a CUDA device: what the host
    computes cannot be captured.

    The logits that a step returns are overwritten by the next one.
    """
    k = caches[0].k
    if not k.is_cuda or choose_backend(k, k.dtype) != "triton":
        raise ValueError(f"a CUDA graph needs Triton's kernels (fp16 or bf16 on CUDA), not {k.dtype} on {k.device}")
    return _GraphedStep(model, caches)


class _GraphedStep:
    def __init__(self, model: Decoder, caches: Sequence[KVCache]) -> None:
        self._caches, self._rope, self._plain = caches, model.rope, plain_step(model, caches)
        self._tokens_B1 = torch.zeros(caches[0].batch, 1, dtype=torch.int64, device=caches[0].k.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV = torch.empty(0)
        self._captured: list[int] = []

    def __call__(self, tokens_B1: Tensor, counts_B: Tensor | None) -> Tensor:
        if counts_B is not None:
            return self._plain(tokens_B1, counts_B)
        self._tokens_B1.copy_(tokens_B1)
        if self._reads() != self._captured:
            self._graph = None  # frees what it holds before the next one is made
            self._capture()
            self._captured = self._reads()
        assert self._graph is not None
        self._graph.replay()
        for cache in self._caches:
            cache.replayed(1)
        return self._logits_BV

    def _reads(self) -> list[int]:
        """Where a step reads, and how far: a graph may be replayed as long as that is what it was when captured."""
        tables = (self._rope.cos_PH, self._rope.sin_PH)  # the model's: another conversation may make them grow
        held = [t for cache in self._caches for t in (cache.k, cache.v)]
        return [t.data_ptr() for t in (*tables, *held)] + [cache.capacity for cache in self._caches]

    def _capture(self) -> None:
        """Warm up and capture on the caches themselves; their lengths are as before when it is done."""
        before = [(cache.lengths.clone(), cache.longest) for cache in self._caches]
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

    def _restore(self, before: list[tuple[Tensor, int]]) -> None:
        for cache, (lengths, longest) in zip(self._caches, before, strict=True):
            cache.lengths.copy_(lengths)
            cache.longest = longest
