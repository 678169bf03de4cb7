"""Attention inside documents by torch's flex attention: blocks of keys that no query sees are left out, and not masked.

The mask is made once a forward pass, for all layers. Under torch.compile, and on a GPU always, it is one kernel; on a
CPU it is computed as it is written, with every score, which is what the kernel is held against. Called by `Decoder`
(the mask) and by attention modules (the product), where the job says `train.attention: flex`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def documents_blocks(documents_BT: Tensor) -> BlockMask:
    """A token sees itself and those before it in its own document; `documents_BT`: their numbers. No host sync."""

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (documents_BT[b, q] == documents_BT[b, k]) & (q >= k)

    rows, tokens = documents_BT.shape
    return create_block_mask(sees, rows, None, tokens, tokens, device=documents_BT.device)


def attend(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, blocks: BlockMask) -> Tensor:
    """[B, N, T, H]; groups of queries share a key/value head."""
    grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
    return _product(q_BNTH.is_cuda)(q_BNTH, k_BKTH, v_BKTH, block_mask=blocks, enable_gqa=grouped)  # type: ignore[no-any-return]


def _product(cuda: bool) -> Callable[..., Any]:
    """Inside of what is being compiled it is traced with the rest."""
    if cuda and not torch.compiler.is_compiling():
        return _kernel()
    return flex_attention


@cache
def _kernel() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled
