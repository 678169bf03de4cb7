"""Changing one key of a YAML text and leaving every other character as it is. Pure: text in, text out.

Positions come from PyYAML's node tree; values are written by orch. It knows block and flow mappings, comments and both
kinds of line ends; whatever else it meets is a `CannotEdit`. The caller reads the result back before it believes it.
Called by `pods.inventoryfile`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import yaml

from pods.yamlscalar import plain

Value: TypeAlias = "str | bool | Sequence[str] | Mapping[str, Any]"
STEP = 2
_PLAIN = re.compile(r"[A-Za-z_/.~][\w/.~@-]*", re.ASCII)
_BLANK_OR_COMMENT = re.compile(r"([ \t]*)(#.*)?\r?\n?")


class CannotEdit(ValueError):
    """The text is written in a way that cannot be edited without harm."""


def insert(text: str, path: Sequence[str], key: str, value: Value) -> str:
    """`key: value` as the last entry of the mapping at `path`, which is made when it is not there (one level)."""
    text = _ended(text)
    holder = _find(text, path)
    if holder is None:
        return _insert_section(text, path, key, value)
    if not isinstance(holder, yaml.MappingNode):
        if isinstance(holder, yaml.ScalarNode) and not holder.value:  # `pods:` and nothing behind it
            return _below(text, holder.start_mark.index, holder.start_mark.column, key, value)
        raise CannotEdit("not a mapping")
    if holder.flow_style:
        return _insert_flow(text, holder, path, key, value)
    column = holder.start_mark.column
    at = _end_of(text, holder.value[-1][1], column - 1)
    return text[:at] + _block(key, value, column, _newline(text)) + text[at:]


def remove(text: str, path: Sequence[str], key: str) -> str:
    """Without `key`, which may be absent. Comments deeper than it go with it, those above it stay."""
    holder = _find(text, path)
    pair = _pair(holder, key)
    if pair is None or not isinstance(holder, yaml.MappingNode):
        return text
    if holder.flow_style:
        after = text[pair[1].end_mark.index :]
        return text[: pair[0].start_mark.index].rstrip(" ") + re.sub(r"\A\s*,[ \t]*", " ", after, count=1)
    text = _ended(text)
    start = _line_start(text, pair[0].start_mark.index)
    if text[start : pair[0].start_mark.index].strip():
        raise CannotEdit("a key does not begin its line")
    end = _end_of(text, pair[1], pair[0].start_mark.column)
    if len(holder.value) > 1:
        return text[:start] + text[end:]
    parent = _pair(_find(text, path[:-1]), path[-1]) if path else None
    begin = parent[0].end_mark.index if parent else start
    line_end = _line_end(text, begin)
    head = re.fullmatch(r":([ \t]*(?:#.*)?)(\r?\n)", text[begin:line_end])
    if head is None:
        raise CannotEdit("the line above is not that of its parent")
    return f"{text[:begin]}: {{}}{head[1]}{head[2]}{text[line_end:start]}{text[end:]}"  # what held it alone becomes {}


def assign(text: str, path: Sequence[str], key: str, value: str | Sequence[str]) -> str:
    """`key` of the mapping at `path` set to `value`, in place where it is written on one line."""
    pair = _pair(_find(text, path), key)
    if pair is None:
        return insert(text, path, key, value)
    node = pair[1]
    on_one_line = node.start_mark.line == node.end_mark.line
    if on_one_line and (isinstance(node, yaml.ScalarNode) or node.flow_style) and node.style not in ("|", ">"):
        start, end = node.start_mark.index, node.end_mark.index
        gap = " " if start == end else ""
        return text[:start] + gap + flow(value) + text[end:]
    return insert(remove(text, path, key), path, key, value)


def flow(value: Value) -> str:
    """A value on one line. Text is bare only where every reader of YAML takes it for the same text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        bare = _PLAIN.fullmatch(value) and plain(value) == value and value != "~"
        return value if bare else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(flow(v) for v in value) + "]"


def _block(key: str, value: Value, column: int, newline: str) -> str:
    pad = " " * column
    if isinstance(value, Mapping) and value:
        inner = "".join(_block(k, v, column + STEP, newline) for k, v in value.items())
        return f"{pad}{key}:{newline}{inner}"
    return f"{pad}{key}: {flow(value)}{newline}"


def _find(text: str, path: Sequence[str]) -> Any:
    """The node at `path`, None when there is none."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        pair = _pair(node, part)
        if pair is None:
            return None
        node = pair[1]
    return node


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == key), None)


def _insert_section(text: str, path: Sequence[str], key: str, value: Value) -> str:
    """`path` is not there: an empty file, or one with other keys."""
    if len(path) != 1:
        raise CannotEdit("nothing to put it into")
    top: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    newline = _newline(text)
    section = _block(path[0], {key: value}, 0, newline)
    if top is None or (isinstance(top, yaml.ScalarNode) and not top.value):
        return text + section
    if isinstance(top, yaml.MappingNode) and top.flow_style and not top.value:
        rest = text[top.end_mark.index :].lstrip(" ")
        return text[: top.start_mark.index] + section + rest.removeprefix("\r").removeprefix("\n")
    if isinstance(top, yaml.MappingNode) and not top.flow_style and top.start_mark.column == 0:
        at = _end_of(text, top.value[-1][1], -1)
        return text[:at] + section + text[at:]
    raise CannotEdit("the file is one flow mapping")


def _insert_flow(text: str, holder: Any, path: Sequence[str], key: str, value: Value) -> str:
    if holder.value:
        at = holder.value[-1][1].end_mark.index
        return f"{text[:at]}, {key}: {flow(value)}{text[at:]}"
    start, end = holder.start_mark.index, holder.end_mark.index
    parent = _pair(_find(text, path[:-1]), path[-1]) if path else None
    line_begin = _line_start(text, start)
    own_line = parent is not None and text[line_begin:start].lstrip().startswith(f"{path[-1]}:")
    if own_line and parent is not None and text[start:end] == "{}":  # becomes a block below its key
        text = text[:start].rstrip(" ") + text[end:]
        return _below(text, parent[0].end_mark.index, parent[0].start_mark.column, key, value, holder=parent[0])
    return f"{text[: start + 1]}{key}: {flow(value)}{text[end - 1 :]}"


def _below(text: str, index: int, column: int, key: str, value: Value, holder: Any = None) -> str:
    """`key: value` below the line at `index`, after comments that are indented there."""
    if holder is None:
        begin = _line_start(text, index)
        column = len(text[begin:]) - len(text[begin:].lstrip(" "))
    at = _after_comments(text, _line_end(text, index), column)
    return text[:at] + _block(key, value, column + STEP, _newline(text)) + text[at:]


def _end_of(text: str, node: Any, column: int) -> int:
    """Where the lines of `node` end, comments behind it that are indented deeper than `column` included."""
    return _after_comments(text, _line_end(text, _last_index(node)), column)


def _last_index(node: Any) -> int:
    """The place of the last character of a node: its end mark lies behind the comments that follow a block."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    index: int = node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        index -= 1
    return index


def _after_comments(text: str, at: int, column: int) -> int:
    """`at` or, where comments deeper than `column` follow, the end of the last one."""
    end = at
    while at < len(text):
        m = _BLANK_OR_COMMENT.match(text, at)
        assert m is not None
        if m.end() == at or (m[2] is None and m[0].strip()) or not (m[0].endswith("\n") or m.end() == len(text)):
            break
        at = m.end()
        if m[2] is not None:
            if len(m[1]) <= column:
                break
            end = at
    return end


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    at = text.find("\n", index)
    return len(text) if at < 0 else at + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + _newline(text)
