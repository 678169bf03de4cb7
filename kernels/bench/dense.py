"""Suite `kv-decode`: one decode step over an fp16 cache, at the shapes of the design's table and the cache-size sweep.

What is timed is `DecodePlan.run` as a model calls it: append one token a row, attend over all S (`attend_us`: without
the append, as the peers do it). The answer and the slot written are checked first; unused slots, the output and the
slot to be written hold NaN before. Every copy of the inputs is random and different. Letters: B rows, H query heads,
K KV heads, D head size, C capacity, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.bench import goals
from kernels.bench.peers import PeerTimes, Step, sdpa, time_peers
from kernels.bench.probe import Bandwidth
from kernels.bench.rows import Measured
from kernels.bench.timing import Launch, graph_time, rotation
from kernels.checks import Verdict, judge, worst_of

if TYPE_CHECKING:
    from kernels.kv_decode.plan import DecodePlan

SPARE = 64  # unused slots behind the last key, poisoned
MOST_BYTES = 24 << 30
SEEDS = 1 << 16  # a run with another seed shares no input with this one


@dataclass(frozen=True)
class Case:
    batch: int
    heads: int
    kv_heads: int
    dim: int
    length: int  # keys that the query sees, the new one included
    dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        return f"B{self.batch} H{self.heads}/{self.kv_heads} D{self.dim} S{self.length} {short_name(self.dtype)}"

    @property
    def shape(self) -> dict[str, int]:
        return {"B": self.batch, "Hq": self.heads, "Hkv": self.kv_heads, "D": self.dim, "S": self.length}

    @property
    def cache_bytes(self) -> int:
        """What must be read: keys and values, nothing else."""
        return 2 * self.batch * self.kv_heads * self.length * self.dim * self.dtype.itemsize

    @property
    def in_sweep(self) -> bool:
        return (self.batch, self.heads, self.kv_heads, self.dim) == (16, 8, 8, 64) and self.length <= 4096


SWEEP = tuple(Case(16, 8, 8, 64, s) for s in (128, 256, 512, 1024, 2048, 4096))
TABLE = (
    *(Case(16, 8, 8, 64, s) for s in (8192, 32768)),
    *(Case(1, 32, 8, 128, s) for s in (4096, 32768, 131072)),
    Case(16, 32, 8, 128, 8192),
    Case(16, 64, 4, 128, 65536),
)
QUICK = (SWEEP[4], TABLE[0], TABLE[2])
CPU = (Case(2, 4, 2, 32, 33, torch.float32), Case(1, 2, 2, 16, 40, torch.float32))


def cases(device: torch.device, *, quick: bool = False, sweep: bool = False) -> Sequence[Case]:
    """The sweep and the table; `sweep`: the sweep alone; `quick`: three shapes; on the CPU: two tiny ones."""
    if device.type != "cuda":
        return CPU
    return QUICK if quick else SWEEP if sweep else (*SWEEP, *TABLE)


def short_name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


@dataclass(frozen=True)
class Copy:
    """One set of inputs: a cache of S-1 tokens a row and the token to be appended."""

    q_BHSD: Tensor
    k_new_BKSD: Tensor
    v_new_BKSD: Tensor
    k_BKCD: Tensor
    v_BKCD: Tensor
    lengths_B: Tensor
    out_BHSD: Tensor

    def filled(self, case: Case) -> Step:
        """The step as peers see it: the new token written in its place, unused slots out of sight."""
        at = case.length - 1
        self.k_BKCD[:, :, at] = self.k_new_BKSD[:, :, 0]
        self.v_BKCD[:, :, at] = self.v_new_BKSD[:, :, 0]
        seen = slice(0, case.length)
        return Step(self.q_BHSD, self.k_BKCD[:, :, seen], self.v_BKCD[:, :, seen], 1 / math.sqrt(case.dim))


def make_copy(case: Case, device: torch.device, seed: int) -> Copy:
    """Random normal inputs of `case`, the same for the same seed; everything that must not be read is NaN."""
    random = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=case.dtype, device=device, generator=random)

    def cache() -> Tensor:
        room = normal(case.batch, case.kv_heads, case.length + SPARE, case.dim)
        room[:, :, case.length - 1 :] = math.nan
        return room

    new = (case.batch, case.kv_heads, 1, case.dim)
    q = normal(case.batch, case.heads, 1, case.dim)
    lengths = torch.full((case.batch,), case.length - 1, dtype=torch.int32, device=device)
    return Copy(q, normal(*new), normal(*new), cache(), cache(), lengths, torch.full_like(q, math.nan))


def measure(case: Case, found: Bandwidth, device: torch.device, *, replays: int = 15, seed: int = 0) -> Measured:
    """Check, then time ours and every peer. What our own code raises becomes a row with verdict "failed".

    `seed`: of the inputs.
    """
    count = rotation(case.cache_bytes, found.l2_bytes, most_bytes=MOST_BYTES)
    copies = [make_copy(case, device, seed * SEEDS + i) for i in range(count)]
    limit = found.limit_us(case.cache_bytes)
    row = Measured(case.name, case.shape, short_name(case.dtype), case.cache_bytes, limit, "failed")
    row = replace(row, goal=goals.dense(case.batch, case.heads, case.kv_heads, case.dim, case.length, limit))
    try:
        plan = make_plan(case, device)
        verdict, ref64 = check(plan, case, copies[0])
    except Exception as e:  # a broken kernel must not hide the other cases
        return replace(row, extra={"error": f"{type(e).__name__}: {e}"[:400]})
    steps = [c.filled(case) for c in copies]
    peers = time_peers(steps, ref64, device=device, replays=replays)
    row = replace(row, err=verdict.err, tol=verdict.tol, peers=peers.us, peer_notes=peers.notes)
    if not verdict.ok:
        return replace(row, verdict="wrong", extra={"worst": list(verdict.worst)})
    return _timed(row, plan, case, copies, found, device, replays)


def _timed(
    row: Measured,
    plan: DecodePlan,
    case: Case,
    copies: list[Copy],
    found: Bandwidth,
    device: torch.device,
    replays: int,
) -> Measured:
    before = copies[0].out_BHSD.clone()

    def launch(i: int) -> Launch:
        return launcher(plan, copies[i])

    def attending(i: int) -> Launch:
        c, seen = copies[i], copies[i].lengths_B + 1
        return lambda: plan.run(c.q_BHSD, None, None, c.k_BKCD, c.v_BKCD, seen, out=c.out_BHSD)

    timing = graph_time(launch, len(copies), device=device, replays=replays)
    extra: dict[str, Any] = {"why": plan.why(), "capacity": case.length + SPARE, "copies": len(copies)}
    extra["attend_us"] = graph_time(attending, len(copies), device=device, replays=replays).us
    if case.cache_bytes < found.l2_bytes // 2:
        extra["hot_us"] = graph_time(launch, 1, device=device, replays=replays, l2_state="hot").us
    if case.in_sweep:
        extra |= {"old_target_us": goals.OLD_TARGET_US, "old_target": goals.old_target(timing.us, row.limit_us)}
    again = repeats(launcher(plan, copies[0]), before, [c.out_BHSD for c in copies])
    plan.check()
    if not again:
        return replace(row, verdict="wrong", extra=extra | {"repeats": False})
    return replace(row, verdict="ok", timing=timing, extra=extra | {"repeats": True})


def repeats(launch: Launch, before: Tensor, outs: Sequence[Tensor]) -> bool:
    """After the timing: every copy was answered, and the first one is answered again with the very same bits."""
    if any(bool(out.isnan().any()) for out in outs):
        return False
    outs[0].fill_(math.nan)
    launch()
    return torch.equal(before, outs[0])


def make_plan(case: Case, device: torch.device) -> DecodePlan:
    from kernels.kv_decode.plan import DecodePlan

    shape = (case.batch, case.heads, case.kv_heads, case.dim, case.length + SPARE)
    return DecodePlan(*shape, dtype=case.dtype, device=device)


def launcher(plan: DecodePlan, copy: Copy) -> Launch:
    given = (copy.q_BHSD, copy.k_new_BKSD, copy.v_new_BKSD, copy.k_BKCD, copy.v_BKCD, copy.lengths_B)
    return lambda: plan.run(*given, out=copy.out_BHSD)


def check(plan: DecodePlan, case: Case, copy: Copy) -> tuple[Verdict, Tensor]:
    """One step against fp64: the output by the rule of kernels.checks, the appended slot bit for bit, the rest kept.

    Returns the verdict and the reference output [B, H, 1, D]. An appended slot that differs is an infinite error.
    """
    launcher(plan, copy)()
    plan.check()
    at = case.length - 1
    written = torch.equal(copy.k_BKCD[:, :, at : at + 1], copy.k_new_BKSD)
    written = written and torch.equal(copy.v_BKCD[:, :, at : at + 1], copy.v_new_BKSD)
    kept = bool(copy.k_BKCD[:, :, at + 1 :].isnan().all() & copy.v_BKCD[:, :, at + 1 :].isnan().all())
    step = copy.filled(case)
    ref64 = reference(step)
    verdict = judge(copy.out_BHSD, ref64, sdpa(step))
    if not (written and kept and worst_of(copy.lengths_B, torch.full_like(copy.lengths_B, at))[0] == 0):
        verdict = replace(verdict, err=math.inf, ok=False)
    return verdict, ref64


def reference(step: Step) -> Tensor:
    """fp64 attention of the step, row by row so that the widened copies stay small."""
    from kernels.kv_decode.reference import attention_reference

    rows = []
    for b in range(step.q_BHSD.shape[0]):
        q, k, v = (t[b : b + 1] for t in (step.q_BHSD, step.k_BKND, step.v_BKNE))
        row = attention_reference(q, k, v, scale=step.scale)
        assert isinstance(row, Tensor)
        rows.append(row)
    return torch.cat(rows)


def dense_peers(steps: Sequence[Step], device: torch.device, replays: int) -> PeerTimes:
    """The peers on any filled steps, held against fp64 of the first."""
    return time_peers(steps, reference(steps[0]), device=device, replays=replays)
