"""Conversations: the cache holds exactly what was said, a turn computes only its own tokens, and nothing leaks."""

from __future__ import annotations

import gc
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.models.published import prompts as long_prompts
from tests.models.published import published
from tests.models.test_generate import MODEL, make_model, seen_tokens
from workloads.contract.config.job import ModelSpec
from workloads.decode.conversation import Conversation
from workloads.decode.generate import generate
from workloads.decode.sampling import Sampling
from workloads.models.decoder import Decoder
from workloads.models.hf import decoder_from_hf

VOCAB = 61


def assert_holds_what_was_said(talk: Conversation, model: Decoder = MODEL) -> None:
    """Keys and values of every layer are those of a fresh prefill of the same tokens."""
    for row, said in enumerate(talk.tokens):
        if said:
            fresh = model.new_caches(1, len(said))
            with torch.no_grad():
                model(torch.tensor([said]), caches=fresh)
        for layer, cache in enumerate(talk.caches):
            assert int(cache.lengths[row]) == len(said)
            if said:
                for held, wanted in ((cache.k, fresh[layer].k), (cache.v, fresh[layer].v)):
                    torch.testing.assert_close(held[row, :, : len(said)], wanted[0], rtol=1e-5, atol=1e-5)


def after(talk: Conversation, model: Decoder = MODEL) -> torch.Tensor:
    """Logits after each row's newest token, through the talk's caches. Uses a fork: the talk stays as it is."""
    child = talk.fork()
    child.read([[3]] * len(child.tokens))
    with torch.no_grad():
        fresh = torch.stack([model(torch.tensor([said]))[0, -1] for said in child.tokens])
    assert child._logits_BV is not None
    torch.testing.assert_close(child._logits_BV, fresh, rtol=0, atol=1e-5)
    return fresh


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_turns_on_one_cache_equal_turns_that_start_over(case: str) -> None:
    theirs = published(case)
    model = decoder_from_hf(theirs.config, theirs.state_dict())
    asked, ended = long_prompts(), False
    said: list[list[int]] = [[], [], []]
    eos = generate(model, asked, 30)[0][20]
    talk = Conversation(model, rows=3, capacity=16, max_capacity=512, eos=eos)
    for turn in range(4):
        news = [p[turn:] or [turn] for p in asked]
        said = [old + new for old, new in zip(said, news, strict=True)]
        wanted = generate(model, said, 40, eos=eos, use_cache=False)
        assert talk.turn(news, 40) == wanted
        ended |= any(row[-1] == eos for row in wanted)
        said = [old + new for old, new in zip(said, wanted, strict=True)]
        assert talk.tokens == said
        assert_holds_what_was_said(talk, model)
        with torch.no_grad():
            fresh_BV = torch.stack([model(torch.tensor([row]))[0, -1] for row in said])
        assert talk._logits_BV is not None
        assert float((talk._logits_BV - fresh_BV).abs().max()) <= 1e-5
    assert ended  # the end of a turn is in the cache of the next one


def test_a_turn_computes_its_own_tokens_only() -> None:
    model = make_model()
    talk = Conversation(model, capacity=128)
    seen = seen_tokens(model)
    talk.turn([[1, 2, 3, 4, 5, 6, 7]], 5)
    assert seen == [(1, 7), *[(1, 1)] * 5] and talk.computed == 12
    seen.clear()
    talk.turn([[8, 9]], 4)
    assert seen == [(1, 2), *[(1, 1)] * 4] and talk.computed == 18
    seen.clear()
    talk.fork([0, 0]).turn([[1], [2]], 2)
    assert seen == [(2, 1), *[(2, 1)] * 2] and talk.computed == 18


def test_a_later_turn_is_faster_than_the_first() -> None:
    model = Decoder(ModelSpec(dim=128, layers=2, heads=4, kv_heads=2), VOCAB).eval()
    talk = Conversation(model, capacity=2048)
    talk.fork().turn([[0] * 64], 2)  # what is done once in a process is not the first turn's
    times = []
    for prompt in ([i % VOCAB for i in range(1800)], [1, 2, 3]):
        began = time.perf_counter()
        talk.turn([prompt], 2)
        times.append(time.perf_counter() - began)
    assert times[1] < times[0]


def test_a_fork_shares_the_past_and_nothing_else() -> None:
    talk = Conversation(MODEL, rows=2, capacity=64)
    talk.read([[1, 2, 3], [4]])
    talk.turn([[5], [6, 7]], 3)
    past = talk.tokens
    child = talk.fork([1, 0, 1])
    assert child.tokens == [past[1], past[0], past[1]] and child.turns == 2
    child.turn([[9], [10], [11, 12]], 6)
    assert talk.tokens == past
    for one in (talk, child):
        assert_holds_what_was_said(one)
    child.back(2)
    assert child.tokens == [[4], [1, 2, 3], [4]]
    assert_holds_what_was_said(child)
    after(talk)


def test_a_shared_prompt_is_read_once_and_drawn_from_many_times() -> None:
    model = make_model()
    talk = Conversation(model, capacity=64, sampling=Sampling(temperature=3.0, seed=1))
    talk.read([[1, 2, 3, 4]])
    seen = seen_tokens(model)
    drawn = talk.fork([0] * 8).turn([[]] * 8, 6)
    assert seen == [(8, 1)] * 6 and len({tuple(row) for row in drawn}) > 1
    assert talk.fork([0] * 8).turn([[]] * 8, 6) == drawn != talk.fork([0] * 8, seed=2).turn([[]] * 8, 6)


def test_going_on_equals_one_longer_turn() -> None:
    whole = Conversation(MODEL, rows=2, capacity=64).turn([[1, 2], [3]], 12)
    talk = Conversation(MODEL, rows=2, capacity=64)
    parts = [talk.turn([[1, 2], [3]], 5), talk.turn([[], []], 7)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_back_and_again_is_the_same() -> None:
    talk = Conversation(MODEL, capacity=64)
    talk.turn([[1, 2, 3]], 4)
    said = talk.tokens
    first = talk.turn([[4]], 5)
    talk.back()
    assert talk.tokens == said and talk.turns == 1
    with pytest.raises(ValueError, match="row 0 has an empty prompt and nothing to go on from"):
        talk.turn([[]], 1)
    assert talk.turn([[4]], 5) == first
    with pytest.raises(ValueError, match="cannot go back 3 turns: there are 2"):
        talk.back(3)


def test_a_row_that_ended_makes_room_no_problem() -> None:
    """One row is long and ends at once while another goes on: the long one's steps must not overflow its cache."""
    free = generate(MODEL, [[5] * 20, [1]], 30)
    eos = free[0][0]
    wanted = generate(MODEL, [[5] * 20, [1]], 18, eos=eos)
    assert len(wanted[0]) == 1 and len(wanted[1]) == 18
    talk = Conversation(MODEL, rows=2, capacity=21, eos=eos)
    assert talk.turn([[5] * 20, [1]], 18) == wanted
    assert_holds_what_was_said(talk)
    assert talk.caches[0].capacity == 21


def test_a_turn_without_room_changes_nothing() -> None:
    talk = Conversation(MODEL, rows=2, capacity=8, max_capacity=24)
    first = talk.turn([[1, 2, 3], [4]], 6)
    said, computed = talk.tokens, talk.computed
    assert talk.caches[0].capacity == 16
    for prompts, steps in (([[1] * 30, [2]], 1), ([[1], [2]], 20)):
        with pytest.raises(ValueError, match=r"row 0 .*24"):
            talk.turn(prompts, steps)
        assert talk.tokens == said and talk.computed == computed and talk.turns == 1
        assert_holds_what_was_said(talk)
    more = talk.turn([[7], [8]], 5)
    other = Conversation(MODEL, rows=2, capacity=64)
    assert (other.turn([[1, 2, 3], [4]], 6), other.turn([[7], [8]], 5)) == (first, more)


def test_an_interrupted_turn_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(MODEL, capacity=64)
    talk.turn([[1, 2, 3]], 3)
    said, block, calls = talk.tokens, MODEL.blocks[1], itertools.count()
    honest = block.forward

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)

    monkeypatch.setattr(block, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk.turn([[4, 5]], 9)
    assert talk.tokens == said
    assert_holds_what_was_said(talk)


def test_nonsense_is_refused() -> None:
    talk = Conversation(MODEL, rows=2, capacity=8)
    for prompts, steps, words in (
        ([[1]], 1, "1 prompts for 2 rows"),
        ([[1], []], 1, "row 1 has an empty prompt"),
        ([[1], [2]], 0, "max_new_tokens 0"),
        ([[1], [99]], 1, "row 1, token 0: 99"),
    ):
        with pytest.raises(ValueError, match=words):
            talk.turn(prompts, steps)
    for rows in ([], [2], [-1]):
        with pytest.raises(ValueError, match="at least one, each of"):
            talk.fork(rows)
    with pytest.raises(ValueError, match="CUDA"):
        Conversation(MODEL, graphed=True)
    assert talk.tokens == [[], []] and talk.turns == 0


def alive() -> tuple[int, int]:
    """(number, bytes) of the tensors that exist."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return len(found), sum(t.untyped_storage().nbytes() for t in found)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_1000_steps_hold_memory_flat() -> None:
    talk = Conversation(MODEL, rows=2, capacity=1100)
    talk.turn([[1, 2], [3]], 100)
    before, resident = alive(), resident_bytes()
    for _ in range(20):
        talk.turn([[], []], 45)
    assert len(talk.tokens[0]) == 1002
    assert alive() == before
    assert resident_bytes() - resident < 8 << 20


class Talks(RuleBasedStateMachine):
    """Turns, reads, steps back and forks in any order, against lists of tokens and generation that starts over."""

    @initialize(rows=st.integers(1, 3), capacity=st.integers(1, 12), eos=st.integers(0, VOCAB - 1))
    def begin(self, rows: int, capacity: int, eos: int) -> None:
        self.eos = {eos, (eos + 17) % VOCAB, (eos + 34) % VOCAB}
        self.talk = Conversation(MODEL, rows=rows, capacity=capacity, max_capacity=64, eos=self.eos, sync_every=3)
        self.said: list[list[list[int]]] = [[[] for _ in range(rows)]]

    @rule(data=st.data(), steps=st.integers(0, 6))
    def speak(self, data: st.DataObject, steps: int) -> None:
        rows = len(self.said[-1])
        news = [data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)) for _ in range(rows)]
        full = [old + new for old, new in zip(self.said[-1], news, strict=True)]
        wanted = generate(MODEL, full, steps, eos=self.eos, use_cache=False) if steps else [[] for _ in full]
        total = [old + new for old, new in zip(full, wanted, strict=True)]
        if max(map(len, total)) > 64:
            with pytest.raises(ValueError, match="64"):
                self.talk.turn(news, steps) if steps else self.talk.read(news)
            return
        if steps:
            assert self.talk.turn(news, steps) == wanted
        else:
            self.talk.read(news)
        self.said.append(total)

    @precondition(lambda self: len(self.said) > 1)
    @rule(data=st.data())
    def back(self, data: st.DataObject) -> None:
        turns = data.draw(st.integers(1, len(self.said) - 1))
        self.talk.back(turns)
        del self.said[-turns:]

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.integers(0, len(self.said[-1]) - 1), min_size=1, max_size=3))
        self.talk = self.talk.fork(rows)
        self.said = [[turn[r] for r in rows] for turn in self.said]

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "talk"):
            assert self.talk.tokens == self.said[-1]
            assert self.talk.turns == len(self.said) - 1
            assert_holds_what_was_said(self.talk)


TestTalks = Talks.TestCase
TestTalks.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
