"""Generation for a batch of ragged prompts: read once, then one token a row and step until it ends.

`use_cache=False` computes every token again at each step: the slow truth that the cache is compared with. For several
turns on one cache see `workloads.decode.conversation`. Called by users and tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from workloads.decode.graphed import graphed_step
from workloads.decode.sampling import GREEDY, Sampling, choose
from workloads.decode.steps import Choose, Reply, Watch, decode, ends, last_logits, pack, plain_step
from workloads.models.decoder import Decoder

SYNC_EVERY = 16
"""steps between two looks of the host at whether all rows have ended"""


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos: int | Collection[int] | None = None,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
    graphed: bool = False,
    sync_every: int = SYNC_EVERY,
    watch: Watch | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt: at most `max_new_tokens`, ending with the first of `eos`, which is included.

    prompts: token ids, of any lengths of at least 1; padding is never attended to, so that a greedy row's tokens are
    those of the row alone (but for rounding). The model is used as it is: in its dtype, on its device.
    graphed: replay the step as a CUDA graph (`workloads.decode.graphed`); capturing it takes as long as some steps.
    ValueError: no prompt, an empty one, a token outside the vocabulary, max_new_tokens or sync_every below 1, `graphed`
    without a CUDA device or without the cache.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError(f"prompts of at least one token each, not of lengths {[len(p) for p in prompts]}")
    if max_new_tokens < 1 or sync_every < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and sync_every {sync_every}: at least 1")
    if graphed and not use_cache:
        raise ValueError("graphed replays a step on the cache: it needs use_cache=True")
    device = model.embed.weight.device
    tokens_BT, counts_B = pack(prompts, model.vocab, device)
    reply = Reply(len(prompts), max_new_tokens, ends(eos, model.vocab, device), watch)
    generator = sampling.generator(device)

    def pick(logits_BV: Tensor) -> Tensor:
        return choose(logits_BV, sampling, generator)

    if use_cache:
        caches = model.new_caches(len(prompts), tokens_BT.shape[1] + max_new_tokens)
        logits_BV = last_logits(model, tokens_BT, counts_B, caches)
        step = graphed_step(model, caches) if graphed else plain_step(model, caches)
        decode(caches, step, logits_BV, reply, pick, keep=False, sync_every=sync_every)
    else:
        _replay(model, tokens_BT, counts_B, reply, pick, sync_every)
    return reply.rows()


def _replay(model: Decoder, tokens_BT: Tensor, counts_B: Tensor, reply: Reply, pick: Choose, sync_every: int) -> None:
    """Every step reads the rows from their start."""
    rows_B = torch.arange(len(counts_B), device=counts_B.device)
    room_B1 = torch.zeros_like(tokens_BT[:, :1])
    for step in range(reply.tokens.shape[1]):
        token_B = pick(last_logits(model, tokens_BT, counts_B))
        grown_B = reply.take(step, token_B)
        if (step + 1) % sync_every == 0 and not bool(reply.alive.any()):
            break
        tokens_BT = torch.cat((tokens_BT, room_B1), dim=1)
        tokens_BT[rows_B, counts_B.long()] = token_B
        counts_B = counts_B + grown_B
