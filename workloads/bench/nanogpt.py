"""`python -m workloads.bench.nanogpt --nanogpt model.py`: our training step beside nanoGPT's own model, on one GPU.

Same batch, sequence, vocabulary and, within 1 %, number of parameters; compiled, bf16, clipped gradients, fused AdamW,
random tokens that lie on the device. The contenders are checked first (the first loss against ln V and against the
uncompiled model, falling on the same tokens) and then timed in turns, so that a clock that drifts is everybody's.

    ours      the trainer's own step: `workloads.train.step`
    bare      our model in the shortest loop that trains it: what orch's step may cost beside it
    gqa       ours with 2 key/value heads and a wider feed-forward: as many parameters
    nanogpt   the model of the file that is given (github.com/karpathy/nanoGPT, model.py), which is not ours to ship

Prints a table and writes a row a contender (JSON Lines). Never part of a run: started by hand or by a script.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workloads.bench.contenders import Bench, Contender, Size
from workloads.bench.healthy import model_of
from workloads.contract.config.job import TrainSpec
from workloads.judging.machine import smi, version
from workloads.train import attention
from workloads.train.machine import Machine

NAMES = ("nanogpt", "ours", "bare", "gqa")
"""in the order in which they are built, while there is time"""
OF_PARAMETERS, OF_LOSS = 0.01, 2e-3
"""how far the number of parameters may be from nanoGPT's, and a compiled loss from the uncompiled one, as shares"""


def check(one: Contender, size: Size, machine: Machine, steps: int, *, others: int) -> None:
    """The first steps, which are not timed; what is wrong with them is kept, and then it is not timed either.

    others: bytes on the GPU that are not this one's.
    """
    if machine.cuda:
        torch.cuda.reset_peak_memory_stats(machine.device)
    one.losses = [float(one.step(n)) for n in range(1, steps + 1)]
    if machine.cuda:
        one.peak_mib = (torch.cuda.max_memory_allocated(machine.device) - others) >> 20
    first, last, guess = one.losses[0], one.losses[-1], math.log(size.vocab)
    if not all(map(math.isfinite, one.losses)) or last >= first:
        one.wrong = f"the loss went from {first:.4g} to {last:.4g} on the same tokens"
    elif abs(first - guess) > 0.05 * guess:
        one.wrong = f"the first loss is {first:.4g}, and guessing is ln V = {guess:.4g}"
    elif abs(first - one.eager_loss) > OF_LOSS * one.eager_loss:
        one.wrong = f"compiled the first loss is {first:.6g}, uncompiled {one.eager_loss:.6g}"


def time_in_turns(contenders: Sequence[Contender], machine: Machine, *, rounds: int, steps: int) -> None:
    """`rounds` times each in turn `steps` steps, the device waited for at the end of each turn."""
    number = 100
    for turn in range(rounds):
        for one in contenders if turn % 2 == 0 else reversed(contenders):
            one.step(number)  # what the one before left in caches is not this one's
            _wait(machine)
            began = time.perf_counter()
            for _ in range(steps):
                number += 1
                one.step(number)
            _wait(machine)
            one.seconds.append((time.perf_counter() - began) / steps)


def _wait(machine: Machine) -> None:
    if machine.cuda:
        torch.cuda.synchronize(machine.device)


def rows_of(contenders: Sequence[Contender], size: Size, machine: Machine, train: TrainSpec) -> list[dict[str, Any]]:
    base = next((statistics.median(c.seconds) for c in contenders if c.name == "nanogpt" and c.seconds), None)
    name = torch.cuda.get_device_name(machine.device) if machine.cuda else "cpu"
    sheet = model_of(name) if machine.cuda and machine.bf16 else None
    rows = []
    for c in contenders:
        row: dict[str, Any] = {
            "v": 1, "suite": "nanogpt", "case": f"{c.name}, {size.rows} x {size.tokens} tokens", "name": c.name,
            "shape": {"B": size.rows, "T": size.tokens, "D": size.dim, "L": size.layers, "V": size.vocab},
            "dtype": "bf16" if machine.bf16 else "fp32", "device": name,
            "driver": smi(name)[1] if machine.cuda else None, "torch": torch.__version__,
            "triton": version("triton") or None, "python": platform.python_version(),
            "date": datetime.date.today().isoformat(), "commit": _commit(),
            "parameters": c.parameters, "gpu_mem_mib": c.peak_mib,
            "loss_first": c.losses[0] if c.losses else None, "loss_last": c.losses[-1] if c.losses else None,
            "verdict": c.wrong or "ok", "compile_mode": train.compile_mode, "attention": train.attention,
            "loss_chunk": train.loss_chunk,
            "command": " ".join(["python -m workloads.bench.nanogpt", *sys.argv[1:]]),
        }  # fmt: skip
        if c.seconds:
            middle = statistics.median(c.seconds)
            tokens_s = size.rows * size.tokens / middle
            row |= {
                "us": middle * 1e6, "us_each": [round(s * 1e6) for s in c.seconds], "toks_per_s": tokens_s,
                "ratio": None if base is None else base / middle,
                "mfu": None if sheet is None else tokens_s * c.flops / (sheet.bf16 * 1e12),
            }  # fmt: skip
        rows.append(row)
    return rows


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'contender':<30} {'weights':>8} {'tokens/s':>9} {'nanoGPT':>8} {'peak':>6} {'GiB':>6}  verdict"]
    for r in rows:
        ratio, mfu, mem = (r.get(k) for k in ("ratio", "mfu", "gpu_mem_mib"))
        lines.append(
            f"{r['case']:<30} {r['parameters'] / 1e6:7.1f}M {r.get('toks_per_s', 0):9.0f} "
            f"{'-' if ratio is None else f'{ratio:.3f}x':>8} {'-' if mfu is None else f'{100 * mfu:.1f}%':>6} "
            f"{'-' if mem is None else f'{mem / 1024:.1f}':>6}  {r['verdict']}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0: every contender was right and ran; 1: one was wrong, or was left out for want of time."""
    args = _arguments().parse_args(argv)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    machine = Machine(device, device.type == "cuda" and torch.cuda.is_bf16_supported())
    train = TrainSpec.model_validate(
        {
            "steps": 100_000, "lr": 1e-4, "deterministic": False, "compile": args.compile, "attention": args.attention,
            "compile_mode": args.compile_mode, "loss_chunk": args.loss_chunk,
        }
    )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # the contenders are different models of the same classes
    attention.choose(train, machine)
    ends, good = time.monotonic() + args.seconds, True
    for tokens in args.tokens:
        dim, layers, heads, vocab, count = (
            (64, 2, 4, 512, 512) if args.tiny else (768, 12, 12, 50304, args.batch_tokens)
        )
        size = Size(dim, layers, heads, vocab, max(1, count // tokens), tokens)
        bench = Bench(size, machine, train, args.nanogpt)
        rows = rows_of(_measured(bench, args, ends), size, machine, train)
        good = good and len(rows) == len(args.contenders) and all(r["verdict"] == "ok" and "us" in r for r in rows)
        print(table(rows), flush=True)
        torch._dynamo.reset()
        gc.collect()  # before the next length: models, moments and what their graphs held
        if args.out:
            with args.out.open("a", encoding="utf-8") as f:
                f.writelines(json.dumps(r) + "\n" for r in rows)
    return 0 if good else 1


def _measured(bench: Bench, args: argparse.Namespace, ends: float) -> list[Contender]:
    """Those that could be built and checked; the time that is left is looked at before each."""
    found: list[Contender] = []
    others = 0
    for name in args.contenders:
        if time.monotonic() > ends:
            print(f"{name}, {bench.size.tokens} tokens: left out, the time is over", flush=True)
            continue
        began = time.monotonic()
        if name != "bare" or not found:  # `bare` trains the model of `ours`, which is there already
            others = torch.cuda.memory_allocated() if bench.machine.cuda else 0
        try:
            one = bench.contender(name)
            check(one, bench.size, bench.machine, args.warm_up, others=others)
        except Exception as e:  # one contender that fails does not cost the others their figures
            print(f"{name}, {bench.size.tokens} tokens: {type(e).__name__}: {str(e)[:400]}", flush=True)
            continue
        if name != "nanogpt" and abs(one.parameters - bench.target) > OF_PARAMETERS * bench.target:
            one.wrong = one.wrong or f"{one.parameters} parameters are not within 1 % of {bench.target}"
        print(f"{name}, {bench.size.tokens} tokens: ready after {time.monotonic() - began:.0f} s", flush=True)
        found.append(one)
    time_in_turns([c for c in found if c.wrong is None], bench.machine, rounds=args.rounds, steps=args.steps)
    return found


def _arguments() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m workloads.bench.nanogpt", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--nanogpt", type=Path, help="its model.py")
    p.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048], help="sequence lengths, one after the other")
    p.add_argument("--batch-tokens", type=int, default=65536, help="tokens a step")
    p.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--steps", type=int, default=10, help="steps a round")
    p.add_argument("--warm-up", type=int, default=5, help="steps that are checked and not timed")
    p.add_argument("--seconds", type=float, default=200.0, help="nothing is built after this long")
    p.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    p.add_argument("--compile-mode", default="default")
    p.add_argument("--attention", default="auto")
    p.add_argument("--loss-chunk", type=int)
    p.add_argument("--tiny", action="store_true", help="small models, to try this script out")
    p.add_argument("--out", type=Path, help="rows are added to this file")
    return p


if __name__ == "__main__":
    sys.exit(main())
