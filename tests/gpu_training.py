"""`python -m tests.gpu_training PART...`: what is promised of training, on a machine with one or two NVIDIA GPUs.

Everything goes through `orch` as a user types it, on pod `local`; a part checks first, and then tells its figures. Each
has a bound and can be asked for alone, so that a short loan of a machine is enough. One who comes back goes on from the
parts that are done. The parts, in this order:

    tests      pytest -m gpu of the trainer and its data
    nanogpt    our step, the bare loop and nanoGPT's own model beside each other on GPU 0 (--nanogpt model.py)
    prepare    `orch data prepare` of --text: what the parts below train on
    blocking   what a checkpoint of 125M costs training, both modes
    orch       one GPU, 64 x 1024 and 32 x 2048 tokens a step, through orch: beside the bare loop's rows of `nanogpt`
    ddp fsdp2  two GPUs, 64 x 1024 tokens each
    whole      --steps steps of 32 x 1024 tokens on one GPU, not broken, with a held-out loss
    moved      the same, halted half way on one GPU and resumed on two: the same batches, the losses beside each other
    plot       loss of `whole` and `moved` (needs matplotlib)

Rows go to OUT/training.jsonl (machine, versions, commit, command, date), logs beside it. Prints a table. Exit code: 0
when every part did. `--small`: tiny sizes and CPU ranks, to try this script out.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.runs.ledgers import Row, read_ledger
from workloads.contract.beats import BeatReader
from workloads.contract.rundir import OrchHome, RunDir
from workloads.contract.states import Phase
from workloads.judging.machine import smi, version

ROOT = Path(__file__).resolve().parents[1]
GOALS = {
    "of_bare": "{:.3f} of the bare loop (must: 0.99)", "of_nanogpt": "{:.3f} of nanoGPT (must: 1.0)",
    "scaling": "{:.3f} of as many GPUs alone",
}  # fmt: skip
WARM = 60
"""steps that are not counted: buffers, clocks, the allocator"""


class Failed(Exception):
    """A part did not do; the text says why."""


class Bench:
    """The machine, the sizes and the rows so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.small = args, bool(args.small)
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.home = OrchHome.from_env()
        self.notes: dict[str, str] = {}
        self.warm = 10 if args.small else WARM

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of every row."""
        import torch

        name, driver = ("cpu", None) if self.small else smi(torch.cuda.get_device_name(0))
        versions = {name: version(name) or None for name in ("torch", "triton", "ray")}
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        return {
            "machine": name if self.small else f"{torch.cuda.device_count()} x {name}", "driver": driver, **versions,
            "python": platform.python_version(), "commit": head.stdout.strip() or None,
            "date": datetime.date.today().isoformat(),
            "command": "python -m tests.gpu_training " + " ".join(sys.argv[1:]),
        }  # fmt: skip

    def row(self, case: str, told: str, value: float, unit: str, **figures: Any) -> None:
        row = {"v": 1, "suite": "training", "case": case, "value": value, "unit": unit, **figures, **self.facts}
        with (self.out / "training.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        self.notes[case] = told

    def rows(self, case: str) -> list[dict[str, Any]]:
        path = self.out / "training.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if row["case"] == case]

    def run(self, name: str, argv: list[str], limit_s: float) -> str:
        """Its output; the log is kept. Failed with its last lines when it does not end well and in time."""
        log = self.out / f"{name}.log"
        with log.open("w") as f:
            try:
                code = subprocess.run(argv, stdout=f, stderr=subprocess.STDOUT, cwd=ROOT, timeout=limit_s).returncode
            except subprocess.TimeoutExpired:
                code = 124
        text = log.read_text(errors="replace")
        if code:
            raise Failed(f"exit {code}: {' | '.join(text.splitlines()[-4:])[:600]}")
        return text

    def orch(self, name: str, *words: str, limit_s: float) -> str:
        return self.run(name, [str(Path(sys.executable).parent / "orch"), *words], limit_s)

    def launch(self, name: str, job: Mapping[str, Any], *words: str, follow: bool, limit_s: float) -> RunDir:
        path = self.out / f"{name}.yaml"  # JSON is YAML
        path.write_text(json.dumps({"name": name, **job}, indent=1))
        run_id = f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
        self.orch(name, "launch", str(path), "--id", run_id, *words, *(["--follow"] if follow else []), limit_s=limit_s)
        return self.home.run(run_id)

    # --- sizes
    def job(self, *, gpus: int, tokens: int, rows: int, steps: int, **train: Any) -> dict[str, Any]:
        """The model of the bench `nanogpt` (as many parameters as nanoGPT's), on the prepared text."""
        shape = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 4, "ffn_dim": 192}
        if not self.small:
            shape = {"dim": 768, "layers": 12, "heads": 12, "kv_heads": 12, "ffn_dim": 2048}
        return {
            "kind": "train",
            "resources": {"ranks": gpus, "gpus_per_rank": 0 if self.small else 1, "cpus_per_rank": 1},
            "model": shape,
            "data": {
                "source": "prepared", "path": str(self.prepared), "tokenizer": self.tokenizer, "seq_len": tokens,
                "held_out": 0.01,
            },
            "train": {
                "steps": steps, "global_batch": rows, "lr": 6e-4, "warmup_steps": min(200, steps // 4),
                "deterministic": False, "log_every": 20, "compile": "off" if self.small else "auto", **train,
            },
            "checkpoint": {"every_s": None, "keep": 2},
        }  # fmt: skip

    @property
    def prepared(self) -> Path:
        return self.out.resolve() / "tokens"

    @property
    def tokenizer(self) -> str:
        return "byte" if self.small else "gpt2"

    def size(self, tokens: int) -> tuple[int, int]:
        """(tokens, rows) of one GPU's step."""
        return (tokens // 32, 4) if self.small else (tokens, 65536 // tokens)

    # --- parts
    def tests(self) -> None:
        folders = ["tests/train", "tests/data"]
        argv = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *folders]
        if self.small:
            argv += ["--co"]
        self.notes["tests"] = self.run("tests", argv, 400).splitlines()[-1]

    def nanogpt(self) -> None:
        given = [] if self.args.nanogpt is None else ["--nanogpt", str(self.args.nanogpt)]
        names = ["ours", "bare", "gqa"] + (["nanogpt"] if given else [])
        out = self.out / "nanogpt.jsonl"
        argv = [sys.executable, "-m", "workloads.bench.nanogpt", *given, "--contenders", *names, "--out", str(out)]
        argv += (
            ["--tiny", "--compile", "off", "--tokens", "32", "--batch-tokens", "128"]
            if self.small
            else ["--seconds", "260"]
        )
        self.notes["nanogpt"] = self.run("nanogpt", argv, 400).splitlines()[-1]

    def prepare(self) -> None:
        words = ["--source", "text", "--path", str(self.args.text), "--tokenizer", self.tokenizer]
        began = time.monotonic()
        self.orch("prepare", "data", "prepare", *words, "--out", str(self.prepared), limit_s=300)
        index = json.loads((self.prepared / "index.json").read_text())
        tokens, seconds = sum(s["tokens"] for s in index["shards"]), time.monotonic() - began
        size = sum(p.stat().st_size for p in Path(self.args.text).rglob("*") if p.is_file())
        self.row(
            "prepare", f"{size / 1e6:.0f} MB, {tokens / 1e6:.1f} M tokens in {seconds:.0f} s", tokens / seconds,
            "tokens/s", what=f"{size / 1e6:.0f} MB of text into {tokens / 1e6:.1f} M tokens, by gpt2",
            bytes=size, tokens=tokens, seconds=seconds,
        )  # fmt: skip

    def blocking(self) -> None:
        sizes = ["--saves", "2", "--dim", "128", "--layers", "1", "--batch", "1"] if self.small else [
            "--dim", "768", "--layers", "12", "--vocab", "50304", "--batch", "16", "--seq", "1024", "--device", "cuda",
        ]  # fmt: skip
        folder = self.out.resolve() / "saves"
        argv = [sys.executable, "-m", "tests.checkpoints.blocking", str(folder), *sizes]
        told = json.loads(self.run("blocking", argv, 200).splitlines()[-1])
        words = f"async {told['async_blocked_s'] * 1e3:.0f} ms, sync {told['sync_blocked_s'] * 1e3:.0f} ms"
        what = f"a step waits for a checkpoint of {told['checkpoint_mib']} MiB"
        goal = f"{told['sync_blocked_s'] * 1e3:,.0f} ms when it is not asynchronous"
        self.row("blocking", words, told["async_blocked_s"] * 1e3, "ms", what=what, goal=goal, **told)

    def through_orch(self, case: str, gpus: int, tokens: int, **train: Any) -> None:
        t, rows = self.size(tokens)
        steps = self.warm + (200 if self.small else 240)
        job = self.job(gpus=gpus, tokens=t, rows=gpus * rows, steps=steps, **train)
        run = self.launch(case, job, follow=True, limit_s=300)
        figures = self.speed(run, steps, gpus * rows * t)
        ratio = self.beside(gpus, tokens, figures["toks_per_s"])
        speed = figures["toks_per_s"]
        told = f"{speed:.0f} tokens/s, {' '.join(f'{k} {v:.3f}' for k, v in ratio.items())}"
        how = ", ".join(["through orch", *(f"{k} {v}" for k, v in train.items())])
        self.row(
            case, told, speed, "tokens/s", what=f"{gpus * rows} x {t} tokens a step, {gpus} GPU, {how}",
            goal=", ".join(GOALS[k].format(v) for k, v in ratio.items()),
            shape={"B": gpus * rows, "T": t}, world_size=gpus, train=train, **figures, **ratio,
        )  # fmt: skip

    def speed(self, run: RunDir, steps: int, tokens: int) -> dict[str, Any]:
        """From the beats of rank 0: steps and wall time between two of them, everything included."""
        with run.training_csv.open(newline="") as f:
            table = list(csv.DictReader(f))
        begins = int(table[0]["step"]) + self.warm
        beats = [
            b for b in BeatReader(run.heartbeat(0), 0).read()
            if b.msg is Phase.PROGRESS and begins <= (b.get("step") or 0) < steps
        ]  # fmt: skip
        if len(beats) < 2:
            raise Failed(f"{len(beats)} beats behind step {begins}")
        first, last = beats[0], beats[-1]
        made = (last.get("step") - first.get("step")) / (last.ts - first.ts)
        times, fetches = ([float(r[k]) for r in table[self.warm :]] for k in ("step_time_s", "dt_fetch_s"))
        return {
            "toks_per_s": made * tokens, "steps": steps, "step_p50_s": statistics.median(times),
            "fetch_p95_s": statistics.quantiles(fetches, n=20)[-1], "loss_last": float(table[-1]["loss"]),
            "mfu": last.get("mfu"), "gpu_mem_mib": last.get("gpu_mem_reserved"), "run": run.run_id,
        }  # fmt: skip

    def beside(self, gpus: int, tokens: int, toks_per_s: float) -> dict[str, float]:
        """Shares of what the bare loop and nanoGPT make on one GPU; with several, of as many times one through orch."""
        told = {}
        path = self.out / "nanogpt.jsonl"
        for row in map(json.loads, path.read_text().splitlines() if path.exists() else []):
            if row["name"] in ("bare", "nanogpt") and row["shape"]["T"] == self.size(tokens)[0] and gpus == 1:
                told[f"of_{row['name']}"] = toks_per_s / row["toks_per_s"]
        alone = self.rows(f"orch-{tokens}")
        if alone and gpus > 1:
            told["scaling"] = toks_per_s / (gpus * alone[-1]["toks_per_s"])
        return told

    def orch_rows(self) -> None:
        for tokens in (1024, 2048):
            self.through_orch(f"orch-{tokens}", 1, tokens)

    def ddp(self) -> None:
        for how in self.args.compile:
            self.through_orch(f"ddp-2-{how}", 2, 1024, **({} if self.small else {"compile": how}))

    def fsdp2(self) -> None:
        self.through_orch("fsdp2-2", 2, 1024, parallel="fsdp2")

    def long_job(self, gpus: int) -> dict[str, Any]:
        t, rows = self.long_size
        job = self.job(gpus=gpus, tokens=t, rows=rows, steps=self.steps)
        return {**job, "eval": {"every_steps": self.steps // 8, "samples": 64 if self.small else 1024}}

    @property
    def long_size(self) -> tuple[int, int]:
        """(tokens, rows) of a step of the long runs, whatever the number of GPUs."""
        tokens, rows = self.size(1024)
        return tokens, rows // 2

    @property
    def steps(self) -> int:
        return 400 if self.small else int(self.args.steps)

    def whole(self) -> None:
        run = self.launch("whole", self.long_job(1), follow=True, limit_s=500)
        t, rows = self.long_size
        self.tell_long("whole", run, self.speed(run, self.steps, rows * t))

    def moved(self) -> None:
        whole = self.home.run(self.rows("whole")[-1]["run"])
        first = self.launch("moved-1", self.long_job(1), follow=False, limit_s=120)
        ends = time.monotonic() + 400
        while len(read_ledger(first.ledger)) < self.steps // 2:
            if time.monotonic() > ends:
                raise Failed(f"{first.run_id} did not come to step {self.steps // 2}")
            time.sleep(0.05)
        self.orch("halt", "halt", first.run_id, limit_s=120)
        words = ("--resume", first.run_id)
        second = self.launch("moved-2", self.long_job(2), *words, follow=True, limit_s=400)
        one, head, tail = (read_ledger(r.ledger) for r in (whole, first, second))
        t, rows = self.long_size
        facts = same_batches(one, [*head, *tail], self.steps)
        figures = self.speed(second, self.steps, rows * t) | facts | {"halted_at": len(head), "first_run": first.run_id}
        self.tell_long("moved", second, figures)

    def tell_long(self, case: str, run: RunDir, figures: dict[str, Any]) -> None:
        held_out = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
        losses = {row["step"]: row["loss"] for row in held_out}
        epochs = [b.get("epoch") for b in BeatReader(run.heartbeat(0), 0).read() if b.get("epoch") is not None]
        told = f"{figures['toks_per_s']:.0f} tokens/s, held-out loss {losses[self.steps]:.4f}, {epochs[-1]:.2f} epochs"
        if "halted_at" in figures:
            told += f", the same batches, halted at {figures['halted_at']}"
        what, goal = f"held-out loss after {self.steps} steps, one GPU", ""
        if "halted_at" in figures:
            what = f"the same, {figures['halted_at']} steps on one GPU and the others on two"
            goal = f"{figures['same_batches']} batches the same"
        every = [(r.step, round(r.value, 5)) for r in read_ledger(run.ledger) if r.step % 20 == 0]
        self.row(
            case, told, losses[self.steps], "nats a token", what=what, goal=goal, held_out=losses, epochs=epochs[-1],
            losses=every, **figures,
        )  # fmt: skip

    def plot(self) -> None:
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 4.5))
        for case, style in (("whole", "-"), ("moved", "--")):
            row = self.rows(case)[-1]
            axes.plot(*zip(*row["losses"], strict=True), style, label=f"{case}: training", linewidth=1)
            points = sorted((int(k), v) for k, v in row["held_out"].items())
            axes.plot(*zip(*points, strict=True), "o", label=f"{case}: held out", markersize=4, fillstyle="none")
        axes.axvline(self.rows("moved")[-1]["halted_at"], color="grey", linewidth=0.8)
        axes.set(xlabel="step", ylabel="loss a token", title="One GPU to the end, and from one GPU to two")
        axes.legend()
        figure.savefig(self.out / "training.svg", metadata={"Date": None})


def same_batches(one: list[Row], other: list[Row], steps: int) -> dict[str, Any]:
    """Failed unless both hold every step once with the same batch; how far their losses are apart."""
    for name, rows in (("unbroken", one), ("moved", other)):
        if [r.step for r in rows] != list(range(1, steps + 1)):
            raise Failed(f"the {name} run holds {len(rows)} rows, not steps 1 to {steps}")
    apart = next((a.step for a, b in zip(one, other, strict=True) if a.batch_hash != b.batch_hash), None)
    if apart is not None:
        raise Failed(f"step {apart} had another batch")
    differ = [abs(a.value - b.value) / a.value for a, b in zip(one, other, strict=True)]
    return {"same_batches": steps, "loss_apart_max": max(differ), "loss_apart_last": differ[-1]}


PARTS: dict[str, Callable[[Bench], None]] = {
    "tests": Bench.tests, "nanogpt": Bench.nanogpt, "prepare": Bench.prepare, "blocking": Bench.blocking,
    "orch": Bench.orch_rows, "ddp": Bench.ddp, "fsdp2": Bench.fsdp2, "whole": Bench.whole, "moved": Bench.moved,
    "plot": Bench.plot,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--text", type=Path, help="a folder of UTF-8 text, 100 MB or more")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    parser.add_argument("--steps", type=int, default=2000, help="of whole and moved")
    parser.add_argument("--compile", nargs="+", default=["auto"], help="train.compile of ddp, one after the other")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-training")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if unknown := [p for p in args.parts if p not in PARTS]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    bench, table, bad = Bench(args), [], 0
    for name in args.parts or PARTS:
        began, word = time.monotonic(), "ok"
        try:
            PARTS[name](bench)
        except Exception as e:  # a part that fails does not cost the others their figures
            word, bad = "FAILED", 1
            bench.notes[name] = str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
        told = "; ".join(f"{k}: {v}" if k != name else v for k, v in bench.notes.items())
        bench.notes.clear()
        table.append(f"{name:<10} {word:<7} {time.monotonic() - began:5.0f} s  {told}")
        print(table[-1], flush=True)
    print("---", *table, sep="\n")
    return bad


if __name__ == "__main__":
    sys.exit(main())
