"""Generation: where rows end, what is refused, that padding and the neighbours of a row change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workloads.contract.config.job import ModelSpec
from workloads.decode import generate as generation
from workloads.decode import steps
from workloads.decode.generate import generate
from workloads.decode.sampling import Sampling
from workloads.decode.steps import last_logits, pack
from workloads.models.decoder import Decoder

SPEC = ModelSpec(dim=32, layers=2, heads=4, kv_heads=2, qk_norm=True)
PROMPTS = [[5, 6, 7, 8, 9], [40], [1, 2, 3] * 7]


def make_model() -> Decoder:
    torch.manual_seed(7)
    model = Decoder(SPEC, 61).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6.0 if p.ndim > 1 else 1.0)  # logits that differ clearly
    return model


MODEL = make_model()


def seen_tokens(model: Decoder) -> list[tuple[int, int]]:
    """(B, T) of every forward pass from now on."""
    seen: list[tuple[int, int]] = []

    def note(_: object, args: tuple[Tensor, ...]) -> None:
        seen.append((args[0].shape[0], args[0].shape[1]))

    model.embed.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("sync_every", [1, 4, 100])
def test_each_row_ends_at_its_own_end_and_keeps_it(use_cache: bool, sync_every: int) -> None:
    free = generate(MODEL, PROMPTS, 40)
    eos = {free[0][11], free[1][3]}
    wanted = [row[: next((i + 1 for i, t in enumerate(row) if t in eos), 40)] for row in free]
    assert len({len(row) for row in wanted}) > 1
    assert generate(MODEL, PROMPTS, 40, eos=eos, use_cache=use_cache, sync_every=sync_every) == wanted


def test_steps_stop_when_all_rows_have_ended() -> None:
    model = make_model()
    first = generate(model, PROMPTS, 1)
    seen = seen_tokens(model)
    assert generate(model, PROMPTS, 50, eos={row[0] for row in first}, sync_every=1) == first
    assert seen == [(3, 21)]
    seen.clear()
    assert generate(model, PROMPTS, 50, eos={row[0] for row in first}, sync_every=4) == first
    assert seen == [(3, 21), (3, 1), (3, 1), (3, 1)]


def test_the_cache_computes_each_token_once_and_the_replay_all_of_them() -> None:
    model = make_model()
    seen = seen_tokens(model)
    generate(model, PROMPTS[:1], 6)
    assert seen == [(1, 5), *[(1, 1)] * 5]
    seen.clear()
    generate(model, PROMPTS[:1], 6, use_cache=False)
    assert seen == [(1, n) for n in range(5, 11)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_row_in_a_batch_is_the_row_alone(prompts: list[list[int]]) -> None:
    tokens_BT, counts_B = pack(prompts, 61, torch.device("cpu"))
    with torch.no_grad():
        caches = MODEL.new_caches(len(prompts), tokens_BT.shape[1])
        batch = last_logits(MODEL, tokens_BT, counts_B, caches)
        for row, prompt in enumerate(prompts):
            alone = MODEL(torch.tensor([prompt]))[0, -1]
            torch.testing.assert_close(batch[row], alone, rtol=1e-5, atol=2e-5)
    assert caches[0].lengths.tolist() == [len(p) for p in prompts]


def test_what_the_padding_holds_changes_nothing() -> None:
    tokens_BT, counts_B = pack(PROMPTS, 61, torch.device("cpu"))
    other_BT = torch.where(torch.arange(21) < counts_B.unsqueeze(1), tokens_BT, 33)
    with torch.no_grad():
        a, b = (last_logits(MODEL, x, counts_B, MODEL.new_caches(3, 21)) for x in (tokens_BT, other_BT))
    assert torch.equal(a, b)


def test_draws_are_repeatable_and_stay_among_the_likeliest() -> None:
    how = Sampling(temperature=2.0, top_k=3, seed=4)
    drawn = generate(MODEL, PROMPTS, 30, sampling=how)
    assert drawn == generate(MODEL, PROMPTS, 30, sampling=how)
    assert drawn == generate(MODEL, PROMPTS, 30, sampling=how, use_cache=False)
    assert drawn != generate(MODEL, PROMPTS, 30, sampling=Sampling(temperature=2.0, top_k=3, seed=5))
    assert drawn != generate(MODEL, PROMPTS, 30)
    with torch.no_grad():
        for prompt, row in zip(PROMPTS, drawn, strict=True):
            logits = MODEL(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1]
            likely = logits.topk(3, dim=-1).values[:, -1]
            assert (logits.gather(1, torch.tensor(row).unsqueeze(1)).squeeze(1) >= likely - 1e-4).all()


@pytest.mark.parametrize(
    ("prompts", "limit", "more", "words"),
    [
        ([], 1, {}, "at least one token"),
        ([[1], []], 1, {}, r"lengths \[1, 0\]"),
        ([[1], [2, 61]], 1, {}, "row 1, token 1: 61"),
        ([[-1]], 1, {}, "row 0, token 0: -1"),
        ([[1.5]], 1, {}, r"1\.5 is no token"),
        ([[1]], 0, {}, "max_new_tokens 0"),
        ([[1]], 1, {"sync_every": 0}, "sync_every 0"),
        ([[1]], 1, {"eos": 61}, "eos 61"),
        ([[1]], 1, {"graphed": True}, "CUDA"),
        ([[1]], 1, {"graphed": True, "use_cache": False}, "needs use_cache"),
    ],
)
def test_nonsense_is_refused(prompts: Sequence[Sequence[int]], limit: int, more: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate(MODEL, prompts, limit, **more)  # type: ignore[arg-type]


def test_a_broken_cache_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the replay can fail: a cache whose rows forget their newest token gives other tokens."""
    honest = steps.decode

    def forgetful(caches: Sequence[object], *args: object, **kwargs: object) -> object:
        for cache in caches:
            cache.truncate(4)  # type: ignore[attr-defined]
        return honest(caches, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "decode", forgetful)
    assert generate(MODEL, PROMPTS, 40) != generate(MODEL, PROMPTS, 40, use_cache=False)
