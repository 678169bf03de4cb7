"""README's file tree, a phrase a file out of its docstring. `make evidence` writes it, a test compares."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGES = ("orchestrator", "pods", "workloads", "kernels")
BLOCK = re.compile(r"(?P<open><!-- files -->\n).*?(?P<close><!-- /files -->)", re.S)
WIDTH = 118


def phrase(path: Path) -> str:
    """The first sentence of a file's docstring (a module) or first comment (a recipe), on one line, cut to fit."""
    text = path.read_text()
    text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text.lstrip("# ")
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`0-9])\. |\.$|:$", paragraph, maxsplit=1)[0]


def tree(root: Path) -> str:
    lines: list[str] = []
    for package in PACKAGES:
        for folder in sorted(p for p in [root / package, *(root / package).rglob("*/")] if p.is_dir()):
            files = [f for f in sorted(folder.iterdir()) if f.suffix in (".py", ".yaml")]
            depth = len(folder.relative_to(root).parts) - 1
            if not files or folder.name == "__pycache__":
                continue
            lines.append(_line(depth, f"{folder.name}/", _folder_phrase(folder)))
            lines += [_line(depth + 1, f.name, phrase(f)) for f in files if f.name != "__init__.py"]
    return "\n".join(lines)


def _folder_phrase(folder: Path) -> str:
    init = folder / "__init__.py"
    return phrase(init) if init.exists() else ""


def _line(depth: int, name: str, words: str) -> str:
    head = f"{'  ' * depth}{name}"
    line = f"{head:<28} {words}".rstrip()
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def rebuilt(text: str, root: Path) -> str:
    return BLOCK.sub(lambda m: f"{m['open']}```\n{tree(root)}\n```\n{m['close']}", text)
