"""Every other implementation of a decode step that this process can import, on the same inputs, in the same run.

A peer is checked against the fp64 reference before it is timed; one that is absent, fails or is wrong becomes a note
in the row (`peer_notes`), never a crash and never a time. All of them read a filled cache and append nothing, which
costs them less than our step. Called by the suites; the CPU knows SDPA alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench import fa3
from kernels.bench.timing import graph_time
from kernels.checks import judge


@dataclass(frozen=True)
class Step:
    """One decode step: q [B, Hq, 1, D] over k [B, Hkv, S, D], v [B, Hkv, S, Dv], all S keys valid."""

    q_BHSD: Tensor
    k_BKND: Tensor
    v_BKNE: Tensor
    scale: float


Run = Callable[[], Tensor]  # gives [B, Hq, 1, Dv]


@dataclass(frozen=True)
class Peer:
    """A name, and what builds its launch on a step (allocations and schedules are made there, untimed)."""

    name: str
    prepare: Callable[[Step], Run]


@dataclass(frozen=True)
class PeerTimes:
    """us: name -> median microseconds; notes: name -> why there is no time, or what is odd about it."""

    us: dict[str, float]
    notes: dict[str, str]

    @property
    def best(self) -> tuple[str, float] | None:
        return min(self.us.items(), key=lambda item: item[1]) if self.us else None

    def fa3(self) -> float | None:
        """The fastest way that FA3 was called, in microseconds."""
        times = [us for name, us in self.us.items() if name.startswith("fa3")]
        return min(times) if times else None


def sdpa(step: Step) -> Tensor:
    """PyTorch's answer with whatever backend it picks; a single query needs no causal mask."""
    grouped = step.q_BHSD.shape[1] != step.k_BKND.shape[1]
    return scaled_dot_product_attention(step.q_BHSD, step.k_BKND, step.v_BKNE, scale=step.scale, enable_gqa=grouped)


def _sdpa_with(backend: SDPBackend) -> Callable[[Step], Run]:
    def prepare(step: Step) -> Run:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return sdpa(step)

        return run

    return prepare


def _fa3(*, lengths: bool, planned: bool) -> Callable[[Step], Run]:
    def prepare(step: Step) -> Run:
        q, k, v = (t.transpose(1, 2) for t in (step.q_BHSD, step.k_BKND, step.v_BKNE))
        out = torch.full((*q.shape[:3], v.shape[3]), math.nan, dtype=q.dtype, device=q.device)
        used = torch.full((q.shape[0],), k.shape[1], dtype=torch.int32, device=q.device) if lengths else None
        plan = fa3.schedule(q, k, used) if planned and used is not None else None
        return lambda: fa3.forward(q, k, v, out, step.scale, used, plan).transpose(1, 2)

    return prepare


def _flashinfer(step: Step) -> Run:
    """FlashInfer's batch decode over pages of 16 tokens, which it is built for; the paging is not timed."""
    flashinfer: Any = importlib.import_module("flashinfer")
    B, K, S, D = step.k_BKND.shape
    H, pages = step.q_BHSD.shape[1], -(-S // 16)
    device = step.q_BHSD.device

    def paged(x_BKSD: Tensor) -> Tensor:
        room = torch.zeros(B, pages * 16, K, x_BKSD.shape[3], dtype=x_BKSD.dtype, device=device)
        room[:, :S] = x_BKSD.transpose(1, 2)
        return room.view(B * pages, 16, K, x_BKSD.shape[3])

    work = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(work, "NHD")
    starts = torch.arange(B + 1, dtype=torch.int32, device=device) * pages
    last = torch.full((B,), S - (pages - 1) * 16, dtype=torch.int32, device=device)
    table = torch.arange(B * pages, dtype=torch.int32, device=device)
    wrapper.plan(starts, table, last, H, K, D, 16, q_data_type=step.q_BHSD.dtype, sm_scale=step.scale)
    cache, q_BHD = (paged(step.k_BKND), paged(step.v_BKNE)), step.q_BHSD[:, :, 0].contiguous()
    return lambda: wrapper.run(q_BHD, cache)[:, :, None]


def available(device: torch.device) -> tuple[list[Peer], dict[str, str]]:
    """The peers to try on `device`, and the reason for each one that is not there."""
    if device.type != "cuda":
        return [Peer("sdpa", lambda step: lambda: sdpa(step))], {}
    found = [
        Peer("sdpa-flash", _sdpa_with(SDPBackend.FLASH_ATTENTION)),
        Peer("sdpa-cudnn", _sdpa_with(SDPBackend.CUDNN_ATTENTION)),
    ]
    absent: dict[str, str] = {}
    reason = fa3.load()
    if reason:
        absent["fa3"] = reason
    else:
        found += [
            Peer("fa3", _fa3(lengths=True, planned=False)),
            Peer("fa3-planned", _fa3(lengths=True, planned=True)),
            Peer("fa3-dense", _fa3(lengths=False, planned=False)),
        ]
    if importlib.util.find_spec("flashinfer") is None:
        absent["flashinfer"] = "not installed"
    else:
        found.append(Peer("flashinfer", _flashinfer))
    return found, absent


@contextmanager
def noting(notes: dict[str, str], name: str) -> Iterator[None]:
    """A peer is foreign code: whatever it raises becomes a note."""
    try:
        yield
    except Exception as e:
        words = str(e).splitlines() or [""]
        notes[name] = f"{type(e).__name__}: {words[0][:200]}"


def second_answer(run: Run) -> Tensor:
    """What a launch gives the second time, its first answer overwritten by NaN: a schedule may be good for one use."""
    run().fill_(math.nan)
    return run()


def time_peers(steps: Sequence[Step], ref64_BHSE: Tensor, *, device: torch.device, replays: int) -> PeerTimes:
    """Checks every peer on `steps[0]` against `ref64_BHSE`, then times it over all the steps in turn."""
    peers, notes = available(device)
    us: dict[str, float] = {}
    own = sdpa(steps[0])
    for peer in peers:
        with noting(notes, peer.name):
            verdict = judge(second_answer(peer.prepare(steps[0])), ref64_BHSE, own)
            if not verdict.ok:
                notes[peer.name] = str(verdict)
                continue
            timing = graph_time(lambda i, p=peer: p.prepare(steps[i]), len(steps), device=device, replays=replays)  # type: ignore[misc]
            us[peer.name] = timing.us
            if timing.how == "events":
                notes[peer.name] = "could not be captured: events around eager launches"
    return PeerTimes(us, notes)
