"""README's figures, rebuilt from `runbooks/results/*.jsonl`, and its file tree.

A block in README.md between `<!-- evidence: NAME -->` and `<!-- /evidence -->` is a table of the newest row of every
`case` in `runbooks/results/NAME.jsonl`. `python -m runbooks.evidence` rewrites the blocks; with `--check` it only
compares. It fails on a block without rows and on a row without machine, date, commit or command.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from runbooks import filetree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "runbooks" / "results"
BLOCK = re.compile(r"(?P<open><!-- evidence: (?P<name>[a-z0-9-]+) -->\n).*?(?P<close><!-- /evidence -->)", re.S)
NEEDED = ("case", "value", "unit", "machine", "date", "commit", "command")


class EvidenceError(Exception):
    """A figure without a row, or a row that does not say where it comes from."""


def newest_rows(name: str) -> list[dict[str, Any]]:
    """The newest row of every case, in the order the cases first appear."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        raise EvidenceError(f"{path.relative_to(ROOT)} does not exist")
    newest: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        row = json.loads(line)
        missing = [k for k in NEEDED if not row.get(k) and row.get(k) != 0]
        if missing:
            raise EvidenceError(f"{path.name}:{number}: without {', '.join(missing)}")
        newest[row["case"]] = row
    if not newest:
        raise EvidenceError(f"{path.name} has no rows")
    return list(newest.values())


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| what | measured | goal |", "|---|---|---|"]
    lines += [f"| {r['case']} | {figure(r['value'])} {r['unit']} | {r.get('goal', '')} |" for r in rows]
    where = sorted({(r["machine"], r["date"], r["commit"][:12], r["command"]) for r in rows})
    notes = [f"{command} on {machine}, {date}, commit {commit}" for machine, date, commit, command in where]
    return "\n".join(lines) + "\n\n" + "\n".join(f"*{n}*" for n in notes) + "\n"


def rebuilt(text: str) -> str:
    """README with every figure and the file tree made anew."""
    return filetree.rebuilt(_figures(text), ROOT)


def _figures(text: str) -> str:
    return BLOCK.sub(lambda m: m["open"] + table(newest_rows(m["name"])) + m["close"], text)


def main(argv: list[str]) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    try:
        new = rebuilt(text)
    except EvidenceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if "--check" in argv:
        if new != text:
            print("error: README.md does not match runbooks/results; run `make evidence`", file=sys.stderr)
        return int(new != text)
    readme.write_text(new)
    print(f"README.md: {len(BLOCK.findall(new))} blocks from runbooks/results")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
