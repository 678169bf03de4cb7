"""The models' decoding through the Triton kernels (their interpreter, where there is no GPU)."""

from __future__ import annotations

import pytest
import torch

from kernels.decoupled.policy import KVCachePolicy
from workloads.contract.config.job import ModelSpec
from workloads.decode.conversation import Conversation
from workloads.decode.generate import generate
from workloads.models.decoder import Decoder

ASKED = [[1, 2, 3, 4, 5], [6], [7, 8]]


@pytest.fixture
def model(device: torch.device) -> Decoder:
    torch.manual_seed(11)
    spec = ModelSpec(dim=32, layers=2, heads=4, kv_heads=2, head_dim=20, qk_norm=True)
    model = Decoder(spec, 61).to(device).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6.0 if p.ndim > 1 else 1.0)
    return model


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("fp32 models do not go through Triton on a GPU: tests/models/test_decode_gpu.py")
    monkeypatch.setenv("KERNELS_BACKEND", "triton")


def test_greedy_tokens_through_triton_are_those_that_start_over(model: Decoder) -> None:
    eos = generate(model, ASKED, 4, use_cache=False)[1][2]
    wanted = generate(model, ASKED, 7, eos=eos, use_cache=False)
    assert len({len(row) for row in wanted}) > 1
    assert generate(model, ASKED, 7, eos=eos, sync_every=2) == wanted


def test_turns_through_triton_with_growth_and_fork(model: Decoder) -> None:
    talk = Conversation(model, rows=3, capacity=6, max_capacity=32)
    first = talk.turn(ASKED, 3)
    child = talk.fork([2, 0])
    second = talk.turn([[9], [10, 11], [12]], 2)
    said = [p + r for p, r in zip(ASKED, first, strict=True)]
    full = [s + n for s, n in zip(said, [[9], [10, 11], [12]], strict=True)]
    assert second == generate(model, full, 2, use_cache=False)
    assert talk.caches[0].capacity > 6
    assert child.turn([[13], [14]], 2) == generate(model, [[*said[2], 13], [*said[0], 14]], 2, use_cache=False)
    with torch.no_grad():
        for row, tokens in enumerate(talk.tokens):
            caches = model.new_caches(1, len(tokens))
            model(torch.tensor([tokens]), caches=caches)
            for mine, fresh in zip(talk.caches, caches, strict=True):
                torch.testing.assert_close(mine.k[row, :, : len(tokens)], fresh.k[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(mine.v[row, :, : len(tokens)], fresh.v[0], rtol=1e-5, atol=1e-5)


def test_turns_on_a_policys_cache_through_triton_are_those_of_the_reference(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 20, so halves of 10 in groups that are padded; a tail of 2 that turns, and rows of different lengths."""
    said = []
    for backend in ("triton", "reference"):
        monkeypatch.setenv("KERNELS_BACKEND", backend)
        policy = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=2")
        talk = Conversation(model, rows=2, capacity=16, policy=policy)
        replies = [talk.turn(ASKED[:2], 3), talk.turn([[9, 10], []], 1)]
        assert talk.logits is not None
        said.append((replies, talk.logits))
    assert said[0][0] == said[1][0]
    torch.testing.assert_close(said[0][1], said[1][1], rtol=0, atol=1e-3)
