"""Our decoder with published weights, against the library they are made for: logits, and what is generated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.models.published import CASES, VOCAB, prompts, published
from workloads.decode.generate import generate
from workloads.models.decoder import Decoder
from workloads.models.hf import decoder_from_hf

STEPS = 256


def ours(case: str) -> Decoder:
    theirs = published(case)
    return decoder_from_hf(theirs.config, theirs.state_dict())


def continued(theirs: Any, prompt: list[int]) -> list[int]:
    """What the library's own greedy generation makes of one prompt."""
    row = torch.tensor([prompt])
    out = theirs.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=STEPS, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_agree(case: str) -> None:
    x_BT = torch.randint(0, VOCAB, (2, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs_BTV, ours_BTV = published(case)(x_BT).logits, ours(case)(x_BT)
    assert 0.5 < float(theirs_BTV.std()) < 5
    assert float((theirs_BTV - ours_BTV).abs().max()) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_agree_through_the_cache(case: str) -> None:
    x_BT = torch.randint(0, VOCAB, (2, 60), generator=torch.Generator().manual_seed(3))
    model = ours(case)
    caches = model.new_caches(2, 60)
    with torch.no_grad():
        theirs_BTV = published(case)(x_BT).logits
        parts = [model(part, caches=caches) for part in torch.split(x_BT, [31, 1, 1, 20, *[1] * 7], dim=1)]
    assert float((theirs_BTV - torch.cat(parts, dim=1)).abs().max()) <= 1e-5


@pytest.mark.parametrize("case", ["llama", pytest.param("qwen3-tied", marks=pytest.mark.long)])
def test_256_greedy_tokens_are_equal_with_the_cache_without_it_alone_and_theirs(case: str) -> None:
    model, asked = ours(case), prompts()
    cached = generate(model, asked, STEPS)
    assert [len(row) for row in cached] == [STEPS] * 3 and len({*cached[0]}) > 10
    assert cached == generate(model, asked, STEPS, use_cache=False)
    assert [row[:64] for row in cached] == [generate(model, [prompt], 64)[0] for prompt in asked]
    assert cached == [continued(published(case), prompt) for prompt in asked]


def test_ours_is_a_copy() -> None:
    theirs = copy.deepcopy(published("llama-tied"))
    model = decoder_from_hf(theirs.config, theirs.state_dict())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.no_grad():
        for p in theirs.parameters():
            p.fill_(float("nan"))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.head.weight is model.embed.weight
    model(torch.zeros(1, 2, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_another_dtype_is_taken_when_it_is_asked_for() -> None:
    theirs = published("qwen3")
    model = decoder_from_hf(theirs.config, theirs.state_dict(), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(generate(model, prompts(), 4)) == 3
