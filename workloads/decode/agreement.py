"""How far a policy's cache is from the plain one, on the text that was really said: figures, no verdict.

Both caches are given the same conversation, then the reply token by token. So every step compares two answers to one
and the same text, and one early difference does not count again for the rest. What was said in earlier turns is read
turn by turn; an earlier reply at once. Long replies are compared up to `STEPS`. Called by `workloads.decode.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.decoupled.policy import KVCachePolicy
from workloads.decode.conversation import Conversation
from workloads.models.decoder import Decoder

STEPS = 256
"""At most: a step here waits for the device and takes tens of milliseconds."""


@dataclass(frozen=True)
class Agreement:
    """steps: compared; same_token: in how many of them both find the same token likeliest; logits in fp32."""

    steps: int
    same_token: float  # 0..1
    max_logit_difference: float
    largest_logit: float  # of the plain cache, to see the difference against

    def as_row(self) -> dict[str, float]:
        return dict(vars(self))


@torch.no_grad()
def agreement(
    model: Decoder, policy: KVCachePolicy, earlier: Sequence[Sequence[int]], prompt: Sequence[int], reply: Sequence[int]
) -> Agreement:
    """`earlier`: the prompts and replies before this turn, in order, none empty."""
    reply = reply[:STEPS]
    room = sum(map(len, earlier)) + len(prompt) + len(reply)
    plain, held = (Conversation(model, capacity=room, policy=p) for p in (None, policy))
    for talk in (plain, held):
        for said in (*earlier, prompt):
            talk.read([said])
    same, off, top = [], [], []
    for token in reply:
        assert plain.logits is not None and held.logits is not None  # both have just read something
        ours, theirs = held.logits.float(), plain.logits.float()
        same.append(ours.argmax(-1) == theirs.argmax(-1))
        off.append((ours - theirs).abs().max())
        top.append(theirs.abs().max())
        for talk in (plain, held):
            talk.read([[token]])
    return Agreement(
        len(reply),
        float(torch.cat(same).float().mean()),
        float(torch.stack(off).max()),
        float(torch.stack(top).max()),
    )
