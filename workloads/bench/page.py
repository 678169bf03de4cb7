"""`bench.html`: the whole result of a bench run on one page that asks the network for nothing. Pure.

Styles stand in it, plots are data URIs, there is no script. Everything that came from elsewhere is escaped. Called by
`workloads.bench.result`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from workloads.bench.matrix import is_good
from workloads.bench.tables import HEADER, RIGHT, Facts, cells, notes, ordered
from workloads.contract.records import RunVerdict
from workloads.judging.book import Row

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #8884; text-align: left; white-space: nowrap; }
td.n, th.n { text-align: right; } tr.wrong td { background: #d5000022; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; } dt { opacity: 0.65; }
dd { margin: 0; overflow-wrap: anywhere; } code { font-size: 0.9em; } .wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    verdict: RunVerdict, facts: Facts, rows: Sequence[Row], plots: Mapping[str, bytes], why: str, knees: str = ""
) -> str:
    """`why`: what is said where plots are missing; `knees`: from which length which backend is faster, in words."""
    title = f"Benchmark: {verdict.verdict}, {verdict.why}"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        *_facts(facts),
        *_table(rows),
        *_plots(plots, why),
        *(["<h2>From which length</h2>", f"<pre>{escape(knees)}</pre>"] if knees else []),
        *_notes(rows),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _facts(facts: Facts) -> list[str]:
    code = {"command", "commit", "code"}
    shown = [(k, f"<code>{escape(v)}</code>" if k in code else escape(v)) for k, v in facts]
    return ["<dl>", *(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in shown), "</dl>"]


def _table(rows: Sequence[Row]) -> list[str]:
    def line(tag: str, texts: Sequence[str], kind: str = "") -> str:
        told = (f"<{tag}{' class=n' if i in RIGHT else ''}>{escape(t)}</{tag}>" for i, t in enumerate(texts))
        return f"<tr{kind}>{''.join(told)}</tr>"

    body = (line("td", cells(r), "" if is_good(r) else " class=wrong") for r in ordered(rows))
    return [
        "<h2>Cases</h2>", '<div class="wide"><table>', f"<thead>{line('th', HEADER)}</thead>", "<tbody>", *body,
        "</tbody></table></div>",
    ]  # fmt: skip


def _plots(plots: Mapping[str, bytes], why: str) -> list[str]:
    shown = [
        f'<p><img alt="{escape(suite)}: time against length" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
        for suite, png in plots.items()
    ]
    return ["<h2>Plots</h2>", *shown, *([f"<p>{escape(why)}</p>"] if why else [])]


def _notes(rows: Sequence[Row]) -> list[str]:
    told = notes(rows)
    return ["<h2>Notes</h2>", "<ul>", *(f"<li>{escape(text)}</li>" for text in told), "</ul>"] if told else []
