"""Suite `decoupled`: one decode step over the decoupled cache, quantized and not, with and without null token and tail.

What is timed is `DecoupledPlan.run` over a cache of S tokens a row; its append is a launch of its own, not timed here.
Judged against fp64 attention over the *dequantized* cache; scales and values of unused slots hold NaN. The peers run
the equal dense attention over the same values in fp16: more bytes, and what one would call otherwise. Letters: `dense`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from kernels.bench import goals
from kernels.bench.dense import MOST_BYTES, SEEDS, SPARE, dense_peers, repeats
from kernels.bench.peers import PeerTimes, Step, sdpa
from kernels.bench.probe import Bandwidth
from kernels.bench.rows import Measured
from kernels.bench.timing import Launch, graph_time, rotation
from kernels.checks import Verdict, judge
from kernels.device import runs_triton

if TYPE_CHECKING:
    from kernels.decoupled.cache import QuantizedCache
    from kernels.decoupled.reference import NullToken

TAIL = 128
FILL = 8192  # tokens appended at once
FORMATS = {
    "q4q8q4": ("q4_0@32", "q8_0@32", "q4_0@32"),
    "q8q8q8": ("q8_0@32", "q8_0@32", "q8_0@32"),
    "fp16": ("fp16", "fp16", "fp16"),
}
BITS = {"q4_0@32": 4.5, "q8_0@32": 8.5, "fp16": 16.0}


@dataclass(frozen=True)
class Case:
    batch: int
    heads: int
    kv_heads: int
    sem: int
    geo: int
    val: int
    length: int
    kinds: str = "q4q8q4"
    null: bool = False
    tail: int = 0

    @property
    def name(self) -> str:
        more = f"{' +null' if self.null else ''}{f' +tail{self.tail}' if self.tail else ''}"
        dims = f"{self.sem}+{self.geo}/{self.val}"
        return f"B{self.batch} H{self.heads}/{self.kv_heads} {dims} S{self.length} {self.kinds}{more}"

    @property
    def shape(self) -> dict[str, int]:
        dims = {"B": self.batch, "Hq": self.heads, "Hkv": self.kv_heads, "ds": self.sem, "dg": self.geo, "dv": self.val}
        return dims | {"S": self.length, "tail": self.tail, "null": int(self.null)}

    @property
    def policy(self) -> str:
        sem, geo, val = FORMATS[self.kinds]
        return f"ksem={sem},kgeo={geo},v={val},resid={self.tail}"

    @property
    def cache_bytes(self) -> int:
        """What must be read: codes and scales of the packed tokens, fp16 of the tail."""
        sem, geo, val = (BITS[kind] / 8 for kind in FORMATS[self.kinds])
        packed = sem * self.sem + geo * self.geo + val * self.val
        recent = min(self.tail, self.length)
        token_bytes = (self.length - recent) * packed + recent * 2 * (self.sem + self.geo + self.val)
        return round(self.batch * self.kv_heads * token_bytes)


LENGTHS = (2048, 8192, 32768, 131072)
Variant = dict[str, Any]
VARIANTS: tuple[Variant, ...] = ({}, {"null": True}, {"tail": TAIL}, {"kinds": "q8q8q8"}, {"kinds": "fp16"})


def cases(device: torch.device, *, quick: bool = False) -> Sequence[Sequence[Case]]:
    """Groups of cases of one length, the plain q4q8q4 first; on the CPU a tiny group, for tests."""
    if device.type != "cuda":
        small = Case(2, 4, 2, 16, 16, 32, 40)
        return [[small, replace(small, null=True), replace(small, tail=16), replace(small, kinds="fp16")]]
    lengths = LENGTHS[:2] if quick else LENGTHS
    variants = VARIANTS[:2] if quick else VARIANTS
    return [[replace(Case(16, 8, 8, 32, 32, 64, s), **v) for v in variants] for s in lengths]


@dataclass(frozen=True)
class Copy:
    """Queries, and a cache that holds `length` random tokens a row."""

    q_sem_BHS: Tensor
    q_geo_BHG: Tensor
    cache: QuantizedCache
    null: NullToken | None
    out_BHV: Tensor


def make_copy(case: Case, device: torch.device, seed: int) -> Copy:
    """Random normal inputs of `case`; the queries carry the scale (2 g / sqrt(d), g = 1/2) as the model's do."""
    from kernels.decoupled.cache import QuantizedCache
    from kernels.decoupled.policy import KVCachePolicy
    from kernels.decoupled.reference import NullToken

    random = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float16, device=device, generator=random)

    dims = (case.sem, case.geo, case.val)
    cache = QuantizedCache(
        case.batch, case.length + SPARE, case.kv_heads, *dims, KVCachePolicy.parse(case.policy), device
    )
    for at in range(0, case.length, FILL):
        count = min(FILL, case.length - at)
        cache.append(*(normal(case.batch, case.kv_heads, count, d) for d in dims))
    poison(cache, case.length - min(case.tail, case.length))
    null = NullToken(*(normal(case.kv_heads, d) for d in dims)) if case.null else None
    q_sem = normal(case.batch, case.heads, case.sem) / math.sqrt(case.sem)
    q_geo = normal(case.batch, case.heads, case.geo) / math.sqrt(case.geo)
    out = torch.full((case.batch, case.heads, case.val), math.nan, dtype=torch.float16, device=device)
    return Copy(q_sem, q_geo, cache, null, out)


def poison(cache: QuantizedCache, packed: int) -> None:
    """NaN into every scale and value of the quantized part at or above `packed`, 0xFF into every code."""
    for part in (cache.sem, cache.geo, cache.v):
        if part.values is not None:
            part.values[:, :, packed:] = math.nan
        if part.codes is not None and part.scales is not None:
            part.codes[:, :, :, packed:] = 255
            part.scales[:, :, :, packed:] = math.nan


class Plan(Protocol):
    """What of `DecoupledPlan` is used here."""

    def run(
        self, q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, *, null: NullToken | None, out: Tensor | None
    ) -> Tensor: ...

    def why(self) -> str: ...


class ByReference:
    """The public function on a machine without Triton."""

    def run(
        self, q_sem: Tensor, q_geo: Tensor, cache: QuantizedCache, *, null: NullToken | None, out: Tensor | None
    ) -> Tensor:
        from kernels.decoupled.api import decoupled_decode

        answer = decoupled_decode(q_sem, q_geo, cache, null=null, out=out, backend="reference")
        assert isinstance(answer, Tensor)
        return answer

    def why(self) -> str:
        return "reference: Triton does not run here"


@dataclass
class Group:
    """The cases of one length, measured in turn: the first gives the peers' times and the null token's goal."""

    found: Bandwidth
    device: torch.device
    replays: int = 15
    seed: int = 0
    peers: PeerTimes | None = None
    plain_us: dict[str, float] = field(default_factory=dict)

    def measure(self, case: Case) -> Measured:
        """Check, then time. What our own code raises becomes a row with verdict "failed"."""
        limit = self.found.limit_us(case.cache_bytes)
        row = Measured(case.name, case.shape, case.kinds, case.cache_bytes, limit, "failed")
        count = rotation(case.cache_bytes, self.found.l2_bytes, most_bytes=MOST_BYTES)
        try:
            copies = [make_copy(case, self.device, self.seed * SEEDS + i) for i in range(count)]
            plan = make_plan(case, copies[0].cache)
            verdict, _ = check(plan, copies[0])
        except Exception as e:  # a broken kernel must not hide the other cases
            return replace(row, extra={"error": f"{type(e).__name__}: {e}"[:400]})
        if self.peers is None:
            self.peers = self._time_peers(case, copies)
        row = replace(row, err=verdict.err, tol=verdict.tol, peers=self.peers.us, peer_notes=self.peers.notes)
        if not verdict.ok:
            return replace(row, verdict="wrong", extra={"worst": list(verdict.worst)})
        return self._timed(row, plan, case, copies)

    def _time_peers(self, case: Case, copies: list[Copy]) -> PeerTimes:
        size = 2 * case.batch * case.kv_heads * case.length * (case.sem + case.geo + case.val)
        count = rotation(size, self.found.l2_bytes, most_bytes=MOST_BYTES)
        return dense_peers([as_dense(c, torch.float16) for c in copies[:count]], self.device, self.replays)

    def _timed(self, row: Measured, plan: Plan, case: Case, copies: list[Copy]) -> Measured:
        before = copies[0].out_BHV.clone()
        timing = graph_time(lambda i: launcher(plan, copies[i]), len(copies), device=self.device, replays=self.replays)
        again = repeats(launcher(plan, copies[0]), before, [c.out_BHV for c in copies])
        if not again:
            return replace(row, verdict="wrong", extra={"repeats": False})
        extra: dict[str, Any] = {"why": plan.why(), "repeats": True, "policy": case.policy, "copies": len(copies)}
        fa3_us = self.peers.fa3() if self.peers else None
        goal = goals.quantized(case.kinds, case.batch, case.length, row.limit_us, fa3_us)
        base = replace(case, null=False).name
        if case.null and base in self.plain_us:
            goal = goals.null_token(self.plain_us[base])
            extra["null_adds"] = timing.us / self.plain_us[base] - 1
        if case.tail:
            goal = goals.Goal()
        self.plain_us[case.name] = timing.us
        if fa3_us:
            extra["times_fa3"] = fa3_us / timing.us
        return replace(row, verdict="ok", timing=timing, goal=goal, extra=extra)


def make_plan(case: Case, cache: QuantizedCache) -> Plan:
    """The family's plan for this cache; its reference where Triton does not run (which nobody times)."""
    from kernels.decoupled.plan import DecoupledPlan

    return DecoupledPlan.of(cache, case.heads) if runs_triton(cache.lengths) else ByReference()


def launcher(plan: Plan, copy: Copy) -> Launch:
    return lambda: plan.run(copy.q_sem_BHS, copy.q_geo_BHG, copy.cache, null=copy.null, out=copy.out_BHV)


def as_dense(copy: Copy, dtype: torch.dtype) -> Step:
    """The equal dense attention over the dequantized cache: q' = [q_sem, q_geo], k' = [k_sem, k_geo], scale 1.

    The null token is one more key.
    """
    length = int(copy.cache.lengths.max())
    k_sem, k_geo, v = (t[:, :, :length] for t in copy.cache.dequantized(dtype))
    k = torch.cat((k_sem, k_geo), dim=-1)
    if copy.null is not None:
        dims = (k_sem.shape[-1], k_geo.shape[-1], v.shape[-1])
        n_sem, n_geo, n_v = (t.to(dtype)[:, :, None] for t in copy.null.rows(k.shape[0], k.shape[1], dims))
        k = torch.cat((torch.cat((n_sem, n_geo), dim=-1), k), dim=2)
        v = torch.cat((n_v, v), dim=2)
    q = torch.cat((copy.q_sem_BHS, copy.q_geo_BHG), dim=-1)[:, :, None].to(dtype)
    return Step(q, k, v.contiguous(), 1.0)


def check(plan: Plan, copy: Copy) -> tuple[Verdict, Tensor]:
    """One step against fp64 attention over the dequantized cache: the verdict, and that output [B, H, V]."""
    from kernels.decoupled.reference import decoupled_decode_reference

    launcher(plan, copy)()
    exact = copy.cache.dequantized(torch.float64)
    ref64 = decoupled_decode_reference(copy.q_sem_BHS, copy.q_geo_BHG, *exact, copy.cache.lengths, null=copy.null)
    assert isinstance(ref64, Tensor)
    del exact
    own = sdpa(as_dense(copy, copy.q_sem_BHS.dtype))[:, :, 0]
    return judge(copy.out_BHV, ref64, own), ref64
