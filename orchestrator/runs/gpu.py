"""The page of `orch gpu`: what each GPU of a pod is and does, from the rows of suite `device` of a bench run.

Rows come from a pod: only what has the right type is used, and nothing of them is shown as it is. Pure. Called by
`orchestrator.cli.gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.bench import Result
from orchestrator.runs.judged import Row, is_good
from orchestrator.runs.render import clip, one_line

SUITE = "device"
EXPECTED, BELOW, WRONG, UNKNOWN, NO_GPU = "as expected", "below", "wrong", "no reference", "no gpu"
MAX_CAUSES = 4


@dataclass(frozen=True)
class Page:
    """A finished run of suite `device`, or what there is of one. `verdict`: None while it has not answered."""

    result: Result

    @property
    def rows(self) -> list[Row]:
        return [r for r in self.result.rows if r.get("suite") == SUITE]

    @property
    def gpus(self) -> dict[int, list[Row]]:
        """Rows by GPU, in the order in which torch counts them."""
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            gpu = row.get("gpu")
            named = str(row.get("case"))
            if gpu is None and named.startswith("gpu"):  # a case that failed has no more than its name
                gpu = int(named[3:].split(" ")[0]) if named[3:].split(" ")[0].isdecimal() else None
            if type(gpu) is int:
                found.setdefault(gpu, []).append(row)
        return dict(sorted(found.items()))

    @property
    def verdict(self) -> str | None:
        if self.result.verdict is None:
            return None
        if any(not is_good(r) for r in self.rows):
            return WRONG
        if not self.gpus:
            return NO_GPU
        said = {r.get("said") for r in self.rows}
        return BELOW if BELOW in said else EXPECTED if EXPECTED in said else UNKNOWN

    @property
    def why(self) -> str:
        rows, low = self.rows, [r for r in self.rows if r.get("said") == BELOW]
        wrong = [r for r in rows if not is_good(r)]
        return {
            WRONG: f"{len(wrong)} of {len(rows)} figures could not be measured, or the answer was wrong: "
            + ", ".join(_text(r, "case") for r in wrong[:4]),
            NO_GPU: self._no_gpu,
            BELOW: f"{len(low)} of {len(rows)} figures: {', '.join(_text(r, 'case') for r in low[:4])}",
            EXPECTED: f"{_count(len(self.gpus))}, {len(rows)} figures",
            UNKNOWN: "nothing is known of a healthy GPU of this model; the figures are what it does",
        }.get(self.verdict or "", "it was not measured to the end")

    @property
    def _no_gpu(self) -> str:
        leased = self.result.view.info.get("gpus_per_rank")
        if type(leased) is int and leased > 0:
            return f"torch finds none of the pod's {_count(leased)}: it is a CPU build, or the driver is too old for it"
        return "this pod has none; what was measured is its CPU, and is held against nothing"

    def as_json(self) -> dict[str, Any]:
        """The document of `orch gpu --json`; every key always present."""
        whole = self.result.as_json()
        kept = ("v", "run", "pod", "state", "reason", "environment", "commit", "dirty", "command", "dir")
        gpus = [
            {
                "gpu": gpu, "name": _text(rows[0], "gpu_name"), "state": _dict(_of(rows, "read"), "state"),
                "load": _load(rows), "figures": [_figure(r) for r in rows],
            }
            for gpu, rows in self.gpus.items()
        ]  # fmt: skip
        cpu = [] if self.gpus else [_figure(r) for r in self.rows]
        return {**{k: whole[k] for k in kept}, "verdict": self.verdict, "why": self.why, "gpus": gpus, "cpu": cpu}

    def lines(self, width: int = 0) -> list[str]:
        """For a person: a block a GPU, the verdict last."""
        told: list[str] = []
        for gpu, rows in self.gpus.items():
            told += [*_block(gpu, rows), ""]
        if not self.gpus and self.rows:
            told += ["CPU", *(line for r in self.rows for line in _figure_lines(r)), ""]
        kept = ("run", "software", "directory")
        told += [f"  {k:<11} {one_line(v)}" for k, v in self.result.facts() if k in kept]
        verdict = self.verdict
        return [clip(line, width) for line in [*told, *([] if verdict is None else ["", f"{verdict}: {self.why}"])]]


def _block(gpu: int, rows: list[Row]) -> list[str]:
    state, load = _dict(_of(rows, "read"), "state"), _load(rows)
    driver = f", driver {_text(rows[0], 'driver')}"
    lines = [f"gpu{gpu}  {_text(next((r for r in rows if r.get('gpu_name')), {}), 'gpu_name')}{driver}"]
    lines += [line for row in rows for line in _figure_lines(row)]
    if not state:
        return [*lines, "  nvidia-smi does not tell of this GPU: clocks, link and faults are unknown"]
    return [*lines, *(f"  {name:<18}{text}" for name, text in (
        ("clocks", _clocks(state, load)), ("power, heat", _power(load or state)), ("link", _link(load or state)),
        ("memory", _memory(state)), ("faults", _faults(state)), ("others on it", _others(state)),
    ))]  # fmt: skip


def _figure_lines(row: Row) -> list[str]:
    """`memory read   4.69 TB/s   as expected   98 % of 4.8, measured`; below it what may hold it back."""
    name = _text(row, "case").partition(" ")[2]
    if not is_good(row):
        said = row.get("error") or f"the answer is wrong: error {row.get('err')}, allowed {row.get('tol')}"
        return [f"  {name:<18}{_text(row, 'verdict').upper():>9}  {one_line(str(said), 200)}"]
    value, expected, said = _number(row, "value"), _number(row, "expected"), _text(row, "said")
    line = f"  {name:<18}{_short(value):>9} {_text(row, 'unit'):<9} {said.upper() if said == BELOW else said:<12}"
    if value is not None and expected:
        basis = _text(row, "basis")
        line += f" {100 * value / expected:.0f} % of {_short(expected)}; {basis}"
    causes = row.get("causes")
    told = [one_line(str(c), 200) for c in causes[:MAX_CAUSES]] if isinstance(causes, list) else []
    return [line.rstrip(), *(f"  {'':<18}likely: {c}" for c in told)]


def _clocks(state: Mapping[str, Any], load: Mapping[str, Any]) -> str:
    told = f"as found: SM {_whole(state, 'sm_mhz')} MHz, memory {_whole(state, 'mem_mhz')} MHz"
    if not load:
        return told
    reasons = load.get("reasons")
    why = ", ".join(one_line(str(r), 40) for r in reasons[:4]) if isinstance(reasons, list) and reasons else ""
    sm = f"SM {_whole(load, 'sm_mhz')} of {_whole(load, 'sm_max_mhz')} MHz{f' ({why})' if why else ''}"
    return f"{told}; under load: {sm}, memory {_whole(load, 'mem_mhz')} of {_whole(load, 'mem_max_mhz')} MHz"


def _power(state: Mapping[str, Any]) -> str:
    return f"{_whole(state, 'power_w')} of {_whole(state, 'power_limit_w')} W, {_whole(state, 'temperature_c')} C"


def _link(state: Mapping[str, Any]) -> str:
    gen, most = _whole(state, "pcie_gen"), _whole(state, "pcie_gen_max")
    return f"PCIe gen {gen} of {most}, x{_whole(state, 'pcie_width')} of x{_whole(state, 'pcie_width_max')}"


def _memory(state: Mapping[str, Any]) -> str:
    ecc = {True: "ECC on", False: "ECC off"}.get(state.get("ecc"), "no ECC told")  # type: ignore[arg-type]
    repair = {True: "a repair waits for a reset", False: "no repair pending"}.get(state.get("repair_pending"))  # type: ignore[arg-type]
    used = f"{_whole(state, 'used_mib')} of {_whole(state, 'total_mib')} MiB in use"
    errors = f"{_whole(state, 'ecc_uncorrected')} uncorrected errors"
    failed = "a repair FAILED" if state.get("repair_failed") is True else None
    return ", ".join(part for part in (used, ecc, errors, failed or repair) if part)


def _faults(state: Mapping[str, Any]) -> str:
    xids = state.get("xids")
    if not isinstance(xids, list):
        return "unknown: the kernel's log cannot be read there"
    return f"Xid {', '.join(one_line(str(x), 8) for x in xids[:8])}" if xids else "no Xid in the kernel's log"


def _others(state: Mapping[str, Any]) -> str:
    others = state.get("others")
    if not isinstance(others, list):
        return "unknown"
    return ", ".join(one_line(str(o), 80) for o in others[:4]) or "none"


def _figure(row: Row) -> dict[str, Any]:
    kept = ("case", "figure", "value", "unit", "expected", "floor", "basis", "said", "causes", "verdict", "us", "to")
    return {k: row.get(k) for k in kept}


def _of(rows: list[Row], figure: str) -> Row:
    return next((r for r in rows if r.get("figure") == figure), {})


def _load(rows: list[Row]) -> dict[str, Any]:
    """The state in the middle of a matmul: in bf16, in fp32 where the GPU has no bf16."""
    return _dict(_of(rows, "bf16"), "load") or _dict(_of(rows, "fp32"), "load")


def _dict(row: Row, key: str) -> dict[str, Any]:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _number(row: Mapping[str, Any], key: str) -> float | None:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _whole(row: Mapping[str, Any], key: str) -> str:
    found = _number(row, key)
    return "?" if found is None else f"{found:.0f}"


def _text(row: Mapping[str, Any], key: str) -> str:
    found = row.get(key)
    return one_line(found, 120) if isinstance(found, str) else "?"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", " ")


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'' if gpus == 1 else 's'}"
