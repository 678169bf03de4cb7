"""Decoding on a GPU: Triton against the reference and against fp64, graphs against plain steps, no wait, no leak."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import judge
from kernels.decoupled.policy import KVCachePolicy
from tests.models.test_generate import PROMPTS, SPEC
from workloads.contract.config.job import ModelSpec
from workloads.decode.conversation import Conversation
from workloads.decode.generate import generate
from workloads.decode.steps import Reply, decode, ends, last_logits, pack, plain_step
from workloads.models.decoder import Decoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
VOCAB, REACH = 23, 40
ASKED = [[3, 5], [1, 8, 15], [22, 21]]
HALVES = [torch.float16, torch.bfloat16]


@functools.cache
def counting() -> Decoder:
    """A model that goes on counting in the step of its prompt, modulo 23: its likeliest token leads by about 6, and
    it depends on tokens that only attention sees. Trained in fp32, 400 steps."""
    torch.manual_seed(0)
    steps, spec = 400, ModelSpec(dim=64, layers=2, heads=4, kv_heads=2, qk_norm=True)
    with torch.device(CUDA):
        model = Decoder(spec, VOCAB)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps) + 1e-5
            first, stride = torch.randint(0, VOCAB, (64, 1)), torch.randint(1, VOCAB, (64, 1))
            x_BT = (first + stride * torch.arange(REACH + 8)) % VOCAB
            loss = F.cross_entropy(model(x_BT[:, :-1])[:, 1:].flatten(0, 1), x_BT[:, 2:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert loss.item() < 0.05
    return model.eval()


def counted(prompt: list[int], steps: int) -> list[int]:
    return [(prompt[-1] + (prompt[1] - prompt[0]) * (i + 1)) % VOCAB for i in range(steps)]


def counting_in(dtype: torch.dtype) -> Decoder:
    model = Decoder(counting().spec, VOCAB).to(CUDA, dtype).eval()
    model.load_state_dict(counting().state_dict())
    return model


@pytest.mark.parametrize("dtype", HALVES)
def test_tokens_are_equal_by_triton_reference_replay_and_graph(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = counting_in(dtype), REACH - 4
    wanted = [counted(prompt, steps) for prompt in ASKED]
    assert generate(model, ASKED, steps) == wanted
    assert generate(model, ASKED, steps, graphed=True) == wanted
    assert generate(model, ASKED, steps, use_cache=False) == wanted
    monkeypatch.setenv("KERNELS_BACKEND", "reference")
    assert generate(model, ASKED, steps) == wanted
    with pytest.raises(ValueError, match="Triton"):
        generate(model, ASKED, steps, graphed=True)


def cached_logits(model: Decoder, parts: list[Tensor], counts: Tensor) -> Tensor:
    """Logits of each row's last token after a ragged prompt, then of every single token [B, 1 + steps, V]."""
    with torch.no_grad():
        caches = model.new_caches(len(counts), 256)
        found = [last_logits(model, parts[0], counts, caches)]
        found += [model(part, caches=caches)[:, -1] for part in parts[1:]]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_logits_of_a_ragged_batch_are_within_the_rule(
    dtype: torch.dtype, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    spec = ModelSpec(dim=128, layers=3, heads=8, kv_heads=2, head_dim=head_dim, qk_norm=True)
    model = Decoder(spec, 97).to(CUDA, dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    counts = torch.tensor([150, 1, 64, 65], dtype=torch.int32, device=CUDA)
    x_BT = torch.randint(0, 97, (4, 150), device=CUDA)
    parts = [x_BT, *torch.randint(0, 97, (40, 4, 1), device=CUDA)]
    out = cached_logits(model, parts, counts)
    monkeypatch.setenv("KERNELS_BACKEND", "reference")
    peer = cached_logits(model, parts, counts)
    wide = model.double()
    with torch.no_grad():
        rows = [torch.cat([x_BT[b, :n], *(p[b] for p in parts[1:])]) for b, n in enumerate(counts.tolist())]
        ref = torch.stack([wide(row.unsqueeze(0))[0, -41:] for row in rows])
    assert 0.3 < float(ref.std()) < 30
    verdict = judge(out, ref, peer)
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("graphed", [False, True])
def test_turns_with_growth_equal_turns_that_start_over(graphed: bool) -> None:
    model = counting_in(torch.bfloat16)
    talk = Conversation(model, rows=3, capacity=8, max_capacity=64, graphed=graphed)
    said: list[list[int]] = [[], [], []]
    nothing: list[list[int]] = [[], [], []]
    for news in (ASKED, nothing, nothing):
        replies = talk.turn(news, 11)
        said = [old + new + reply for old, new, reply in zip(said, news, replies, strict=True)]
        assert talk.tokens == said
        assert [cache.lengths.tolist() for cache in talk.caches] == [[len(row) for row in said]] * 2
    assert said == [prompt + counted(prompt, 33) for prompt in ASKED]
    assert talk.caches[0].capacity > 32
    child = talk.fork([2, 0])
    talk.back(2)
    assert talk.turn([[row[-1]] for row in said], 1) and talk.turns == 2
    assert child.tokens == [said[2], said[0]]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_host_never_waits_between_two_looks(dtype: torch.dtype) -> None:
    model = Decoder(SPEC, 61).to(CUDA, dtype).eval()
    tokens_BT, counts_B = pack(PROMPTS, 61, CUDA)
    eos_E = ends([7, 9], 61, CUDA)

    def run(steps: int, mode: str) -> Reply:
        reply, caches = Reply(3, steps, eos_E), model.new_caches(3, 64)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.no_grad():
                logits_BV = last_logits(model, tokens_BT, counts_B, caches)
                step = plain_step(model, caches)
                decode(caches, step, logits_BV, reply, lambda x: x.argmax(-1), keep=True, sync_every=1000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return reply

    wanted = run(24, "default").rows()  # compiles
    assert run(24, "error").rows() == wanted


@pytest.mark.parametrize("graphed", [False, True])
def test_1000_steps_hold_memory_flat(graphed: bool) -> None:
    model = Decoder(SPEC, 61).to(CUDA, torch.bfloat16).eval()
    talk = Conversation(model, rows=4, capacity=1100, graphed=graphed)
    talk.turn([[1]] * 4, 100)
    before = torch.cuda.memory_allocated()
    for _ in range(18):
        talk.turn([[]] * 4, 50)
    torch.cuda.synchronize()
    assert len(talk.tokens[0]) == 1001
    assert torch.cuda.memory_allocated() - before <= 1 << 16


def test_another_conversation_that_grows_the_tables_does_not_disturb_a_graph() -> None:
    model = counting_in(torch.bfloat16)
    talk = Conversation(model, rows=3, capacity=48, graphed=True)
    wanted = [counted(prompt, 30) for prompt in ASKED]
    assert [row[:10] for row in wanted] == talk.turn(ASKED, 10)
    other = Conversation(model, capacity=4096, graphed=True)
    other.turn([ASKED[0]], 4)
    junk = [torch.full((512,), float("nan"), device=CUDA) for _ in range(4000)]  # where the old tables were
    assert [row[10:] for row in wanted] == talk.turn([[], [], []], 20)
    assert len(junk) == 4000
    assert other.turn([[]], 4) == [counted(ASKED[0], 8)[4:]]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "formats", ["ksem=fp16,kgeo=fp16,v=fp16,resid=5", "ksem=q8_0@32,kgeo=q8_0@32,v=q8_0@32,resid=4"]
)
def test_a_policys_cache_by_graph_says_what_single_launches_say(dtype: torch.dtype, formats: str) -> None:
    """And both count on, as the model does: neither a warm-up step nor a replay leaves a trace in tail or parts."""
    model, policy, said = counting_in(dtype), KVCachePolicy.parse(formats), []
    for graphed in (False, True):
        talk = Conversation(model, rows=3, capacity=64, graphed=graphed, policy=policy)
        talk.read(ASKED)
        talk.prepare()
        replies = [talk.turn([[]] * 3, 12)]
        talk.prepare()
        child = talk.fork([2, 0])
        replies += [child.turn([[], []], 4), talk.turn([[]] * 3, 9)]
        assert talk.logits is not None
        said.append((replies, talk.logits.float(), talk.tokens))
    assert said[0][0] == said[1][0] and said[0][2] == said[1][2]
    torch.testing.assert_close(said[0][1], said[1][1], rtol=0, atol=2e-2)
    assert said[1][0][0][0] == counted(ASKED[0], 12)
