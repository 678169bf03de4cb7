"""Who answers: a conversation on its cache (plain, or in the formats of a policy), or the replay without a cache.

A reply is made `repeats` times and timed apart: the reading of the prompt, then the making of tokens. The last one is
what the conversation goes on from. Called by `workloads.decode.loop`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from workloads.decode.config import DecodeConfig
from workloads.decode.conversation import Conversation
from workloads.decode.generate import generate
from workloads.decode.graphed import can_graph
from workloads.decode.progress import Progress
from workloads.decode.sampling import Sampling
from workloads.decode.weights import Loaded

GRAPH, LAUNCHES = "one CUDA graph", "single launches"
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Said:
    """prefill_s: None where nothing is kept of a prompt. Seconds are one a repeat."""

    ids: list[int]
    before: int  # tokens of the conversation before this prompt
    prefill_s: tuple[float, ...] | None
    decode_s: tuple[float, ...]


class Speaker(Protocol):
    step: str

    @property
    def cache_bytes(self) -> int: ...

    def recall(self, tokens: Sequence[int]) -> None:
        """Go on behind these: they were said by an earlier attempt."""
        ...

    def answer(self, prompt: Sequence[int], seed: int, done: int) -> Said:
        """`done`: steps of the run before this turn, for the beats."""
        ...


def speaker_of(config: DecodeConfig, loaded: Loaded, room: int, progress: Progress | None) -> Speaker:
    """For one conversation of at most `room` tokens."""
    if config.asked.backend == "full":
        return Replay(config, loaded, progress)
    return OnCache(config, loaded, room, progress)


class OnCache:
    """`Conversation`, its step replayed as a CUDA graph where that can be captured."""

    def __init__(self, config: DecodeConfig, loaded: Loaded, room: int, progress: Progress | None) -> None:
        self._limit, self._repeats, self._progress = config.asked.max_new_tokens, config.asked.repeats, progress
        self._lossy = config.policy is not None
        self._device = loaded.model.embed.weight.device
        dtype = loaded.model.embed.weight.dtype

        def talk(*, graphed: bool) -> Conversation:
            return Conversation(
                loaded.model, capacity=room, eos=loaded.eos, sampling=_sampling(config), graphed=graphed,
                policy=config.policy, watch=progress,
            )  # fmt: skip

        self._talk = talk(graphed=False)
        graphed = can_graph(self._talk.caches, dtype)
        if graphed:
            del self._talk
            self._talk = talk(graphed=True)
        self.step = GRAPH if graphed else LAUNCHES

    @property
    def cache_bytes(self) -> int:
        return sum(cache.size_bytes for cache in self._talk.caches)

    def recall(self, tokens: Sequence[int]) -> None:
        self._talk.read([tokens])

    def answer(self, prompt: Sequence[int], seed: int, done: int) -> Said:
        before, prefill, decode, ids = len(self._talk.tokens[0]), [], [], [0]
        for number in range(self._repeats):
            last = number + 1 == self._repeats
            if number and not self._lossy:
                self._talk.back(2)
            # what left a quantized tail cannot come back into it: such a reply is tried on a copy
            talk = self._talk.fork() if self._lossy and not last else self._talk
            talk.reseed(seed)
            began = _now(self._device)
            talk.read([prompt])
            prefill.append(_now(self._device) - began)
            talk.prepare()
            if self._progress is not None:
                self._progress.begin(done + number * self._limit)
            began = _now(self._device)
            (ids,) = talk.turn([[]], self._limit)
            decode.append(_now(self._device) - began)
        return Said(ids, before, tuple(prefill), tuple(decode))

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Compile what this prompt and a step need, and leave nothing behind."""
        self._talk.read([prompt])
        self._talk.prepare()
        self._talk.turn([[]], min(WARM_UP_TOKENS, self._limit))
        _now(self._device)


class Replay:
    """Every token reads the whole conversation from its start; nothing is kept."""

    step = "no cache"
    cache_bytes = 0

    def __init__(self, config: DecodeConfig, loaded: Loaded, progress: Progress | None) -> None:
        self._config, self._loaded, self._progress = config, loaded, progress
        self._device = loaded.model.embed.weight.device
        self._said: list[int] = []

    def recall(self, tokens: Sequence[int]) -> None:
        self._said += tokens

    def answer(self, prompt: Sequence[int], seed: int, done: int) -> Said:
        asked, before, decode, ids = self._config.asked, len(self._said), [], [0]
        for number in range(asked.repeats):
            if self._progress is not None:
                self._progress.begin(done + number * asked.max_new_tokens)
            began = _now(self._device)
            (ids,) = generate(
                self._loaded.model, [[*self._said, *prompt]], asked.max_new_tokens, eos=self._loaded.eos,
                sampling=_sampling(self._config, seed), use_cache=False, watch=self._progress,
            )  # fmt: skip
            decode.append(_now(self._device) - began)
        self._said += [*prompt, *ids]
        return Said(ids, before, None, tuple(decode))


def _sampling(config: DecodeConfig, seed: int | None = None) -> Sampling:
    asked = config.asked
    return Sampling(asked.temperature, asked.top_k, asked.top_p, asked.seed if seed is None else seed)


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
