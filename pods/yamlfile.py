"""YAML as orch reads it: one document of plain data, every value with its place, nothing that surprises.

Refused: duplicate keys, anchors, aliases, merge keys, tags, a second document, more than 1 MB, 32 levels or 10 000
values, and scalars that readers of YAML disagree about (`pods.yamlscalar`). The tree is built from PyYAML's events,
never by its constructors, so nothing in a file can run anything or grow beyond its size. Used for job files, pods.yaml
and `--set`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pods.yamlscalar import Surprise, plain
from workloads.contract.errors import LocalError, OrchError, SpecError, escape, raise_all
from workloads.contract.files import read_bytes_bounded

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_SHOWN_LINE = 100

_UNPAIRED = re.compile("[\ud800-\udfff\0]")


@dataclass(frozen=True)
class Mark:
    line: int
    column: int


@dataclass(frozen=True)
class YamlDoc:
    """`data` holds dict, list, str, int, float, bool and None; `marks` maps `train.steps` and `pods[0]` to places."""

    data: object
    marks: dict[str, Mark]
    source: str

    def line(self, path: str) -> int:
        """The line of a key, or of the nearest key above it; 0 when there is none."""
        while path and path not in self.marks:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        mark = self.marks.get(path)
        return mark.line if mark else 0

    def place(self, path: str) -> str:
        """`file:line`."""
        line = self.line(path)
        return f"{self.source}:{line}" if line else self.source


class YamlSyntaxError(SpecError):
    """Shows the line with a caret below the place."""

    def __init__(self, what: str, *, where: str, line: str, column: int, fix: str | None = None) -> None:
        start = max(0, column - MAX_SHOWN_LINE + 20)
        shown = escape(line[start : start + MAX_SHOWN_LINE])
        super().__init__("E-YAML-001", what, where=where, value=shown, fix=fix)
        self._caret = "         " + " " * len(escape(line[start : max(start, column - 1)], 400)) + "^"

    def render(self) -> str:
        rows = super().render().split("\n")
        at = next((i for i, row in enumerate(rows) if row.startswith("  value:")), len(rows) - 1)
        return "\n".join([*rows[: at + 1], self._caret, *rows[at + 1 :]])


def join(path: str, key: str | int) -> str:
    """`train` and `steps` make `train.steps`; `pods` and 0 make `pods[0]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def read_yaml(path: Path, given: str | None = None) -> YamlDoc:
    """The document in a file. LocalError when it cannot be read, SpecError (or a group) when it is wrong.

    `given` is the path as a person typed it; it is what errors show.
    """
    shown = given or str(path)
    try:
        raw = read_bytes_bounded(path.resolve(), MAX_BYTES)
    except ValueError as e:
        large = "larger" in str(e)
        raise SpecError(
            "E-YAML-003" if large else "E-YAML-004",
            "the file is larger than 1 MB" if large else "this is not a regular file",
            where=shown, expected="a YAML file", fix="name another file",
        ) from e  # fmt: skip
    except OSError as e:
        raise LocalError("E-YAML-005", f"the file cannot be read: {e.strerror}", where=f"{shown} ({path})") from e
    return parse_yaml(raw, shown)


def parse_yaml(raw: bytes | str, source: str) -> YamlDoc:
    """The document in `raw`. Never another exception than SpecError or an ErrorGroup of them."""
    text = _decode(raw, source) if isinstance(raw, bytes) else raw
    builder = _Builder(source, text)
    try:
        data = builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as e:
        raise_all([*builder.problems, builder.syntax(e.problem or "", e.problem_mark or e.context_mark, e.context)])
    except yaml.reader.ReaderError:
        raise_all([*builder.problems, builder.control(text)])
    except (ValueError, OverflowError) as e:  # PyYAML: chr() of an escape beyond Unicode, int() of a long directive
        raise SpecError("E-YAML-001", f"not valid YAML: {e}", where=source) from e
    raise_all(builder.problems)
    return YamlDoc(data, builder.marks, source)


def _decode(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise SpecError(
            "E-YAML-002", "the file is not UTF-8 text", where=f"{source}:{line}", value=f"byte 0x{raw[e.start]:02x}",
            fix=f"iconv -t UTF-8 {source}",
        ) from e  # fmt: skip


@dataclass
class _Builder:
    source: str
    text: str
    marks: dict[str, Mark] = field(default_factory=dict)
    problems: list[OrchError] = field(default_factory=list)
    values: int = 0

    def document(self, events: Iterator[Any]) -> object:
        data: object = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "E-YAML-006", "a second document begins here", "keep one document a file")
                    raise_all(self.problems)
            elif isinstance(event, yaml.NodeEvent):
                data = self._node(event, events, "", 0)
        return data

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> object:
        self.marks.setdefault(path, self._mark(event))
        self.values += 1
        if self.values > MAX_VALUES:
            self._refuse(event, "E-YAML-015", f"more than {MAX_VALUES} values", "keep data in files of their own")
            raise_all(self.problems)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            self._refuse(
                event, "E-YAML-007", f"`{sign}{event.anchor}`: anchors and aliases are not taken", "write it out"
            )
            if sign == "*":
                return None
        if event.tag is not None:
            self._refuse(event, "E-YAML-008", f"`{event.tag}`: tags are not taken", "remove the tag")
        if depth >= MAX_DEPTH:
            self._refuse(event, "E-YAML-009", f"more than {MAX_DEPTH} levels deep", "make it flatter")
            raise_all(self.problems)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path, depth)
        return self._scalar(event)

    def _sequence(self, events: Iterator[Any], path: str, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, join(path, len(items)), depth + 1))
        return items

    def _mapping(self, events: Iterator[Any], path: str, depth: int) -> dict[str, object]:
        items: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._key(event, events, path, depth)
            inner = join(path, key)
            if key in items:
                first = self.marks[inner].line
                self._refuse(
                    event, "E-YAML-010", f"{inner} is given twice", f"remove one; the first is in line {first}"
                )
            self.marks.setdefault(inner, self._mark(event))
            items[key] = self._node(next(events), events, inner, depth + 1)
        return items

    def _key(self, event: Any, events: Iterator[Any], path: str, depth: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, events, join(path, "?"), depth + 1)  # to the end of it
            self._refuse(event, "E-YAML-011", "a key must be a word", "write `key: value`")
            return "?"
        if event.anchor is not None or event.tag is not None:
            self._refuse(event, "E-YAML-007", "anchors and tags are not taken", "write the plain key")
        key: str = event.value
        if key == "<<" and event.implicit[0]:
            self._refuse(event, "E-YAML-012", "`<<`: merge keys are not taken", "write the keys out")
        return self._checked(event, key)

    def _scalar(self, event: Any) -> object:
        if not event.implicit[0]:
            return self._checked(event, event.value)
        value = plain(event.value)
        if isinstance(value, Surprise):
            self._refuse(event, "E-YAML-013", value.what, value.fix)
            return None
        return value

    def _checked(self, event: Any, text: str) -> str:
        if _UNPAIRED.search(text):
            self._refuse(event, "E-YAML-014", "NUL and unpaired surrogates are not text", "remove the escape")
            return _UNPAIRED.sub("?", text)
        return text

    def _mark(self, event: Any) -> Mark:
        return Mark(event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, event: Any, code: str, what: str, fix: str) -> None:
        self.problems.append(SpecError(code, what, where=f"{self.source}:{self._mark(event).line}", fix=fix))

    def syntax(self, problem: str, mark: Any, context: str | None) -> YamlSyntaxError:
        lines = self.text.splitlines() or [""]
        index = min(mark.line, len(lines) - 1) if mark else 0
        column = (mark.column if mark and mark.line == index else len(lines[index])) + 1
        what = f"not valid YAML: {', '.join(p for p in (context, problem) if p)}"
        where = f"{self.source}:{index + 1}:{column}"
        fix = "indent with spaces" if "'\\t'" in problem else "close what is open before it, or quote the text"
        return YamlSyntaxError(what, where=where, line=lines[index], column=column, fix=fix)

    def control(self, text: str) -> YamlSyntaxError:
        at = next((i for i, c in enumerate(text) if yaml.reader.Reader.NON_PRINTABLE.match(c)), 0)
        start = max(text.rfind("\n", 0, at) + 1, 0)
        line, column = text.count("\n", 0, at) + 1, at - start + 1
        return YamlSyntaxError(
            f"not valid YAML: the character U+{ord(text[at]) if text else 0:04X} is not allowed",
            where=f"{self.source}:{line}:{column}", line=text[start:].split("\n", 1)[0], column=column,
            fix="remove the character",
        )  # fmt: skip
