"""The figures of README.md and of the kernels' READMEs, rebuilt from `runbooks/results/*.jsonl`, the file tree, and
the table of health rules.

A block between `<!-- evidence: NAME -->` and `<!-- /evidence -->` is a table of the newest row of every `case` in
`runbooks/results/NAME.jsonl`; kernels-* blocks are of one suite of `kernels.jsonl` (see `kernelrows`).
`python -m runbooks.evidence` rewrites the blocks; with `--check` it only compares. It fails on a block without rows, on
a row without machine, date, commit or command, and on a kernel's row that was not measured on a GPU.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from runbooks import filetree, healthrows, kernelrows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "runbooks" / "results"
BLOCK = re.compile(r"(?P<open><!-- evidence: (?P<name>[a-z0-9-]+) -->\n).*?(?P<close><!-- /evidence -->)", re.S)
NEEDED = ("case", "value", "unit", "machine", "date", "commit", "command")


class EvidenceError(Exception):
    """A figure without a row, or a row that does not say where it comes from."""


def documents(root: Path = ROOT) -> list[Path]:
    """The files that hold blocks."""
    return [root / "README.md", *sorted(root.glob("kernels/*/README.md")), root / "runbooks" / "health.md"]


def newest_rows(name: str, needed: tuple[str, ...] = NEEDED) -> list[dict[str, Any]]:
    """The newest row of every case, in the order the cases first appear."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        raise EvidenceError(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path} does not exist")
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        row = json.loads(line)
        missing = [k for k in needed if not row.get(k) and row.get(k) != 0]
        if missing:
            raise EvidenceError(f"{path.name}:{number}: without {', '.join(missing)}")
        if row.get("device") == "cpu":
            raise EvidenceError(f"{path.name}:{number}: measured on a CPU, which says nothing of a kernel")
        newest[row.get("suite", name), row["case"]] = row
    if not newest:
        raise EvidenceError(f"{path.name} has no rows")
    return list(newest.values())


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| what | measured | goal |", "|---|---|---|"]
    lines += [f"| {r.get('what', r['case'])} | {figure(r['value'])} {r['unit']} | {r.get('goal', '')} |" for r in rows]
    return "\n".join(lines) + "\n\n" + sources(rows)


def kernel_table(block: str) -> str:
    """The table of a kernels-* block; EvidenceError when the file has no row for it."""
    rows = kernelrows.of_block(block, newest_rows("kernels", kernelrows.NEEDED))
    if not rows:
        raise EvidenceError(f"kernels.jsonl has no rows for the block kernels-{block}")
    return kernelrows.table(block, rows) + "\n\n" + sources(rows)


def sources(rows: list[dict[str, Any]]) -> str:
    """A line for each command, machine, date and commit that the rows come from."""
    where = sorted({(r["machine"], r["date"], r["commit"][:12], r["command"]) for r in rows})
    notes = [f"{command} on {machine}, {date}, commit {commit}" for machine, date, commit, command in where]
    return "\n".join(f"*{n}*" for n in notes) + "\n"


def rebuilt(text: str) -> str:
    """A document with every figure, the file tree and the rules made anew."""
    text = BLOCK.sub(lambda m: m["open"] + _figures(m["name"]) + m["close"], text)
    return healthrows.rebuilt(filetree.rebuilt(text, ROOT))


def _figures(name: str) -> str:
    family, _, block = name.partition("-")
    return kernel_table(block) if family == "kernels" else table(newest_rows(name))


def main(argv: list[str]) -> int:
    old = {path: path.read_text() for path in documents()}
    try:
        new = {path: rebuilt(text) for path, text in old.items()}
    except EvidenceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    stale = [str(path.relative_to(ROOT)) for path in old if old[path] != new[path]]
    if "--check" in argv:
        if stale:
            print(f"error: {', '.join(stale)}: not as runbooks/results says; run `make evidence`", file=sys.stderr)
        return int(bool(stale))
    for path, text in new.items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}: {len(BLOCK.findall(text))} blocks from runbooks/results")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
