"""Which implementation of attention this process uses on its GPU, and which one really ran: said once, at the start.

The choice holds for the whole process: compiled code has it built in. Called by the trainer before it compiles.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from workloads.contract.config.job import ModelSpec, TrainSpec
from workloads.contract.errors import SpecError
from workloads.models import flex
from workloads.models.full import documents_mask
from workloads.train.machine import Machine

HOPPER = (9, 0)
_ORDER = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def choose(train: TrainSpec, machine: Machine) -> None:
    """As the job says; `auto` on Hopper and newer: cuDNN's first, which is the fastest there. Not on a CPU.

    `flex` is the model's own affair; evaluation beside it is left to `auto`.
    """
    if not machine.cuda:
        return
    if train.attention in ("auto", "flex"):
        # torch itself leaves cuDNN's out where the job wants the same bits each time
        if torch.cuda.get_device_capability(machine.device) >= HOPPER:
            order = [b.value for b in _ORDER]
            order += [b for b in torch._C._get_sdp_priority_order() if b not in order]
            torch._C._set_sdp_priority_order(order)
        return
    torch.backends.cuda.enable_flash_sdp(train.attention == "flash")
    torch.backends.cuda.enable_cudnn_sdp(train.attention == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(train.attention == "math")


def audit(model: ModelSpec, tokens: int, train: TrainSpec, machine: Machine, *, documents: bool) -> str:
    """The implementation that took a row of `tokens` tokens of this model: `flash`, `cudnn`, `efficient`, `math`, or
    `flex`.

    documents: rows hold several, and attention has a mask. SpecError when the one that the job names cannot.
    """
    dtype = torch.bfloat16 if machine.bf16 else torch.float32
    in_blocks = documents and train.attention == "flex"
    shared = not documents or in_blocks  # a key's head by several queries': what takes a mask of scores cannot
    q, k, v = (
        torch.zeros(1, heads, tokens, model.d_head, dtype=dtype, device=machine.device, requires_grad=True)
        for heads in (model.heads, *[model.kv_heads if shared else model.heads] * 2)
    )
    numbers_BT = torch.zeros(1, tokens, dtype=torch.int32, device=machine.device)
    mask = documents_mask(numbers_BT) if documents and not in_blocks else None
    grouped = model.heads != model.kv_heads and shared
    try:
        if in_blocks:
            torch.autograd.grad(flex.attend(q, k, v, flex.documents_blocks(numbers_BT)).sum(), (q, k, v))
            return "flex"
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    except (RuntimeError, ValueError, NotImplementedError) as e:  # the compiler's are RuntimeErrors
        raise SpecError(
            "E-TRAIN-013",
            f"train.attention: {train.attention} does not compute this model here: {str(e).splitlines()[0]}",
            value=f"{model.heads} heads, {model.kv_heads} of keys, of {model.d_head}, {tokens} tokens, {dtype}"
            + (", a mask of documents" if documents else ""),
            expected="auto, or one that does",
            fix="set train.attention to auto",
        ) from e
    made_by = out.grad_fn.name() if out.grad_fn is not None else ""
    known = re.fullmatch(r"ScaledDotProduct(Flash|Cudnn|Efficient)Attention.*", made_by)
    return known[1].lower() if known else "math"
