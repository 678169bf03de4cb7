"""FlashAttention 3 without its package: the one shared object that holds its operators, called as vLLM calls it.

KERNELS_FA3_SO names `_vllm_fa3_C.abi3.so` (out of the wheel vllm==0.22.1, for torch 2.11) or the same packed by xz.
Without it, or where it does not load, there is no such peer, and the rows say why. Never on the CPU. Called by `peers`.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENV = "KERNELS_FA3_SO"


@functools.lru_cache(maxsize=1)
def load() -> str:
    """Registers `torch.ops._vllm_fa3_C`; "" when it is there, else the reason why it is not. Never raises."""
    name = os.environ.get(ENV, "")
    if not name:
        return f"{ENV} is not set"
    path = Path(name)
    if not path.is_file():
        return f"{ENV} names {name}: no such file"
    try:
        library = unpacked(path) if path.suffix == ".xz" else path
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        operator()
    except (OSError, RuntimeError, AttributeError, lzma.LZMAError) as e:
        words = " ".join(str(e.__cause__ or e).split())
        return f"{path.name} does not load: {words[:200]}"
    return ""


def unpacked(path: Path) -> Path:
    """The shared object inside `path` (.xz), unpacked once to the temporary folder, by content. OSError, LZMAError."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"{digest}-{path.stem}"
    if not target.exists():
        part = target.with_suffix(f".part{os.getpid()}")
        with lzma.open(path) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 22)
        part.replace(target)
    return target


def operator() -> Any:
    return torch.ops._vllm_fa3_C.fwd


def schedule(q_BSHD: Tensor, k_BSKD: Tensor, lengths_B: Tensor) -> Tensor:
    """What FA3 precomputes once a step for all layers (outside the timed launch, as vLLM does)."""
    B, Sq, Hq, D = q_BSHD.shape
    made: Tensor = torch.ops._vllm_fa3_C.get_scheduler_metadata(
        *(B, Sq, k_BSKD.shape[1], Hq, k_BSKD.shape[2], D, D, q_BSHD.dtype, lengths_B),
        *(None, None, None, None, None),  # cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, leftpad_k
        *(None, 0, True, -1, -1, False, 0, None, 0),
        # page_size, max_seqlen_k_new, causal, window left, right, softcap, num_splits, pack_gqa, sm_margin
    )
    return made


def forward(
    q_BSHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BSHD: Tensor,
    scale: float,
    lengths_B: Tensor | None,
    metadata: Tensor | None,
) -> Tensor:
    """One decode step over k, v [B, S, Hkv, D], strided or not, the last dimension dense; `lengths_B` int32 or None."""
    results = operator()(
        *(q_BSHD, k_BSKD, v_BSKD, None, None, None, out_BSHD),  # ..., k_new, v_new, q_v, out
        *(None, None, None, None, lengths_B),  # cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k
        *(q_BSHD.shape[1], k_BSKD.shape[1]),  # max_seqlen_q, max_seqlen_k
        *(None, None, None, None, None, None),  # page_table, kv_batch_idx, leftpad_k, rotary cos, sin, seqlens
        *(None, None, None, scale, True, -1, -1, 0.0, True),
        # q_descale, k_descale, v_descale, softmax_scale, causal, window left, right, softcap, rotary interleaved
        *(metadata, 0, None, 0, None, 1, 0, None),
        # scheduler_metadata, num_splits, pack_gqa, sm_margin, s_aux, cp_world_size, cp_rank, cp_tot_seqused_k
    )
    result: Tensor = results[0]
    return result
