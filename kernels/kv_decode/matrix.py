"""Which cases the decode kernels are judged on: a covering array over lengths, heads, sizes, calls and dtypes, and the
cases that no array would find. Data only; `parity.py` runs them.

A length is what a row holds before the call (for plain attention: all its keys). "full" is a row that ends exactly at
the capacity. Every case has NaN in the slots that must not be read, in the output and in the scratch memory.
Little bf16 in CI: Triton's interpreter truncates where hardware rounds; the kernels round by themselves there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kernels.covering import pairwise
from kernels.parity import Cell

FAMILY = "kv-decode"
FULL = -1  # a length: as many as leave room for the new tokens and no more

# Everything that is tried, each value of a factor with each of every other factor, on a GPU.
LENGTHS = {
    "none": [0, 0],
    "few": [0, 1, 15],
    "16": [16, 17, 0],
    "32": [31, 32, 33, 0],
    "64": [63, 64, 65],
    "128": [127, 0, 129],
    "even": [256, 256],
    "448": [447, 448, 449],
    "1000": [1000, 3],
    "full": [FULL, 0, 1],
}
HEADS = [(2, 2), (4, 2), (3, 1), (8, 2), (5, 1), (7, 1), (8, 1), (12, 1), (16, 1)]
DIMS = [(16, 16), (32, 64), (40, 40), (64, 64), (80, 80), (96, 48), (128, 128), (192, 128), (256, 256)]
QUERIES = [1, 2, 5, 16, 33]
CALLS = ["attention", "first", "step", "dry", "plan1", "plan2", "plan7", "plan64"]
LAYOUTS = ["plain", "tokens-first", "odd"]
BLOCKS = [None, (16, 16), (32, 64)]

# In CI one value stands for a class; the classes meet pairwise and the values take turns.
CLASSES: dict[str, dict[str, Sequence[Any]]] = {
    "call": {
        "attention": ["attention"],
        "first": ["first"],
        "step": ["step"],
        "dry": ["dry"],
        "plan1": ["plan1"],
        "plan": ["plan2", "plan7"],
    },
    "lengths": {
        "none": ["none"],
        "small": ["few", "16", "32"],
        "edge": ["64", "128"],
        "full": ["full", "even"],
        "long": ["448", "1000"],
    },
    "heads": {"one": HEADS[:1], "some": HEADS[1:4], "odd": HEADS[4:6], "many": HEADS[6:]},
    "dims": {"narrow": [DIMS[0], DIMS[1], DIMS[3]], "odd": [DIMS[2], DIMS[4], DIMS[5]], "wide": DIMS[6:]},
    "queries": {"one": [1], "several": [2, 5, 16, 33]},
}
SHARED: dict[str, Sequence[Any]] = {
    "causal": [True, False],
    "layout": LAYOUTS,
    "big": [False, True],
    "scale": [None, 0.3],
    "lens64": [False, True],
    "blocks": BLOCKS,
}


def cells(full: bool) -> list[Cell]:
    """CI: at most 60 small cells. `full`: at most 300, with those that need a GPU."""
    if full:
        factors: dict[str, Sequence[Any]] = {
            "call": CALLS,
            "lengths": list(LENGTHS),
            "heads": HEADS,
            "dims": DIMS,
            "queries": QUERIES,
            **SHARED,
            "dtype": ["float16", "bfloat16"],
        }
        return [*map(_cell, pairwise(factors, _allowed)), *special(full)]
    classes: dict[str, Sequence[Any]] = {name: list(values) for name, values in CLASSES.items()}
    chosen = pairwise({**classes, **SHARED, "dtype": ["float32", "float16"]}, _allowed)
    return [*map(_cell, _take_turns(chosen)), *special(full)]


def _allowed(case: Mapping[str, Any]) -> bool:
    """A first call has nothing before it; a plan has its block sizes from its table."""
    call = case.get("call", "")
    if call == "first" and case.get("lengths", "none") != "none":
        return False
    return not (str(call).startswith("plan") and case.get("blocks") is not None)


def _take_turns(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put for each class the next of its values."""
    seen: Counter[tuple[str, str]] = Counter()
    made = []
    for case in cases:
        values = dict(case)
        for name, members in CLASSES.items():
            group = members[case[name]]
            values[name] = group[seen[name, case[name]] % len(group)]
            seen[name, case[name]] += 1
        made.append(values)
    return made


def _cell(case: Mapping[str, Any]) -> Cell:
    q_heads, kv_heads = case["heads"]
    dim, v_dim = case["dims"]
    words = [
        case["call"],
        f"L{case['lengths']}",
        f"H{q_heads}/{kv_heads}",
        f"D{dim}" if dim == v_dim else f"D{dim}/{v_dim}",
        f"S{case['queries']}",
        {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[case["dtype"]],
        case["layout"],
        "causal" if case["causal"] else "all",
        *(["big"] if case["big"] else []),
        *([f"scale{case['scale']}"] if case["scale"] is not None else []),
        *(["i64"] if case["lens64"] else []),
        *(["tile{}x{}".format(*case["blocks"])] if case["blocks"] is not None else []),
    ]
    params = {
        **{k: v for k, v in case.items() if k not in ("heads", "dims", "lengths")},
        "kind": "matrix",
        "lengths": LENGTHS[case["lengths"]],
        "q_heads": q_heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "v_dim": v_dim,
    }
    return Cell(FAMILY, "-".join(words), params, cpu_only=case["dtype"] == "float32")


def special(full: bool) -> list[Cell]:
    """What an array does not find: full rows, the same answer twice, in any batch, in a replayed graph, far away."""
    plain = {
        "call": "plan7",
        "lengths": [129, 0, 300],
        "q_heads": 4,
        "kv_heads": 1,
        "dim": 64,
        "v_dim": 64,
        "queries": 1,
        "causal": True,
        "layout": "plain",
        "big": False,
        "scale": None,
        "lens64": False,
        "blocks": None,
        "dtype": "float16",
    }

    def cell(word: str, name: str = "", gpu_only: bool = False, **more: Any) -> Cell:
        params = {**plain, "kind": word, **more}
        return Cell(FAMILY, f"{word}{name}", params, gpu_only, cpu_only=params["dtype"] == "float32")

    return [
        cell("overflow", "-step", call="step", lengths=[3, FULL, 5]),
        cell("overflow", "-plan", lengths=[3, FULL, 5]),
        cell("overflow", "-prefill", call="step", lengths=[3, FULL, 5], queries=5),
        cell("twice", "-plan7"),
        cell("twice", "-prefill", call="step", lengths=[65, 0], queries=16),
        cell("alone", "-plan7"),
        cell("alone", "-gqa16", q_heads=16, kv_heads=1, dim=40, v_dim=40, lengths=[300, 64, 0]),
        cell("splits64", kind="matrix", call="plan64", lengths=[129], q_heads=4, kv_heads=1),
        cell("splits64", "-few", kind="matrix", call="plan64", lengths=[1], q_heads=1, kv_heads=1, dtype="float32"),
        cell("bf16", "-plan7", kind="matrix", dtype="bfloat16", dim=96, v_dim=48),
        cell("bf16", "-prefill", kind="matrix", dtype="bfloat16", call="step", lengths=[65, 0], queries=33),
        cell("expanded", call="attention", lengths=[33, 17, 0]),
        *(cell("graph", f"-splits{n}", gpu_only=True, call=f"plan{n}", lengths=[1, 500, 0]) for n in (1, 7, 64)),
        cell("graph", "-bf16", gpu_only=True, dtype="bfloat16", dim=128, v_dim=128, lengths=[64, 0]),
        cell("far", "-rows", gpu_only=True, layout="plain", dim=128, v_dim=128, q_heads=8, kv_heads=8),
        cell("far", "-keys", gpu_only=True, layout="tokens-first", dim=128, v_dim=128, q_heads=8, kv_heads=8),
    ]
