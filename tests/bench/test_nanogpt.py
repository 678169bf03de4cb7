"""Our step beside another model's: the same size, checked, timed in turns; nanoGPT's file is stood in for by one of
the same interface, for it is not ours to ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workloads.bench import nanogpt
from workloads.bench.contenders import Size, spec_for
from workloads.contract.flops import parameters

# what the bench asks of model.py: GPTConfig and GPT(config)(x, y) -> (logits, mean loss)
MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(c.n_embd, c.n_head, 4 * c.n_embd, 0.0, bias=False, batch_first=True)
        self.wte, self.wpe = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.h = nn.ModuleList(layer() for _ in range(c.n_layer))
        for p in self.parameters():
            nn.init.normal_(p, std=SCALE)

    def forward(self, x, y):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.h:
            h = block(h, src_mask=torch.full((x.shape[1],) * 2, -1e9).triu(1))
        logits = h @ self.wte.weight.T
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())
"""
WORDS = ["--tiny", "--tokens", "64", "--rounds", "2", "--steps", "1", "--warm-up", "3", "--compile", "off"]


def bench(tmp_path: Path, scale: float) -> tuple[int, list[dict[str, object]]]:
    file, out = tmp_path / "model.py", tmp_path / "rows.jsonl"
    file.write_text(MODEL.replace("SCALE", str(scale)))
    code = nanogpt.main([*WORDS, "--nanogpt", str(file), "--out", str(out)])
    return code, [json.loads(line) for line in out.read_text().splitlines()]


def test_contenders_of_one_size_are_checked_and_timed_in_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = bench(tmp_path, 0.02)
    assert code == 0 and [r["name"] for r in rows] == ["nanogpt", "ours", "bare", "gqa"], capsys.readouterr().out
    sizes = [int(str(r["parameters"])) for r in rows]
    assert max(sizes) - min(sizes) <= 0.02 * sizes[0] and all(r["shape"] == rows[0]["shape"] for r in rows)
    assert rows[1]["loss_first"] == pytest.approx(rows[2]["loss_first"], rel=1e-5)  # the same model, two loops
    assert all(len(r["us_each"]) == 2 and float(str(r["ratio"])) > 0 for r in rows)  # type: ignore[arg-type]
    assert rows[0]["ratio"] == 1.0 and "1.000x" in capsys.readouterr().out


def test_a_contender_that_does_not_begin_at_guessing_is_not_timed(tmp_path: Path) -> None:
    code, rows = bench(tmp_path, 2.0)
    assert code == 1 and "guessing is ln V" in str(rows[0]["verdict"])
    assert "us" not in rows[0] and all(r["verdict"] == "ok" and r["ratio"] is None for r in rows[1:])


def test_a_file_that_fails_costs_the_others_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.py"
    file.write_text(MODEL.replace("SCALE", "0.02").replace("return logits, ", "raise ValueError('no loss'); return "))
    assert nanogpt.main([*WORDS, "--nanogpt", str(file), "--contenders", "bare", "nanogpt"]) == 1
    told = capsys.readouterr().out
    assert "nanogpt, 64 tokens: ValueError: no loss" in told and "bare, 8 x 64 tokens" in told


@pytest.mark.parametrize("kv_heads", [12, 4, 2])
@pytest.mark.parametrize("tokens", [1024, 2048])
def test_sizes_on_the_card_are_within_a_hundredth(kv_heads: int, tokens: int) -> None:
    """nanoGPT's 124M: 12 blocks of 12 x 768^2 and gains, tables of vocabulary and positions."""
    target = 50304 * 768 + tokens * 768 + 12 * (12 * 768**2 + 2 * 768) + 768
    size = Size(768, 12, 12, 50304, 65536 // tokens, tokens)
    spec = spec_for(size, kv_heads, target)
    assert abs(parameters(spec, 50304) - target) <= 0.01 * target and spec.ffn_dim and spec.ffn_dim % 64 == 0


def test_time_that_is_over_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert nanogpt.main([*WORDS, "--contenders", "bare", "--seconds", "-1"]) == 1
    assert "left out, the time is over" in capsys.readouterr().out
