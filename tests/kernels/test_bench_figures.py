"""What is made of the bench's rows: the plot, and the tables of the READMEs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernels.bench import dense, plot, quantized
from runbooks import evidence

FACTS = {
    "device": "NVIDIA H200",
    "machine": "1 x NVIDIA H200",
    "date": "2026-11-21",
    "commit": "0123456789" * 4,
    "command": "python -m kernels.bench all",
}


def row(suite: str, case: dense.Case | quantized.Case, us: float | None, limit: float, **more: Any) -> dict[str, Any]:
    measured = {"us": us, "limit_us": limit, "ratio": us and limit / us, "err": 1e-4, "tol": 3e-4, "bytes": 1}
    kind = "fp16" if isinstance(case, dense.Case) else case.kinds
    head = {"suite": suite, "case": case.name, "shape": case.shape, "dtype": kind, "verdict": "ok", "met": "-"}
    return head | measured | {"must_us": None, "strong_us": None, "peers": {}, "peer_notes": {}} | FACTS | more


def made() -> list[dict[str, Any]]:
    rows = []
    for s in (128, 512, 2048, 8192, 32768):
        times = {"sdpa-flash": s * 0.0081 + 6, "sdpa-cudnn": s * 0.0083 + 3, "fa3": s * 0.0078 + 5, "fa3-dense": 9999.0}
        more = {"old_target_us": 10.0, "old_target": "met" if s < 600 else "missed"} if s <= 4096 else {}
        case = dense.Case(16, 8, 8, 64, s)
        rows.append(row("kv-decode", case, s * 0.0079 + 2, s * 0.0072, peers=times, met="must", must_us=21.0, **more))
    rows.append(row("kv-decode", dense.Case(1, 32, 8, 128, 4096), 9.5, 3.7))
    plain = quantized.Case(16, 8, 8, 32, 32, 64, 2048)
    rows.append(row("decoupled", plain, 12.0, 5.05, peers={"fa3": 23.0}))
    rows.append(row("decoupled", quantized.Case(16, 8, 8, 32, 32, 64, 8192, tail=128), 40.0, 20.4))
    return rows


def test_the_plot_draws_ours_the_peers_and_the_limits() -> None:
    lines = {line.name: line for line in plot.series(made())}
    assert set(lines) == {
        *("ours, fp16", "ours, q4q8q4", "read limit, fp16", "read limit, q4q8q4"),
        *("cuDNN (SDPA)", "FlashAttention 2 (SDPA)", "FlashAttention 3"),
    }
    assert [s for s, _ in lines["ours, fp16"].points] == [128, 512, 2048, 8192, 32768]
    assert lines["ours, q4q8q4"].points == [(2048, 12.0)]  # the one with a tail is another case
    assert dict(lines["FlashAttention 3"].points)[8192] == pytest.approx(68.9, abs=0.1)  # the best way to call it


def test_the_newest_right_row_counts() -> None:
    case = dense.Case(16, 8, 8, 64, 2048)
    again = [row("kv-decode", case, us, 14.7) for us in (30.0, 20.0)]
    again.append(row("kv-decode", case, None, 14.7, verdict="wrong"))
    assert next(line for line in plot.series(again) if line.kind == "ours").points == [(2048, 20.0)]
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.series(again[2:])


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_rows_give_the_same_small_file(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    source = tmp_path / "kernels.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in made()))
    outs = [tmp_path / "plots" / f"{name}.{suffix}" for name in ("a", "b")]
    for out in outs:
        assert plot.main([str(source), str(out)]) == 0
    first, second = (out.read_bytes() for out in outs)
    assert first == second and 5_000 < len(first) < 150_000


def test_a_plot_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(tmp_path / "none.jsonl"), str(tmp_path / "x.svg")]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert plot.main([]) == 2


def filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "kernels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)


def block(name: str) -> str:
    return evidence.rebuilt(f"<!-- evidence: {name} -->\n<!-- /evidence -->")


def test_the_readmes_tables_show_the_rows_of_their_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filed(tmp_path, monkeypatch, made())
    text = block("kernels-kv-decode")
    assert (
        "| B16 H8/8 D64 S2048 fp16 | 18.2 | 14.7 | 81 % | 20 (sdpa-cudnn) | 1.0e-04 / 3.0e-04 | **must** (must ≤ 21) |"
        in text
    )
    assert "*python -m kernels.bench all on 1 x NVIDIA H200, 2026-11-21, commit 012345678901*" in text
    assert "32+32/64" not in text
    assert "B16 H8/8 32+32/64 S8192 q4q8q4 +tail128 | 40 |" in block("kernels-decoupled")
    sweep = block("kernels-cache-sweep")
    assert sweep.count("| met |") == 2 and sweep.count("| missed |") == 1 and "S8192" not in sweep


def test_a_wrong_kernel_shows_in_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = dense.Case(16, 8, 8, 64, 2048)
    filed(tmp_path, monkeypatch, [row("kv-decode", case, None, 14.7, verdict="wrong", err=None)])
    assert "| WRONG | 14.7 | – | – | – | – |" in block("kernels-kv-decode")


@pytest.mark.parametrize("missing", ["machine", "commit", "date", "command", "device", "suite"])
def test_a_kernels_row_without_its_origin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    rows = made()
    del rows[3][missing]
    filed(tmp_path, monkeypatch, rows)
    with pytest.raises(evidence.EvidenceError, match=f"4: without {missing}"):
        block("kernels-kv-decode")


def test_no_rows_and_rows_of_a_cpu_are_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filed(tmp_path, monkeypatch, [r for r in made() if r["suite"] == "kv-decode"])
    with pytest.raises(evidence.EvidenceError, match="kernels-decoupled"):
        block("kernels-decoupled")
    filed(tmp_path, monkeypatch, [made()[0] | {"device": "cpu"}])
    with pytest.raises(evidence.EvidenceError, match="CPU"):
        block("kernels-kv-decode")
