"""A decoder-only transformer: RMSNorm before each block, rotary positions, attention by kind, SwiGLU.

Letters: B batch, T tokens, D model, F feed-forward, V vocabulary, L layers. Residual projections start smaller by
sqrt(2 L) (Radford et al., 2019). Called by the trainer; `workloads.decode` passes one cache a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from workloads.contract.config.job import ModelSpec
from workloads.models.attention import make_attention
from workloads.models.cache import LayerCache
from workloads.models.flex import documents_blocks
from workloads.models.full import check_borders, documents_mask
from workloads.models.loss import linear_cross_entropy
from workloads.models.norm import Norm
from workloads.models.rope import Rope, Rotation

INIT_STD = 0.02


class SwiGLU(nn.Module):
    """Shazeer, 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.out = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, value_BTF = self.up(x_BTD).chunk(2, dim=-1)
        return self.out(F.silu(gate_BTF) * value_BTF)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.attention_norm = Norm(spec.dim, eps=spec.norm_eps)
        self.attention = make_attention(spec)
        self.ffn_norm = Norm(spec.dim, eps=spec.norm_eps)
        self.ffn = SwiGLU(spec.dim, spec.d_ffn)
        self.recompute = False
        """keep only the input for backward, and compute the rest again there"""

    def forward(
        self,
        x_BTD: Tensor,
        rope: Rotation,
        positions: Tensor,
        cu_seqlens: Tensor | None = None,
        cache: LayerCache | None = None,
        counts: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
    ) -> Tensor:
        args = (x_BTD, rope, positions, cu_seqlens, cache, counts, mask)
        if self.recompute and torch.is_grad_enabled():
            # nothing here draws random numbers
            return checkpoint(self._run, *args, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._run(*args)

    def _run(
        self,
        x_BTD: Tensor,
        rope: Rotation,
        positions: Tensor,
        cu_seqlens: Tensor | None,
        cache: LayerCache | None,
        counts: Tensor | None,
        mask: Tensor | BlockMask | None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(
            self.attention_norm(x_BTD),
            rope=rope,
            positions=positions,
            cu_seqlens=cu_seqlens,
            cache=cache,
            counts=counts,
            mask=mask,
        )
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """`vocab` is the tokenizer's size unless the spec names a larger one."""

    def __init__(self, spec: ModelSpec, vocab: int) -> None:
        super().__init__()
        self.spec = spec
        self.vocab = spec.vocab or vocab
        if self.vocab < vocab:
            raise ValueError(f"model.vocab {self.vocab} is smaller than the tokenizer's {vocab}")
        self.embed = nn.Embedding(self.vocab, spec.dim)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = Norm(spec.dim, eps=spec.norm_eps)
        self.head = nn.Linear(spec.dim, self.vocab, bias=False)
        self.rope = Rope(spec.d_head, spec.rope_theta, 1, scaling=spec.rope_scaling)
        self.loss_of: Callable[[Tensor, Tensor, Tensor, int | None], Tensor] = linear_cross_entropy
        self.loss_chunk: int | None = None
        self.flex = False
        """where rows hold several documents, attention skips blocks instead of masking scores, when it is trained"""
        self._init()
        if spec.tie_embeddings:
            self.head.weight = self.embed.weight

    def _init(self) -> None:
        small = INIT_STD / math.sqrt(2 * self.spec.layers)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=small if name.endswith("out.weight") else INIT_STD)

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        documents_BT: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; given targets, the fp32 sum of their cross-entropies, without the logits of all tokens.

        Positions default to the place in the sequence: packed, cached or plain.
        caches: one a layer, all of equal lengths; each row grows by T, or by counts[b] (int [B], 0..T) when the rows
        are padded on the right. With caches only under `torch.no_grad`.
        documents_BT: number of the document of each token, where rows hold several: attention stays inside each.
        """
        x_BTD = self.hidden(
            tokens_BT, positions=positions, cu_seqlens=cu_seqlens, documents_BT=documents_BT, caches=caches,
            counts=counts,
        )  # fmt: skip
        if targets_BT is None:
            return self.head(x_BTD)  # type: ignore[no-any-return]
        return self.loss_of(x_BTD.flatten(0, 1), self.head.weight, targets_BT.flatten(), self.loss_chunk)

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        documents_BT: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """What `head` turns into logits [B, T, D]: for callers that want those of a few tokens only."""
        if caches is not None and len(caches) != len(self.blocks):
            raise ValueError(f"{len(caches)} caches for {len(self.blocks)} layers")
        tokens = tokens_BT.shape[1]
        if positions is None:
            positions = _places(tokens, tokens_BT.device, cu_seqlens, caches)
        reach = max([tokens, *(max(c.capacity, c.longest + tokens) for c in caches or ())])
        self.rope.reserve(reach, tokens_BT.device)
        rope = self.rope.at(positions)
        mask = None if documents_BT is None else self._mask(documents_BT)
        x_BTD = self.embed(tokens_BT)
        if torch.is_autocast_enabled(x_BTD.device.type):  # else every layer would add to, and keep, fp32
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        for i, block in enumerate(self.blocks):
            cache = None if caches is None else caches[i]
            x_BTD = block(x_BTD, rope, positions, cu_seqlens, cache, counts, mask)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def _mask(self, documents_BT: Tensor) -> Tensor | BlockMask:
        # what needs no gradient is called uncompiled (a few passes), where flex attention would write every score down
        return documents_blocks(documents_BT) if self.flex and torch.is_grad_enabled() else documents_mask(documents_BT)

    def recompute(self, wanted: bool) -> None:
        """Whether blocks keep only their input for backward (activation checkpointing)."""
        for block in self.blocks:
            block.recompute = wanted  # type: ignore[assignment]

    def new_caches(self, batch: int, capacity: int, max_capacity: int | None = None) -> list[LayerCache]:
        """An empty cache a layer, in the dtype and on the device of the weights."""
        weight = self.embed.weight
        return [
            b.attention.new_cache(batch, capacity, weight.dtype, weight.device, max_capacity)  # type: ignore[union-attr, operator]
            for b in self.blocks
        ]

    def metrics(self) -> dict[str, Tensor]:
        """The mean over layers of what the attention modules report; on the device."""
        each = [b.attention.metrics() for b in self.blocks]  # type: ignore[union-attr, operator]
        return {k: torch.stack([m[k] for m in each]).mean(0) for k in each[0]}


def _places(
    tokens: int, device: torch.device, cu_seqlens: Tensor | None, caches: Sequence[LayerCache] | None
) -> Tensor:
    place = torch.arange(tokens, device=device)
    if caches is not None:
        return caches[0].lengths.unsqueeze(1) + place
    if cu_seqlens is not None:
        check_borders(cu_seqlens, tokens)
        starts = cu_seqlens.to(place)[:-1]
        return place - starts[torch.bucketize(place, starts, right=True) - 1]
    return place
