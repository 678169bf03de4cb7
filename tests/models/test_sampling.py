"""How the next token is chosen, against distributions that can be written down."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workloads.decode.sampling import GREEDY, Sampling, choose, kept

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()


def test_greedy_is_the_first_of_the_likeliest() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 3.0], [-1.0, -2.0, -torch.inf]]), GREEDY).tolist() == [1, 0]
    assert GREEDY.generator(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Sampling(1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_p=0.79), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(1.0, top_p=1e-9), [1.0, 0, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.8), [0.625, 0.375, 0, 0]),
    ],
)
def test_what_is_kept(how: Sampling, wanted: list[float]) -> None:
    both = kept(LOGITS, how)
    torch.testing.assert_close(both, torch.tensor([wanted, wanted[::-1]]), rtol=1e-5, atol=1e-6)
    assert (both == 0).tolist() == [[w == 0 for w in wanted], [w == 0 for w in wanted[::-1]]]


def test_draws_follow_the_probabilities() -> None:
    how, draws = Sampling(1.0, top_k=3, seed=3), 20_000
    drawn = choose(LOGITS[:1].expand(draws, -1), how, how.generator(torch.device("cpu")))
    share = torch.bincount(drawn, minlength=4) / draws
    wanted = kept(LOGITS[:1], how)[0]
    bound = 5 * (wanted * (1 - wanted) / draws).sqrt()  # five standard deviations
    assert ((share - wanted).abs() <= bound).all() and share[3] == 0


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    wide = torch.zeros(64, 1000)

    def drawn(seed: int) -> list[int]:
        how = Sampling(1.0, seed=seed)
        return choose(wide, how, how.generator(torch.device("cpu"))).tolist()

    assert drawn(1) == drawn(1) != drawn(2)


@settings(max_examples=60, deadline=None)
@example(logits=[0.0, 1.377e-13], temperature=1.0, top_k=None, top_p=0.5)  # one number as probabilities
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12),
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(1e-3, 1.0),
)
def test_something_is_always_kept_and_it_is_the_likeliest(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    row = torch.tensor([logits])
    probs = kept(row, Sampling(temperature, top_k, top_p))
    assert probs.isfinite().all() and math.isclose(float(probs.sum()), 1.0, rel_tol=1e-5)
    likeliest = row[0] / temperature
    assert probs[0, likeliest == likeliest.max()].max() > 0
    cut = probs[0] == 0
    if top_k is not None:
        scaled = row[0] / temperature
        assert int((~cut).sum()) <= int((scaled >= scaled.sort(descending=True).values[:top_k][-1]).sum())
    if cut.any() and not cut.all():
        assert row[0][cut].max() <= row[0][~cut].min()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 4}, "give a temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p 0\.0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p 1\.5"),
    ],
)
def test_nonsense_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampling(**given)  # type: ignore[arg-type]
