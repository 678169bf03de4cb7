"""The page and the plots of a bench run: whole without the network, escaped, and drawn from rows alone."""

from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kernels import thresholds
from tests.bench.rows import filed, row
from workloads.bench.curves import lines_of
from workloads.bench.knees import install, knees_of
from workloads.bench.page import page
from workloads.bench.plots import drawn, short
from workloads.bench.tables import markdown
from workloads.contract.records import RunVerdict

VERDICT = RunVerdict("r", 1, "no-go", "1 of 3 cases", 1.0)
FACTS = [("command", "orch bench --pod <box>"), ("device", "1 x NVIDIA H200 & driver")]
HOSTILE = '<script src="http://x/y.js">alert(1)</script><img src=//x/y.png>'


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attrs: list[tuple[str, str | None]] = []
        self.wrong = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attrs += attrs
        self.wrong += ("class", "wrong") in attrs


def test_the_page_asks_the_network_for_nothing_and_runs_nothing() -> None:
    rows = [row("a"), row(HOSTILE, None, verdict="failed", error=HOSTILE), row("c", peer_notes={HOSTILE: HOSTILE})]
    text = page(VERDICT, [*FACTS, ("pod", HOSTILE)], rows, {"kv-decode": b"\x89PNG"}, HOSTILE, HOSTILE)
    seen = Seen(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(seen.tags) and seen.tags.count("img") == 1
    loads = [value for name, value in seen.attrs if name in ("src", "href", "srcset", "action", "data")]
    assert len(loads) == 1 and str(loads[0]).startswith("data:image/png;base64,")
    assert base64.b64decode(str(loads[0]).split(",")[1]) == b"\x89PNG"
    assert not [name for name, _ in seen.attrs if name.startswith("on")] and seen.wrong == 1
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert "orch bench --pod &lt;box&gt;" in text and "no-go, 1 of 3 cases" in text and text.count("<tr") == 4


def test_the_page_and_the_table_show_every_filed_row() -> None:
    rows = filed()
    text, told = page(VERDICT, FACTS, rows, {}, "no plots"), markdown(VERDICT, FACTS, rows)
    for r in rows:
        assert f"<td>{r['case']}</td>" in text and f"| {r['case']} |" in told
    assert "<p>no plots</p>" in text and f"{100 * rows[0]['ratio']:.0f} %" in told


@pytest.mark.parametrize(("suite", "ours", "peers"), [("kv-decode", 2, 3), ("decoupled", 5, 3), ("bandwidth", 1, 0)])
def test_lines_are_those_of_the_rows(suite: str, ours: int, peers: int) -> None:
    rows = filed()
    lines = lines_of(suite, rows)
    kinds = [line.kind for line in lines]
    assert (kinds.count("ours"), kinds.count("limit"), kinds.count("peer")) == (ours, ours, peers)
    for line in lines:
        assert [x for x, _ in line.points] == sorted({x for x, _ in line.points}), line  # one time a length
    times = {r["us"] for r in rows if r["suite"] == suite}
    assert {y for line in lines if line.kind == "ours" for _, y in line.points} <= times


def test_a_suite_at_one_length_wrong_rows_and_others_have_no_line() -> None:
    assert lines_of("kv-decode", [row("a"), row("b", suite="device")]) == []
    longer = {**row("a")["shape"], "S": 9}
    assert lines_of("kv-decode", [row("a"), row("b", shape=longer, verdict="wrong")]) == []
    assert len(lines_of("kv-decode", [row("a"), row("b", shape=longer)])) == 4
    assert lines_of("train-step", filed()) == [] and (short(8192), short(100), short(3 << 20)) == ("8k", "100", "3M")


def test_plots_are_pngs_and_their_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = filed()
    plots, why = drawn(["bandwidth", "kv-decode", "comm"], rows, "NVIDIA H200")
    assert sorted(plots) == ["bandwidth", "kv-decode"] and why == ""
    assert all(png.startswith(b"\x89PNG\r\n") and len(png) > 10_000 for png in plots.values())
    assert drawn(["device"], rows, "x") == ({}, "no suite was measured at two lengths: there is nothing to draw")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    none, said = drawn(["kv-decode"], rows, "x")
    assert none == {} and "matplotlib is not installed" in said


def test_thresholds_come_of_gpu_rows_alone(tmp_path: Path) -> None:
    rows = filed()
    found = knees_of(rows, "run/bench.jsonl", "cuda")
    assert found.found is not None and found.found.gpu == "NVIDIA H200" and found.found.rows == "run/bench.jsonl"
    assert re.search(r"decoupled q4q8q4 +over fa3 +always", found.words)
    path = install(found.found, tmp_path)
    assert path == tmp_path / "thresholds" / "kv-decode" / "nvidia-h200.json"
    assert thresholds.parse(path.read_text(), "here") == found.found  # what the dispatch will read
    none = knees_of(rows, "x", "cpu")
    assert (none.words, none.found) == ("", None) and knees_of([row("a", peers={})], "x", "cuda").words == ""
