"""The parity matrix of decoupled decode: `python -m kernels.parity decoupled [--full]`.

A covering array (every two values of every two factors meet) over null tokens, prefix lengths, rows and heads, passes
and partitions, tail, formats and head sizes; and cells of their own for what is no number: the same bits again, in
another batch, token by token, in a replayed graph, past 2^31. `cases` makes the inputs, kernels.checks judges. The
output and the scratch memory start as NaN. Called by kernels.parity.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import deterministic

from kernels.checks import Verdict, judge
from kernels.covering import pairwise
from kernels.decoupled import cases
from kernels.decoupled.cache import QuantizedCache
from kernels.decoupled.cases import Problem
from kernels.decoupled.policy import KVCachePolicy
from kernels.parity import Cell, Wrong

FAMILY: Final = "decoupled"
LONG: Final = 131072
FACTORS: Final[Mapping[str, tuple[Any, ...]]] = {
    "plan": ("1p", "2p1", "2p2", "2p3", "2p7", "2p0", "auto"),
    "formats": ("q4q8q4", "fp16", "q8", "fp16q4q8", "q8fp16q4"),
    "dims": ((32, 32, 64), (12, 20, 40), (40, 12, 20), (80, 96, 12), (20, 80, 96)),
    "prefix": (0, 1, 17, 129, 260),
    "null": ("none", "contiguous", "strided", "batched"),
    "heads": ((2, 2, 2), (1, 4, 2), (3, 4, 1), (2, 8, 1)),
    "resid": (0, 5, 40),
}
FULL: Final[Mapping[str, tuple[Any, ...]]] = {
    **FACTORS,
    "plan": (*FACTORS["plan"], "2p64"),
    "formats": tuple(cases.FORMATS),
    "prefix": (0, 1, 17, 63, 64, 65, 129, 500, 4095, 20000),
    "heads": ((2, 2, 2), (1, 4, 2), (3, 8, 2), (2, 8, 1), (5, 3, 3), (2, 12, 4), (4, 16, 1), (1, 40, 2)),
    "resid": (0, 1, 32, 40, 128),
    "dtype": ("fp16", "bf16"),
}
USUAL: Final[Mapping[str, Any]] = {
    "kind": "decode",
    "plan": "auto",
    "formats": "q4q8q4",
    "dims": (32, 32, 64),
    "prefix": 129,
    "null": "none",
    "heads": (2, 4, 2),
    "resid": 5,
    "data": "normal",
    "dtype": "fp16",
}


def cells(full: bool) -> list[Cell]:
    """CI's matrix (below 70 cells, an interpreter's work), or the GPU's."""
    made = [_cell(case) for case in pairwise(FULL if full else FACTORS, _allowed)]
    made += [_cell(case) for case in _named(full)]
    return made


def run(cell: Cell, device: torch.device, seed: int) -> Verdict:
    """Judge one cell. Raises Wrong for a fault that is no number."""
    with torch.no_grad(), _poisoned():
        return _KINDS[cell.params["kind"]](cell.params, device, seed)


def _named(full: bool) -> Iterator[dict[str, Any]]:
    """Cells beside the covering array."""
    yield from ({"data": "big", "formats": f, "null": n} for f in ("fp16", "q4q8q4") for n in ("none", "contiguous"))
    yield from ({"data": "needle", "formats": f, "prefix": 500, "plan": "1p"} for f in ("q4q8q4", "q8", "fp16"))
    yield {"plan": "2p64", "heads": (1, 2, 1), "prefix": 300, "null": "contiguous"}
    yield from (
        {"kind": "repeat", "plan": p, "null": "contiguous", "heads": (2, 4, 2), "prefix": 65} for p in ("1p", "2p3")
    )
    yield from ({"kind": "steps", "formats": f, "resid": r} for f, r in (("q4q8q4", 5), ("q8fp16q4", 1), ("q4q8q4", 0)))
    if not full:
        return
    yield from (
        {"prefix": LONG, "plan": p, "null": n, "resid": r, "formats": f, "heads": h}
        for p, n, r, f, h in (
            ("1p", "none", 0, "q4q8q4", (2, 4, 2)),
            ("2p1", "contiguous", 128, "q4q8q4", (2, 4, 2)),
            ("2p7", "strided", 0, "q8", (1, 8, 1)),
            ("2p64", "batched", 128, "q4q8q4", (3, 8, 2)),
            ("auto", "none", 128, "fp16", (2, 4, 2)),
            ("auto", "contiguous", 128, "q4q8q4", (2, 8, 8)),
        )
    )
    yield {"data": "needle", "formats": "q4q8q4", "prefix": LONG}
    yield from ({"kind": "graph", "plan": p, "null": n} for p in ("1p", "2p3", "auto") for n in ("none", "contiguous"))
    yield {"kind": "offsets", "formats": "q8", "dims": (64, 64, 64), "heads": (33, 16, 8), "prefix": 200}
    yield {"kind": "offsets", "formats": "q8fp16q4", "dims": (64, 64, 64), "heads": (33, 8, 8), "prefix": 200}


def _allowed(case: Mapping[str, Any]) -> bool:
    return not (case.get("plan") == "2p0" and case.get("prefix", 0) > 0)


def _cell(case: Mapping[str, Any]) -> Cell:
    params = {**USUAL, **case}
    batch, heads, kv_heads = params["heads"]
    words = [params[key] for key in ("kind", "data", "dtype") if params[key] != USUAL[key]]
    words += [f"B{batch}-H{heads}/{kv_heads}", "D{}.{}.{}".format(*params["dims"]), params["formats"]]
    words += [f"L{params['prefix']}", f"R{params['resid']}", f"null.{params['null']}", params["plan"]]
    needs_gpu = params["prefix"] >= LONG or params["kind"] in ("graph", "offsets")
    needs_gpu = needs_gpu or params["dtype"] == "bf16"  # Triton's interpreter truncates to bf16, hardware rounds
    return Cell(FAMILY, "-".join(("decoupled", *words)), params, gpu_only=needs_gpu)


def _plan(params: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(passes, partitions): 1p is one pass, 2p7 two with 7 partitions; auto forces neither."""
    if params["plan"] == "auto":
        return None, None
    passes, _, partitions = params["plan"].partition("p")
    return int(passes), int(partitions) if partitions else None


def _decode(problem: Problem, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(out, lse) by the api, into an output of NaN."""
    from kernels.decoupled import api

    shape = (*problem.q_sem.shape[:2], problem.cache.dims[2])
    out = torch.full(shape, torch.nan, dtype=problem.q_sem.dtype, device=problem.q_sem.device)
    passes, partitions = _plan(params)
    both = api.decoupled_decode(
        problem.q_sem,
        problem.q_geo,
        problem.cache,
        null=problem.null,
        passes=passes,
        partitions=partitions,
        out=out,
        return_lse=True,
    )
    assert isinstance(both, tuple)
    if both[0] is not out:
        raise Wrong("the output is not the tensor that was given as out")
    return both[0], both[1].clone()


def _judged(problem: Problem, out: Tensor, lse: Tensor) -> Verdict:
    """The output's verdict; that of the log-sum-exp when only it is wrong."""
    want, want_lse = cases.expected(problem)
    near, near_lse = cases.peer(problem)
    of_out, of_lse = judge(out, want, near), judge(lse, want_lse, near_lse)
    return of_lse if of_out.ok and not of_lse.ok else of_out


def _run_decode(params: Mapping[str, Any], device: torch.device, seed: int) -> Verdict:
    problem = cases.build(params, device, seed)
    before = [x.clone() for x in problem.cache.tensors()] if params["prefix"] < LONG else []
    out, lse = _decode(problem, params)
    for x, y in zip(before, problem.cache.tensors(), strict=False):
        if not torch.equal(_bits(x), _bits(y)):
            raise Wrong("the cache changed")
    return _judged(problem, out, lse)


def _run_repeat(params: Mapping[str, Any], device: torch.device, seed: int) -> Verdict:
    """Bit for bit the same twice, and each row alone."""
    problem = cases.build(params, device, seed)
    out, lse = _decode(problem, params)
    again, _ = _decode(problem, params)
    if not torch.equal(_bits(out), _bits(again)):
        raise Wrong("a second run gave other bits")
    for row in range(problem.cache.batch):
        one = slice(row, row + 1)
        null = problem.null
        alone = Problem(problem.q_sem[one], problem.q_geo[one], problem.cache.fork([row]), null)
        if not torch.equal(_bits(_decode(alone, params)[0]), _bits(out[one])):
            raise Wrong(f"row {row} alone gave other bits than in the batch")
    return _judged(problem, out, lse)


def _run_steps(params: Mapping[str, Any], device: torch.device, seed: int) -> Verdict:
    """Token by token by the append kernel: the cache's bits equal those of one long append; then decode."""
    problem = cases.build(params, device, seed)
    cache, steps = problem.cache, 3
    other = cache.fork(range(cache.batch))
    gen = torch.Generator(device).manual_seed(seed + 1)
    batch, kv_heads = cache.batch, cache.kv_heads
    k_sem, k_geo, v = (
        torch.randn(batch, kv_heads, steps, dim, generator=gen, device=device).half() for dim in cache.dims
    )
    other.append(k_sem, k_geo, v)
    for t in range(steps):
        one = slice(t, t + 1)
        cache.append(k_sem[:, :, one], k_geo[:, :, one], v[:, :, one])
    for made in (cache, other):
        made.check()
        cases.poison(made)
    for name, x, y in zip(_names(cache), cache.tensors(), other.tensors(), strict=True):
        if not torch.equal(_bits(x), _bits(y)):
            raise Wrong(f"{name}: {int((_bits(x) != _bits(y)).sum())} entries differ from those of one append")
    return _judged(problem, *_decode(problem, params))


def _run_graph(params: Mapping[str, Any], device: torch.device, seed: int) -> Verdict:
    """Captured with one length, replayed after appends and a cut changed the lengths on the device."""
    from kernels.decoupled.plan import DecoupledPlan

    problem = cases.build(params, device, seed)
    q_sem, q_geo, cache = problem.q_sem, problem.q_geo, problem.cache
    passes, partitions = _plan(params)
    plan = DecoupledPlan.of(cache, q_sem.shape[1], dtype=q_sem.dtype, passes=passes, partitions=partitions)
    out = plan.run(q_sem, q_geo, cache, null=problem.null).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(q_sem, q_geo, cache, null=problem.null, out=out)
    worst: Verdict | None = None
    for length in (None, 40, 3, 0):
        if length is None:
            gen = torch.Generator(device).manual_seed(seed + 1)
            shape = (cache.batch, cache.kv_heads, 2)
            k_sem, k_geo, v = (torch.randn(*shape, dim, generator=gen, device=device).half() for dim in cache.dims)
            cache.append(k_sem, k_geo, v)
        else:
            cache.truncate(length)
        cases.poison(cache)
        out.fill_(torch.nan)
        graph.replay()
        verdict = _judged(problem, out, plan.lse)
        worst = verdict if worst is None or (worst.ok and verdict.err - verdict.tol > worst.err - worst.tol) else worst
    assert worst is not None
    return worst


def _run_offsets(params: Mapping[str, Any], device: torch.device, seed: int) -> Verdict:
    """A capacity so large that the last row lies past 2^31 elements; only the last row has a length."""
    batch, heads, kv_heads = params["heads"]
    formats = cases.FORMATS[params["formats"]]
    policy = KVCachePolicy.parse("ksem={},kgeo={},v={},resid={}".format(*formats, params["resid"]))
    d_sem, d_geo, d_v = params["dims"]
    cache = QuantizedCache(batch, LONG, kv_heads, d_sem, d_geo, d_v, policy, device)
    if max(x.numel() for x in cache.tensors()) <= 2**31:
        raise Wrong("no tensor of the cache is past 2^31 elements")
    small = cases.build(dict(params, heads=(1, heads, kv_heads)), device, seed)
    counts = torch.zeros(batch, dtype=torch.int64, device=device)
    counts[-1] = small.cache.lengths[0]
    k_sem, k_geo, v = (x.expand(batch, *x.shape[1:]) for x in small.cache.dequantized(torch.float16))
    cache.append(k_sem, k_geo, v, counts, check=False)
    cache.check()
    q_sem, q_geo = (x.expand(batch, *x.shape[1:]).contiguous() for x in (small.q_sem, small.q_geo))
    out, lse = _decode(Problem(q_sem, q_geo, cache, None), params)
    if not bool(out[:-1].eq(0).all()):
        raise Wrong("a row without tokens gave something else than 0")
    last = Problem(small.q_sem, small.q_geo, cache.fork([batch - 1]), None)
    return _judged(last, out[-1:], lse[-1:])


_KINDS: Final = {
    "decode": _run_decode,
    "repeat": _run_repeat,
    "steps": _run_steps,
    "graph": _run_graph,
    "offsets": _run_offsets,
}


def _names(cache: QuantizedCache) -> list[str]:
    """What `cache.tensors()` are."""
    names = []
    for name, part in zip(("k_sem", "k_geo", "v"), cache.parts, strict=True):
        names += [f"{name} values"] if part.kind == "fp16" else [f"{name} codes", f"{name} scales"]
    return [*names, "tail k_sem", "tail k_geo", "tail v", "lengths", "packed", "overflow"]


def _bits(x: Tensor) -> Tensor:
    """The same memory as integers: NaN equals NaN, and -0 is not 0."""
    return x.view(torch.int16) if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh memory (`torch.empty`) holds NaN: what a kernel forgets to write is seen."""
    switch: Any = deterministic
    before, mode = switch.fill_uninitialized_memory, torch.get_deterministic_debug_mode()
    switch.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():  # of PyTorch's own sums, which need not repeat to the last bit
            warnings.filterwarnings("ignore", message=".*[Dd]eterministic")
            yield
    finally:
        switch.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)
