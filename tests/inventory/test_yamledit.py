"""Editing the inventory's text: what a person wrote stays, whatever the style; what cannot be kept is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pods import yamledit
from pods.yamlfile import parse_yaml

WRITTEN = """\
# my pods
pods:
  local:
    local: true
    # python: /x

  # the big box
  big:
    ssh: ada@big   # nice
    host_key: "ssh-ed25519 AAAA"
    # inside big

# end
"""
BLOCK = "pods:\n  a:\n    root: |\n      x\n\n  # last\n"
POD = {"ssh": "root@1.2.3.4:40022", "host_key": "ssh-ed25519 AA=="}


def data(text: str) -> object:
    return parse_yaml(text, "t").data


def test_a_pod_goes_behind_the_last_and_its_comments() -> None:
    new = yamledit.insert(WRITTEN, ("pods",), "new", POD)
    entry = '  new:\n    ssh: "root@1.2.3.4:40022"\n    host_key: "ssh-ed25519 AA=="\n'
    assert new == WRITTEN.replace("    # inside big\n", "    # inside big\n" + entry)
    assert yamledit.remove(new, ("pods",), "new") == WRITTEN


def test_removing_takes_what_is_inside_and_leaves_what_is_above() -> None:
    assert yamledit.remove(WRITTEN, ("pods",), "big") == WRITTEN.split("  big:")[0] + "\n# end\n"
    left = yamledit.remove(WRITTEN, ("pods",), "local")
    assert left == "# my pods\npods:\n\n  # the big box\n" + WRITTEN.split("  # the big box\n")[1]
    assert yamledit.remove(WRITTEN, ("pods",), "none") == WRITTEN


def test_a_value_is_changed_in_place() -> None:
    new = yamledit.assign(WRITTEN, ("pods", "big"), "host_key", "ssh-ed25519 BBBB")
    assert new == WRITTEN.replace("AAAA", "BBBB")
    new = yamledit.assign(WRITTEN, ("pods", "big"), "ssh", "bob@big")
    assert new == WRITTEN.replace("ada@big", "bob@big")  # the comment behind it stays
    jumps = yamledit.assign(WRITTEN, ("pods", "big"), "jump_keys", ["a b", "c"])
    assert jumps == WRITTEN.replace("    # inside big\n", '    # inside big\n    jump_keys: ["a b", c]\n')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "pods:\n  n:\n    ssh: r@h\n"),
        ("# c\n", "# c\npods:\n  n:\n    ssh: r@h\n"),
        ("pods:\n", "pods:\n  n:\n    ssh: r@h\n"),
        ("pods:  # x\n  # here\n", "pods:  # x\n  # here\n  n:\n    ssh: r@h\n"),
        ("pods: {}\n", "pods:\n  n:\n    ssh: r@h\n"),
        ("pods: {} # c", "pods: # c\n  n:\n    ssh: r@h\n"),
        ("{}\n", "pods:\n  n:\n    ssh: r@h\n"),
        ("pods: {local: {local: true}}", "pods: {local: {local: true}, n: {ssh: r@h}}\n"),
        ("pods: {\n  a: {local: true}, # why\n}\n", "pods: {\n  a: {local: true}, n: {ssh: r@h}, # why\n}\n"),
        ("pods:\r\n  a:\r\n    local: true", "pods:\r\n  a:\r\n    local: true\r\n  n:\r\n    ssh: r@h\r\n"),
        ("pods:\n    a: {local: true}\n", "pods:\n    a: {local: true}\n    n:\n      ssh: r@h\n"),
        (BLOCK, BLOCK + "  n:\n    ssh: r@h\n"),
    ],
)  # fmt: skip
def test_every_style_takes_a_pod(before: str, after: str) -> None:
    assert yamledit.insert(before, ("pods",), "n", {"ssh": "r@h"}) == after
    without = yamledit.remove(after, ("pods",), "n")
    assert (data(without) or {}).get("pods", {}) == ((data(before) or {}).get("pods") or {})  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["pods: [a]\n", "pods: 3\n", "- a\n", "{other: 1}\n"])
def test_what_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(yamledit.CannotEdit):
        yamledit.insert(text, ("pods",), "n", {"ssh": "r@h"})


@pytest.mark.parametrize(
    "word", ["no", "on", "~", "null", "12:30", "0777", "1e3", "true", "", " a", "a: b", "#x", "a #b"]
)
def test_text_is_read_back_as_the_same_text(word: str) -> None:
    new = yamledit.insert("", ("pods",), "n", {"python": word})
    assert data(new) == {"pods": {"n": {"python": word}}}


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=12).filter(
    lambda t: t.isprintable()
)
comments = st.sampled_from(["", "\n", "  # c\n", "# c\n", "    # c\n"])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(names, values, max_size=4), names, values, st.lists(comments, min_size=5, max_size=5), st.booleans()
)
def test_any_inventory(entries: dict[str, str], name: str, value: str, notes: list[str], flow: bool) -> None:
    """Whatever there was is there after a pod came and went, with every comment that is not inside the pod."""
    text = "# top\npods:\n" if entries else "# top\n"
    for i, (key, v) in enumerate(entries.items()):
        body = f" {{python: {yamledit.flow(v)}}}\n" if flow else f"\n    python: {yamledit.flow(v)}\n"
        text += f"  {key}:{body}" + notes[i]
    assert data(text) == ({"pods": {k: {"python": v} for k, v in entries.items()}} if entries else None)
    if name in entries:
        changed = yamledit.assign(text, ("pods", name), "python", value)
        assert data(changed) == {"pods": {**{k: {"python": v} for k, v in entries.items()}, name: {"python": value}}}
        assert changed.count("#") - value.count("#") == text.count("#") - entries[name].count("#")
        return
    new = yamledit.insert(text, ("pods",), name, {"python": value})
    assert data(new) == {"pods": {**{k: {"python": v} for k, v in entries.items()}, name: {"python": value}}}
    assert list(data(new)["pods"]) == [*entries, name]  # type: ignore[index]
    gone = yamledit.remove(new, ("pods",), name)
    if entries:
        assert data(gone) == data(text)
    assert gone.count("# c") == text.count("# c")
