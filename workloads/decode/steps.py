"""The two moves of generation on caches: read prompts (prefill), and make tokens one by one (decode).

A row that has ended stays in the batch; what it is given from then on is not kept. The host waits for the device once
in `sync_every` steps, to see whether all rows have ended, and when a cache is full. Letters: B rows, T tokens,
V vocabulary, E tokens that end a row. Called by `workloads.decode.generate` and `workloads.decode.conversation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from workloads.models.cache import LayerCache
from workloads.models.decoder import Decoder

Choose = Callable[[Tensor], Tensor]
"""logits [B, V] to tokens int64 [B]"""
Watch = Callable[[int], None]
"""called by the host as it comes to a step, 0 the first; the device may be some steps behind"""


def pack(prompts: Sequence[Sequence[int]], vocab: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens int64 [B, T], counts int32 [B]): the prompts padded on the right with 0 to the longest.

    ValueError naming row and place of a token that is no int in 0..vocab-1.
    """
    longest = max((len(p) for p in prompts), default=0)
    for row, prompt in enumerate(prompts):
        for place, token in enumerate(prompt):
            if not isinstance(token, int) or not 0 <= token < vocab:
                raise ValueError(f"row {row}, token {place}: {token!r} is no token of a vocabulary of {vocab}")
    padded = [[*p, *[0] * (longest - len(p))] for p in prompts]
    tokens_BT = torch.tensor(padded, dtype=torch.int64).reshape(len(prompts), longest)
    counts_B = torch.tensor([len(p) for p in prompts], dtype=torch.int32)
    return tokens_BT.to(device), counts_B.to(device)


def ends(eos: int | Collection[int] | None, vocab: int, device: torch.device) -> Tensor:
    """int64 [E]: the tokens that end a row. ValueError when one is not in the vocabulary."""
    given = [] if eos is None else [eos] if isinstance(eos, int) else sorted(eos)
    if wrong := [e for e in given if not 0 <= e < vocab]:
        raise ValueError(f"eos {wrong[0]} is no token of a vocabulary of {vocab}")
    return torch.tensor(given, dtype=torch.int64, device=device)


def last_logits(
    model: Decoder, tokens_BT: Tensor, counts_B: Tensor, caches: Sequence[LayerCache] | None = None
) -> Tensor:
    """Logits after the last real token of each row [B, V]; a row with count 0 gets some that mean nothing.

    With caches the tokens are added to them; without, the rows are read from their start.
    """
    x_BTD = model.hidden(tokens_BT, caches=caches, counts=None if caches is None else counts_B)
    last_B = (counts_B.long() - 1).clamp(min=0)
    rows_B = torch.arange(len(last_B), device=last_B.device)
    return model.head(x_BTD[rows_B, last_B])  # type: ignore[no-any-return]


class Reply:
    """Tokens as they are made: `tokens` int64 [B, limit], the first `made[b]` (int32 [B]) of a row are real.

    `watch(step)` hears of every step; what it raises ends the generation.
    """

    def __init__(self, batch: int, limit: int, eos_E: Tensor, watch: Watch | None = None) -> None:
        device = eos_E.device
        self.tokens = torch.zeros(batch, limit, dtype=torch.int64, device=device)
        self.made = torch.zeros(batch, dtype=torch.int32, device=device)
        self.alive = torch.ones(batch, dtype=torch.bool, device=device)
        self._eos_E, self._watch = eos_E, watch

    def take(self, step: int, token_B: Tensor) -> Tensor:
        """Note the tokens of a step; returns int32 [B], 1 for the rows that were alive, whose token counts."""
        if self._watch is not None:
            self._watch(step)
        grown_B = self.alive.to(torch.int32)
        self.tokens[:, step] = token_B.masked_fill(~self.alive, 0)
        self.made += grown_B
        self.alive = self.alive & (token_B.unsqueeze(1) != self._eos_E).all(dim=1)
        return grown_B

    def rows(self) -> list[list[int]]:
        """The tokens of each row, the one that ended it included. Waits for the device."""
        made = self.made.tolist()
        return [row[:n] for row, n in zip(self.tokens.tolist(), made, strict=True)]


Step = Callable[[Tensor, Tensor | None], Tensor]
"""(tokens int64 [B, 1], counts int32 [B] or None for all) to logits [B, V]: one step on the caches"""


def plain_step(model: Decoder, caches: Sequence[LayerCache]) -> Step:
    """The step as the model computes it when it is called."""

    def step(tokens_B1: Tensor, counts_B: Tensor | None) -> Tensor:
        return model(tokens_B1, caches=caches, counts=counts_B)[:, -1]  # type: ignore[no-any-return]

    return step


def decode(
    caches: Sequence[LayerCache],
    step: Step,
    logits_BV: Tensor,
    reply: Reply,
    choose: Choose,
    *,
    keep: bool,
    sync_every: int,
) -> Tensor:
    """Fill `reply`, starting from the logits after each row's last token; returns the logits after the newest ones.

    Rows that have ended grow on with tokens that nobody reads, as that is the fastest step: the caller truncates the
    caches to what was said. When the room for that runs out they stop growing. keep: the last tokens (the end of a
    turn, or the one that reached the limit) go into the caches too, at the price of one more step; without it the
    logits that are returned are those that the last token was chosen from.
    """
    limit = reply.tokens.shape[1]
    start_B = caches[0].lengths.clone()
    for number in range(limit):
        token_B = choose(logits_BV)
        grown_B = reply.take(number, token_B)
        last = number + 1 == limit or ((number + 1) % sync_every == 0 and not bool(reply.alive.any()))
        if last and not keep:
            break
        counts_B = None
        if caches[0].longest >= caches[0].capacity:
            said_B = start_B + reply.made - grown_B
            for cache in caches:
                cache.truncate(said_B)
            counts_B = grown_B
        new_BV = step(token_B.unsqueeze(1), counts_B)
        logits_BV = torch.where(grown_B.bool().unsqueeze(1), new_BV, logits_BV)
        if last:
            break
    return logits_BV
