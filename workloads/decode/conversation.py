"""Conversations on one cache: a turn computes its own tokens only.

After a turn the caches hold every token said so far: the prompts, what was generated, and the token that ended each
reply. Never recomputes an earlier turn. Called by users; `workloads.decode.generate` is for a single batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernels.decoupled.policy import KVCachePolicy
from workloads.decode.generate import SYNC_EVERY
from workloads.decode.graphed import GraphedStep, graphed_step
from workloads.decode.sampling import GREEDY, Sampling, choose
from workloads.decode.splitcache import split_caches
from workloads.decode.steps import Reply, Step, Watch, decode, ends, last_logits, pack, plain_step
from workloads.models.cache import LayerCache
from workloads.models.decoder import Decoder


class Conversation:
    """`rows` conversations side by side, each with its own tokens; not thread-safe.

    capacity: tokens a row that the caches have room for at first. max_capacity: what they may grow to, by doubling;
    default: they do not grow. graphed: replay the decode step as a CUDA graph (`workloads.decode.graphed`).
    policy: keep the caches in its formats (`workloads.decode.splitcache`), which cannot grow.
    watch: called with the number of each step of a reply; what it raises ends the turn, as Ctrl-C does.
    The model must stay as it is while the conversation lasts: the caches are not told.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        rows: int = 1,
        capacity: int = 1024,
        max_capacity: int | None = None,
        eos: int | Collection[int] | None = None,
        sampling: Sampling = GREEDY,
        sync_every: int = SYNC_EVERY,
        graphed: bool = False,
        policy: KVCachePolicy | None = None,
        watch: Watch | None = None,
    ) -> None:
        if sync_every < 1:
            raise ValueError(f"sync_every {sync_every}: at least 1")
        if policy is not None and max_capacity not in (None, capacity):
            raise ValueError(f"max_capacity {max_capacity}: a cache with a policy does not grow beyond {capacity}")
        device = model.embed.weight.device
        self._model, self._sampling, self._sync_every = model, sampling, sync_every
        self._eos_E = ends(eos, model.vocab, device)
        self._generator = sampling.generator(device)
        self._watch = watch
        self._caches: list[LayerCache] = (
            model.new_caches(rows, capacity, max_capacity)
            if policy is None
            else [*split_caches(model, rows, capacity, policy)]
        )
        self._graphed = graphed
        self._step = self._make_step()
        self._tokens: list[list[int]] = [[] for _ in range(rows)]
        self._borders: list[list[int]] = []  # lengths of the rows before each turn
        self._logits_BV: Tensor | None = None  # after the newest token of each row; unknown after `back`
        self.computed = 0
        """tokens, over all rows, whose keys and values were computed here (a fork starts at 0)"""

    @property
    def tokens(self) -> list[list[int]]:
        """Every token of each row so far: what the caches hold. A copy."""
        return [list(row) for row in self._tokens]

    @property
    def caches(self) -> Sequence[LayerCache]:
        """One a layer. To look at: what is changed here makes `tokens` wrong."""
        return tuple(self._caches)

    @property
    def turns(self) -> int:
        return len(self._borders)

    @property
    def logits(self) -> Tensor | None:
        """After each row's newest token [B, V]; None before the first turn and after `back`."""
        return self._logits_BV

    def prepare(self) -> None:
        """Have the CUDA graph of a step captured now, where there is one: the next turn is then not the one to wait."""
        if isinstance(self._step, GraphedStep):
            with torch.no_grad():
                self._step.prepare()

    def _make_step(self) -> Step:
        return (graphed_step if self._graphed else plain_step)(self._model, self._caches)

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """A turn without a reply, such as a system prompt that is forked later. Tokens are added to each row.

        ValueError as for `turn`; then nothing has changed.
        """
        self._turn(prompts, 0)

    def turn(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Add each row's new tokens and generate its reply: at most `max_new_tokens`, the end-of-turn token included.

        prompts: only what is new, one list a row; an empty one goes on from the row's newest token. A reply that
        reached the limit has no end-of-turn token: begin the next prompt with one if the model expects it.
        ValueError: a list too many or too few, a token outside the vocabulary, a row with nothing to go on from, no
        room in the cache (row and capacity are named); then, as after Ctrl-C, the conversation is as before the turn.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens}: at least 1; `read` adds tokens without a reply")
        return self._turn(prompts, max_new_tokens)

    @torch.no_grad()
    def _turn(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        self._check(prompts)
        lengths, logits_BV = [len(row) for row in self._tokens], self._logits_BV
        try:
            said = self._compute(prompts, limit)
        except BaseException:
            self._cut(lengths)
            self._logits_BV = logits_BV
            raise
        for row, prompt, reply in zip(self._tokens, prompts, said, strict=True):
            row += [*prompt, *reply]
        self._borders.append(lengths)
        self._cut([len(row) for row in self._tokens])  # the caches' bound on the host is exact again
        self.computed += sum(map(len, prompts)) + sum(map(len, said))
        return said

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        if len(prompts) != len(self._tokens):
            raise ValueError(f"{len(prompts)} prompts for {len(self._tokens)} rows: one list of tokens a row")
        if self._logits_BV is None and (stuck := [i for i, p in enumerate(prompts) if not len(p)]):
            raise ValueError(f"row {stuck[0]} has an empty prompt and nothing to go on from: give at least one token")

    def _compute(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        model, logits_BV = self._model, self._logits_BV
        tokens_BT, counts_B = pack(prompts, model.vocab, self._eos_E.device)
        if tokens_BT.shape[1]:
            new_BV = last_logits(model, tokens_BT, counts_B, self._caches)
            logits_BV = new_BV if logits_BV is None else torch.where((counts_B > 0).unsqueeze(1), new_BV, logits_BV)
        assert logits_BV is not None  # _check: no logits means no empty prompt
        reply = Reply(len(prompts), limit, self._eos_E, self._watch)
        self._logits_BV = decode(
            self._caches, self._step, logits_BV, reply, self._choose, keep=True, sync_every=self._sync_every
        )
        return reply.rows()

    def _choose(self, logits_BV: Tensor) -> Tensor:
        return choose(logits_BV, self._sampling, self._generator)

    def _cut(self, lengths: list[int]) -> None:
        lengths_B = torch.tensor(lengths, dtype=torch.int32, device=self._eos_E.device)
        for cache in self._caches:
            cache.truncate(lengths_B)

    def reseed(self, seed: int) -> None:
        """Draw from now on as a conversation does that begins with this seed."""
        self._sampling = replace(self._sampling, seed=seed)
        self._generator = self._sampling.generator(self._eos_E.device)

    def back(self, turns: int = 1) -> None:
        """Forget the newest turns, prompts and replies. ValueError when there are fewer."""
        if not 1 <= turns <= len(self._borders):
            raise ValueError(f"cannot go back {turns} turns: there are {len(self._borders)}")
        lengths = self._borders[-turns]
        self._cut(lengths)
        del self._borders[-turns:]
        self._tokens = [row[:n] for row, n in zip(self._tokens, lengths, strict=True)]
        self._logits_BV = None

    def fork(self, rows: Sequence[int] | None = None, *, seed: int | None = None) -> Conversation:
        """A new conversation whose row i goes on from a copy of row `rows[i]`; default: each row once.

        The two share no memory. seed: of the fork's draws (default: the sampling's seed again, so that equal forks draw
        equally). ValueError for a row that does not exist.
        """
        picked = list(range(len(self._tokens))) if rows is None else list(rows)
        if not picked or not all(0 <= r < len(self._tokens) for r in picked):
            raise ValueError(f"rows {picked}: at least one, each of 0..{len(self._tokens) - 1}")
        rows_B = torch.tensor(picked, dtype=torch.int64, device=self._eos_E.device)
        child = Conversation.__new__(Conversation)
        child._model, child._sync_every, child._eos_E = self._model, self._sync_every, self._eos_E
        child._sampling = self._sampling if seed is None else replace(self._sampling, seed=seed)
        child._generator = child._sampling.generator(self._eos_E.device)
        child._caches = [cache.fork(rows_B) for cache in self._caches]
        child._watch, child._graphed = self._watch, self._graphed
        child._step = child._make_step()
        child._tokens = [list(self._tokens[r]) for r in picked]
        child._borders = [[lengths[r] for r in picked] for lengths in self._borders]
        child._logits_BV = None if self._logits_BV is None else self._logits_BV[rows_B]
        child.computed = 0
        return child
