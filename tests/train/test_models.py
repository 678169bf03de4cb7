"""The decoder and its attention: cached decoding and packing, against the plain forward pass."""

from __future__ import annotations

import pytest
import torch

from workloads.contract.config.job import ModelSpec
from workloads.models.attention import make_attention
from workloads.models.decoder import Decoder
from workloads.models.rope import Rope

SPEC = ModelSpec(dim=32, layers=2, heads=4, kv_heads=2)


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(SPEC, 256).eval()


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunks", [[12], [5, 1, 1, 1, 4], [1] * 12])
def test_cached_decoding_equals_the_full_forward_pass(model: Decoder, chunks: list[int]) -> None:
    x_BT = tokens(3, 12)
    caches = model.new_caches(3, 16)
    with torch.no_grad():
        whole = model(x_BT)
        parts = [model(part, caches=caches) for part in torch.split(x_BT, chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
    for cache in caches:
        cache.check()
        assert cache.lengths.tolist() == [12, 12, 12] and cache.lengths.dtype == torch.int32


def test_rows_of_different_length_after_truncate(model: Decoder) -> None:
    x_BT = tokens(2, 10)
    caches = model.new_caches(2, 16)
    with torch.no_grad():
        model(x_BT[:, :8], caches=caches)
        for cache in caches:
            cache.truncate(torch.tensor([8, 5]))
        after = model(torch.stack((x_BT[0, 8:9], x_BT[1, 5:6])), caches=caches)
        first, second = model(x_BT[:1, :9])[:, -1], model(x_BT[1:, :6])[:, -1]
    torch.testing.assert_close(after[:, 0], torch.cat((first, second)), rtol=1e-5, atol=1e-5)


def test_a_fork_is_a_copy(model: Decoder) -> None:
    x_BT = tokens(2, 6)
    caches = model.new_caches(2, 8)
    with torch.no_grad():
        model(x_BT[:, :5], caches=caches)
        forks = [c.fork(torch.tensor([1, 1, 0])) for c in caches]
        out = model(x_BT[[1, 1, 0], 5:], caches=forks)
        whole = model(x_BT)[[1, 1, 0], -1]
    torch.testing.assert_close(out[:, 0], whole, rtol=1e-5, atol=1e-5)
    assert caches[0].lengths.tolist() == [5, 5] and forks[0].lengths.tolist() == [6, 6, 6]


def test_rows_that_are_padded_equal_rows_alone(model: Decoder) -> None:
    x_BT, counts = tokens(3, 9), torch.tensor([4, 0, 9])
    caches = model.new_caches(3, 16)
    with torch.no_grad():
        model(x_BT[:, :2], caches=caches)
        padded = model(x_BT, caches=caches, counts=counts)
        assert [c.lengths.tolist() for c in caches] == [[6, 2, 11]] * 2
        for row in (0, 2):
            own = torch.cat((x_BT[row : row + 1, :2], x_BT[row : row + 1, : counts[row]]), dim=1)
            torch.testing.assert_close(padded[row, : counts[row]], model(own)[0, 2:], rtol=1e-5, atol=1e-5)


def test_a_cache_that_grows_gives_what_a_large_one_gives(model: Decoder) -> None:
    x_BT = tokens(2, 24)
    small, large = model.new_caches(2, 4, 32), model.new_caches(2, 32)
    with torch.no_grad():
        for part in torch.split(x_BT, [3, 1, 1, 12, 1, 6], dim=1):
            torch.testing.assert_close(model(part, caches=small), model(part, caches=large), rtol=1e-5, atol=1e-5)
    assert small[0].capacity < 32 + 1 and small[0].lengths.tolist() == [24, 24]


def test_the_number_of_caches_is_checked(model: Decoder) -> None:
    with pytest.raises(ValueError, match="1 caches for 2 layers"):
        model(tokens(1, 2), caches=model.new_caches(1, 4)[:1])


def test_packed_sequences_do_not_see_each_other(model: Decoder) -> None:
    lengths = [4, 1, 7]
    parts = torch.split(tokens(1, 12), lengths, dim=1)
    borders = torch.tensor([0, 4, 5, 12], dtype=torch.int32)
    with torch.no_grad():
        packed = model(torch.cat(parts, dim=1), cu_seqlens=borders)
        alone = torch.cat([model(part) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("borders", [[0, 4], [1, 8], [0, 5, 5, 8], [0, 6, 3, 8], [8]])
def test_bad_borders_are_refused(model: Decoder, borders: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        model(tokens(1, 8), cu_seqlens=torch.tensor(borders))


def test_packing_needs_one_row_without_a_cache() -> None:
    attention, rope = make_attention(SPEC), Rope(8, 10_000.0, 8)
    borders, place = torch.tensor([0, 8]), torch.arange(8)
    with pytest.raises(ValueError, match="one row"):
        attention(torch.zeros(2, 8, 32), rope=rope, positions=place, cu_seqlens=borders)
    cache = attention.new_cache(1, 8, torch.float32, "cpu")
    with pytest.raises(ValueError, match="one row"):
        attention(torch.zeros(1, 8, 32), rope=rope, positions=place, cu_seqlens=borders, cache=cache)
    with pytest.raises(ValueError, match="counts"):
        attention(torch.zeros(1, 8, 32), rope=rope, positions=place, counts=torch.tensor([3]))


def test_attention_is_causal_and_reports_no_metrics(model: Decoder) -> None:
    x_BT = tokens(1, 8)
    changed = x_BT.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 256
    with torch.no_grad():
        a, b = model(x_BT), model(changed)
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])
    assert model.metrics() == {}


def test_grouped_queries_equal_repeated_heads() -> None:
    torch.manual_seed(3)
    grouped = make_attention(SPEC)
    full = make_attention(ModelSpec(dim=32, layers=2, heads=4, kv_heads=4))
    q, k, v = torch.split(grouped.qkv.weight.detach(), [32, 16, 16])
    repeated = [w.reshape(2, 1, 8, 32).expand(2, 2, 8, 32).reshape(32, 32) for w in (k, v)]
    with torch.no_grad():
        full.qkv.weight.copy_(torch.cat((q, *repeated)))
        full.out.weight.copy_(grouped.out.weight)
        x, rope, place = torch.randn(2, 6, 32), Rope(8, 10_000.0, 6), torch.arange(6)
        torch.testing.assert_close(grouped(x, rope=rope, positions=place), full(x, rope=rope, positions=place))


def test_rotation_depends_on_distance_only() -> None:
    rope = Rope(8, 10_000.0, 64)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i: int, j: int) -> torch.Tensor:
        return (rope.rotate(q, torch.tensor([i])) * rope.rotate(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(score(9, 4), score(59, 54))
    torch.testing.assert_close(score(0, 0), (q * k).sum())


def test_a_vocabulary_below_the_tokenizers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab"):
        Decoder(ModelSpec(dim=32, vocab=100), 256)
