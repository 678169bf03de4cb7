"""Who answers a call: the Triton kernels, PyTorch's SDPA, or the reference; and the sentence that says why.

In this order: what is asked for (`backend=`, else KERNELS_BACKEND) is done or refused, never replaced. Then what the
GPU can run, then what was measured on this model (`kernels.thresholds`), then Triton. A choice that is not the usual
one is said once a process. SDPA takes lengths from the host, all rows the same (`sdpa.why_not`), so a plan, whose
lengths are on the device, is never given to it. Launches nothing. Called by `api.py` and `plan.py`.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Literal

import torch

from kernels import thresholds
from kernels.device import gpu_name, interpreted, too_old
from kernels.kv_decode import sdpa
from kernels.kv_decode.config import SHARED_BYTES, choose_config

Backend = Literal["auto", "triton", "reference", "sdpa", "sdpa-flash", "sdpa-cudnn"]
BACKENDS = ("auto", "triton", "reference", "sdpa", "sdpa-flash", "sdpa-cudnn")
FAMILY = "kv-decode"
PLANNED = "a plan reads its lengths on the device, and SDPA takes them from the host"
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Ask:
    """One call. `length`: keys a row, the most there can be where the host does not know. `sdpa_no`: why SDPA cannot
    answer it, "" where it can."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    dim: int
    v_dim: int
    length: int
    dtype: torch.dtype
    device: torch.device
    sdpa_no: str


@dataclass(frozen=True)
class Choice:
    backend: Backend  # never "auto"
    why: str

    @property
    def triton(self) -> bool:
        return self.backend == "triton"

    @property
    def sdpa(self) -> bool:
        return self.backend.startswith("sdpa")


def choose(ask: Ask, backend: Backend = "auto") -> Choice:
    """ValueError when what is asked for is no backend, or cannot answer this call; or for a broken thresholds file."""
    asked: str = backend
    by = "backend="
    if backend == "auto":
        asked, by = os.environ.get("KERNELS_BACKEND") or "auto", "KERNELS_BACKEND"
    if asked not in BACKENDS:
        raise ValueError(f"backend {asked!r}: one of {', '.join(BACKENDS)} is needed (argument or KERNELS_BACKEND)")
    able = _able(ask.dtype, ask.device)
    if asked == "auto":
        return _automatic(ask) if able else Choice("reference", f"Triton does not run {ask.dtype} on {ask.device}")
    if asked == "triton" and not able:
        raise ValueError(
            f"Triton runs fp16 and bf16 on CUDA (and fp32 with TRITON_INTERPRET=1), not {ask.dtype} on {ask.device}"
        )
    if asked.startswith("sdpa") and ask.sdpa_no:
        raise ValueError(f"{by} asks for {asked}, which cannot answer this call: {ask.sdpa_no}")
    return Choice(asked, f"asked for by {by}")  # type: ignore[arg-type]


def _able(dtype: torch.dtype, device: torch.device) -> bool:
    half = dtype in (torch.float16, torch.bfloat16)
    return half if device.type == "cuda" else interpreted() and (half or dtype == torch.float32)


def _automatic(ask: Ask) -> Choice:
    rows = ask.heads // max(1, ask.kv_heads) * ask.queries
    cannot = unable(ask.device, rows, ask.dim, ask.v_dim, ask.dtype)
    if cannot:
        other: Backend = "reference" if ask.sdpa_no else "sdpa"
        thresholds.say_once(f"{FAMILY}: {other} instead of Triton: {cannot}; KERNELS_BACKEND=triton tries it anyway")
        return Choice(other, cannot)
    gpu = gpu_name(ask.device)
    if gpu is None:
        return Choice("triton", "the default: no GPU, so nothing was measured")
    return _measured(ask, gpu)


def _measured(ask: Ask, gpu: str) -> Choice:
    """By the thresholds file of this model; Triton where there is none or nothing near was measured."""
    held = thresholds.found(FAMILY, gpu)
    if held is None:
        return Choice("triton", f"the default: no thresholds file for {gpu}")
    table, file = held
    if ask.queries != 1 or ask.v_dim != ask.dim or not ask.kv_heads:
        return Choice("triton", f"the default: {file} is of decode steps with equal head sizes")
    pairs = ask.batch * ask.kv_heads
    rule = table.rule_for(ask.heads // ask.kv_heads, ask.dim, SHORT[ask.dtype], pairs, ask.length)
    if rule is None:
        return Choice("triton", f"the default: {file} has measured nothing near this shape and length")
    why = f"measured at {rule.pairs} (row, KV head) pairs from length {rule.from_length}: {file}"
    if rule.backend == "triton":
        return Choice("triton", why)
    if rule.backend.startswith("sdpa") and ask.sdpa_no:
        return Choice("triton", f"{rule.backend} was faster ({why}), but cannot answer this call: {ask.sdpa_no}")
    thresholds.say_once(
        f"{FAMILY}: {rule.backend} from length {rule.from_length} (group {rule.group}, head size {rule.head_dim}), as "
        f"measured on {table.gpu} (margin {table.margin:g}x): {file}; KERNELS_BACKEND=triton forces our kernels"
    )
    return Choice(rule.backend, why)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def unable(device: torch.device, rows: int, dim: int, v_dim: int, dtype: torch.dtype) -> str:
    """Why this GPU cannot run our kernels for `rows` queries of a KV head at these head sizes; "" when it can."""
    if too_old(device):
        return too_old(device)
    try:
        choose_config(max(1, rows), dim, v_dim, dtype, 1 << 20, **machine(device))
    except ValueError as e:
        return f"{gpu_name(device)}: {e}"
    return ""


@functools.lru_cache(maxsize=64)
def machine(device: torch.device) -> dict[str, int]:
    """shared_bytes of a multiprocessor that one program may take, and pdl: 2 where a launch may start before its
    predecessor has ended (Hopper and later), else 0. Without a GPU: as on a Hopper."""
    if device.type != "cuda":
        return {"shared_bytes": SHARED_BYTES, "pdl": 2}
    found = torch.cuda.get_device_properties(device)
    shared_bytes = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return {"shared_bytes": int(shared_bytes), "pdl": 2 if found.major >= 9 else 0}


def why(
    batch: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    length: int,
    *,
    v_head_dim: int | None = None,
    queries: int = 1,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cuda",
    lengths_on_host: bool = True,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> str:
    """What a call of `api.attention` (or `attention_with_kv_cache`) of this shape would be given to, and why.

    `length`: keys a row. `lengths_on_host`: all rows have it and the host knows, as without `kv_lens`, or in a cache
    whose rows are equally long with `check=True`. Runs nothing. ValueError as the call itself would raise it.

    >>> print(why(16, 8, 8, 64, 8192, device="cpu", backend="reference"))
    reference: asked for by backend=
    """
    no = sdpa.why_not(queries, length, causal=True, lse=return_lse, same_lengths=lengths_on_host)
    v_dim = head_dim if v_head_dim is None else v_head_dim
    where = torch.empty(0, device=device).device
    choice = choose(Ask(batch, q_heads, kv_heads, queries, head_dim, v_dim, length, dtype, where, no), backend)
    return f"{choice.backend}: {choice.why}"
