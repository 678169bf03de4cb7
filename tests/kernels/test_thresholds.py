"""Thresholds files, and what the dispatch of the decode kernels makes of them on GPUs that are not here.

A made-up name, capability and file stand for the GPU; what answers is real: the kernels in the interpreter (or on the
GPU that runs the tests), PyTorch's SDPA, the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.kv_decode
from kernels import device as machine
from kernels import thresholds
from kernels.decoupled import KVCachePolicy, QuantizedCache, decoupled_decode
from kernels.decoupled import dispatch as decoupled_dispatch
from kernels.decoupled.plan import DecoupledPlan
from kernels.kv_decode import api, dispatch, sdpa
from kernels.kv_decode.plan import DecodePlan
from kernels.thresholds import Rule, Thresholds
from tests.kernels.test_kv_decode import HALF, held, rand, step

GPU = "NVIDIA Z9 PCIe 24GB"
RULES = (
    Rule(2, 64, "fp16", 4, 16, "triton"),
    Rule(2, 64, "fp16", 4, 32, "sdpa-flash"),
    Rule(2, 64, "fp16", 4, 128, "triton"),
)
FILE = Thresholds(1, "kv-decode", GPU, 1.2, "abc", "2026-11-21", "rows.jsonl", RULES)
CALLED = "$ORCH_HOME/thresholds/kv-decode/nvidia-z9-pcie-24gb.json"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(thresholds, "_said", set())
    _forget()
    yield
    _forget()


def _forget() -> None:
    thresholds.found.cache_clear()
    dispatch.unable.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a GPU model, and that model under the tests."""
    monkeypatch.setattr(dispatch, "gpu_name", lambda device: GPU)
    return thresholds.install(FILE, tmp_path / "home" / "thresholds")


def as_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    for module in (machine, dispatch, decoupled_dispatch):
        monkeypatch.setattr(module, "gpu_name", lambda device: GPU)
    for module in (machine, decoupled_dispatch):
        monkeypatch.setattr(module, "capability", lambda device: capability)


def forbidden(*args: object, **kwargs: object) -> None:
    raise AssertionError("this must not be called")


# ---- the file


def test_a_file_is_what_was_written(tmp_path: Path) -> None:
    path = thresholds.install(FILE, tmp_path)
    assert path == tmp_path / "kv-decode" / "nvidia-z9-pcie-24gb.json"
    assert thresholds.parse(path.read_text(), str(path)) == FILE
    thresholds.install(replace(FILE, rules=()), tmp_path)
    assert thresholds.parse(path.read_text(), str(path)).rules == ()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left beside it"
    with pytest.raises(ValueError, match="timed on a CPU"):
        thresholds.install(replace(FILE, gpu="cpu"), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:40], "it is no JSON"),
        (lambda t: "[]", "the file is list: an object with v, family, gpu, .* is needed"),
        (lambda t: t.replace('"v": 1', '"v": 2'), "v 2, .* version 1"),
        (lambda t: t.replace("kv-decode", "decoupled"), "family 'decoupled'"),
        (lambda t: t.replace('"margin": 1.2', '"margin": 0.5'), "margin 0.5"),
        (lambda t: t.replace('"commit"', '"comit"'), "the file lacks commit and has comit"),
        (lambda t: t.replace('"date": "2026-11-21"', '"date": 7'), "date 7, of the wrong type"),
        (lambda t: t.replace('"from_length": 32', '"from_length": true'), "rule 2 has from_length True"),
        (lambda t: t.replace('"from_length": 32', '"from_length": -1'), "rule 2 is .* sizes of 1 or more"),
        (lambda t: t.replace("sdpa-flash", "fa3"), "rule 2 is .* a backend of triton, sdpa"),
        (lambda t: t.replace('"from_length": 32', '"from_length": 16'), "two rules are for the same shape"),
        (lambda t: t.replace("Z9", "H200"), "of kv-decode on NVIDIA H200 PCIe 24GB, where kv-decode on NVIDIA Z9"),
    ],
)
def test_a_broken_file_is_named_and_never_half_believed(
    change: Callable[[str], str], words: str, installed: Path, device: torch.device
) -> None:
    before = installed.read_text()
    installed.write_text(change(before))
    assert installed.read_text() != before
    with pytest.raises(ValueError, match=words) as caught:
        DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device)
    assert str(installed) in str(caught.value) and "kernels.bench.knee ROWS.jsonl --write" in str(caught.value)


def test_the_file_of_the_home_goes_before_that_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert thresholds.found("kv-decode", GPU) is None
    monkeypatch.setattr(thresholds, "PACKAGE", tmp_path / "kernels")
    for folder, commit in ((None, "package"), (tmp_path / "home" / "thresholds", "home")):
        thresholds.install(replace(FILE, commit=commit), folder)
        thresholds.found.cache_clear()
        found = thresholds.found("kv-decode", GPU)
        assert found is not None and found[0].commit == commit
    assert found is not None and found[1] == CALLED
    assert (tmp_path / "kernels/kv_decode/thresholds/nvidia-z9-pcie-24gb.json").is_file()


@pytest.mark.parametrize(
    ("group", "dim", "dtype", "pairs", "length", "backend"),
    [
        (2, 64, "fp16", 4, 16, "triton"),
        (2, 64, "bf16", 4, 32, "sdpa-flash"),  # as many bytes
        (2, 64, "fp16", 16, 127, "sdpa-flash"),
        (2, 64, "fp16", 1, 1 << 20, "triton"),
        (2, 64, "fp16", 4, 15, None),  # shorter than measured
        (2, 64, "fp16", 17, 64, None),  # more than 4 times the rows
        (1, 64, "fp16", 4, 64, None),
        (2, 128, "fp16", 4, 64, None),
        (2, 64, "fp32", 4, 64, None),
    ],
)
def test_a_rule_is_for_what_was_measured_near(
    group: int, dim: int, dtype: str, pairs: int, length: int, backend: str | None
) -> None:
    rule = FILE.rule_for(group, dim, dtype, pairs, length)
    assert (rule and rule.backend) == backend


def test_the_nearest_measured_shape_decides() -> None:
    more = replace(FILE, rules=(*RULES, Rule(2, 64, "fp16", 32, 16, "sdpa-cudnn")))
    found = {n: more.rule_for(2, 64, "fp16", n, 64) for n in (11, 12, 128, 129)}
    assert {n: r and r.backend for n, r in found.items()} == {
        11: "sdpa-flash",
        12: "sdpa-cudnn",
        128: "sdpa-cudnn",
        129: None,
    }


# ---- dispatch by measurement


def test_attention_follows_the_file(
    installed: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = rand(2, 4, 1, 64, device=device), rand(2, 2, 64, 64, device=device), rand(2, 2, 64, 64, device=device)
    real: Callable[..., Tensor] = sdpa.attend
    seen: list[str] = []

    def attend(*args: Tensor, backend: str, **more: Any) -> Tensor:
        seen.append(backend)
        return real(*args, backend=backend, **more)

    monkeypatch.setattr(sdpa, "attend", attend)
    with caplog.at_level(logging.WARNING, logger="kernels"):
        for _ in range(2):
            out = torch.empty_like(q)
            assert api.attention(q, k, v, out=out) is out
            held(out, q, k, v)
    assert seen == ["sdpa-flash"] * 2
    (record,) = caplog.records  # once a process
    assert "sdpa-flash from length 32" in record.message and CALLED in record.message
    assert "KERNELS_BACKEND=triton" in record.message
    held(tensor(api.attention(q, k[:, :, :20], v[:, :, :20])), q, k[:, :, :20], v[:, :, :20])  # below 32
    lens = torch.tensor([64, 60], dtype=torch.int32, device=device)
    held(tensor(api.attention(q, k, v, kv_lens=lens)), q, k, v, lens)  # lengths on the device
    api.attention(q, k, v, return_lse=True)
    api.attention(q, k, v, block_n=16)
    assert len(seen) == 2, "below the length, with lengths on the device, an LSE or blocks: our kernels"


def tensor(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(out, Tensor)
    return out


def test_a_decode_step_by_sdpa_appends_and_attends_as_ours(installed: Path, device: torch.device) -> None:
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [40, 40], 64)
    other = tuple(t.clone() for t in cache)
    got, same = api.attention_with_kv_cache(q, k, v, cache, lens)
    want, _ = api.attention_with_kv_cache(q, k, v, (other[0], other[1]), lens, backend="triton")
    assert same is cache
    torch.testing.assert_close(got, want, atol=2e-3, rtol=2e-3)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(cache, other, strict=True))
    held(tensor(got), q, *cache, lens + 1)
    with pytest.raises(ValueError, match="row 0 holds 64 tokens and 1 more do not fit"):
        api.attention_with_kv_cache(q, k, v, cache, lens + 24)


@pytest.mark.parametrize(
    ("more", "lens", "reason"),
    [
        ({"check": False}, [40, 40], "lengths are on the device"),
        ({}, [40, 41], "differ from row to row"),
        ({"update_cache": False}, [40, 40], "do not lie behind the cached ones"),
        ({"return_lse": True}, [40, 40], "SDPA returns no LSE"),
        ({"block_n": 16}, [40, 40], "block_m and block_n"),
    ],
)
def test_what_sdpa_cannot_answer_stays_with_ours_unless_it_is_forced(
    more: dict[str, object], lens: list[int], reason: str, installed: Path, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    q, k, v, cache, before = step(device, 2, 4, 2, 1, lens, 64)
    call = api.attention_with_kv_cache
    with pytest.raises(ValueError, match=f"backend= asks for sdpa, which cannot answer this call: .*{reason}"):
        call(q, k, v, cache, before, **more, backend="sdpa")  # type: ignore[arg-type]
    monkeypatch.setenv("KERNELS_BACKEND", "sdpa-cudnn")
    with pytest.raises(ValueError, match="KERNELS_BACKEND asks for sdpa-cudnn"):
        call(q, k, v, cache, before, **more)  # type: ignore[arg-type]
    monkeypatch.delenv("KERNELS_BACKEND")
    monkeypatch.setattr(sdpa, "attend", forbidden)
    out, _ = call(q, k, v, cache, before, **more)  # type: ignore[arg-type]
    if "update_cache" not in more:
        held(out if isinstance(out, Tensor) else out[0], q, *cache, before + 1)


@pytest.mark.parametrize("causal", [True, False])
def test_a_forced_sdpa_is_ours_in_prefill_too(causal: bool, device: torch.device) -> None:
    q, k, v = rand(2, 6, 33, 40, device=device), rand(2, 2, 33, 40, device=device), rand(2, 2, 33, 24, device=device)
    held(tensor(api.attention(q, k, v, causal=causal, backend="sdpa")), q, k, v, causal=causal)
    out, cache = api.attention_with_kv_cache(q, k, v, cache_max_len=48, causal=causal, backend="sdpa")
    held(tensor(out), q, k, v, causal=causal)
    assert cache is not None and torch.equal(cache[0][:, :, :33], k) and torch.equal(cache[1][:, :, :33], v)
    if causal:  # bottom right, where SDPA's own mask is top left
        with pytest.raises(ValueError, match="does not fit 32 queries at the end of 33 keys"):
            api.attention(q[:, :, 1:], k, v, backend="sdpa")


def test_what_is_asked_for_goes_before_the_file(
    installed: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = rand(2, 4, 1, 64, device=device), rand(2, 2, 64, 64, device=device), rand(2, 2, 64, 64, device=device)
    monkeypatch.setattr(sdpa, "attend", forbidden)
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    held(tensor(api.attention(q, k, v)), q, k, v)
    monkeypatch.setenv("KERNELS_BACKEND", "sdpa")
    held(tensor(api.attention(q, k, v, backend="reference")), q, k, v)
    with pytest.raises(AssertionError, match="must not be called"):
        api.attention(q, k, v)
    with pytest.raises(ValueError, match="a plan reads its lengths on the device"):
        DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device)


def test_why_names_the_file_or_the_default(installed: Path, device: torch.device) -> None:
    def why(length: int, **more: Any) -> str:
        return kernels.kv_decode.why(2, 4, 2, 64, length, device=device, **more)

    assert why(64) == f"sdpa-flash: measured at 4 (row, KV head) pairs from length 32: {CALLED}"
    assert why(20) == f"triton: measured at 4 (row, KV head) pairs from length 16: {CALLED}"
    assert why(8) == f"triton: the default: {CALLED} has measured nothing near this shape and length"
    assert why(64, lengths_on_host=False).startswith("triton: sdpa-flash was faster (measured at 4")
    plan = DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device)
    assert plan.triton and "a plan reads its lengths on the device" in plan.why()
    assert kernels.kv_decode.why(2, 4, 2, 64, 64, device=device, queries=3).startswith("triton: the default")
    installed.unlink()
    thresholds.found.cache_clear()
    assert why(64) == f"triton: the default: no thresholds file for {GPU}"


def test_a_file_may_say_that_the_reference_is_faster(installed: Path, device: torch.device) -> None:
    thresholds.install(replace(FILE, rules=(Rule(2, 64, "fp16", 4, 16, "reference"),)), installed.parent.parent)
    plan = DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device)
    assert not plan.triton and plan.why().startswith("reference: measured at 4")
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [3, 40], 64)
    held(plan.run(q, k, v, *cache, lens), q, *cache, lens + 1)


# ---- GPUs that cannot


def test_a_gpu_that_triton_does_not_know_gets_something_else_said_once(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_gpu(monkeypatch, (7, 5))
    q, k, v, cache, lens = step(device, 2, 4, 2, 1, [3, 40], 64)
    with caplog.at_level(logging.WARNING, logger="kernels"):
        plans = [DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device) for _ in range(2)]
        held(plans[1].run(q, k, v, *cache, lens), q, *cache, lens + 1)
    assert plans[0].why() == f"reference: {GPU} is SM 7.5, and Triton needs 8.0"
    (record,) = caplog.records
    assert "reference instead of Triton" in record.message and "KERNELS_BACKEND=triton" in record.message
    assert kernels.kv_decode.why(2, 4, 2, 64, 64, device=device) == f"sdpa: {GPU} is SM 7.5, and Triton needs 8.0"
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    assert DecodePlan(2, 4, 2, 64, 64, dtype=HALF, device=device).triton


def test_too_little_shared_memory_is_a_reason_too(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    as_gpu(monkeypatch, (8, 6))
    monkeypatch.setattr(dispatch, "machine", lambda device: {"shared_bytes": 64 << 10, "pdl": 0})
    prefill = {"queries": 64, "dtype": HALF, "device": device}
    plan = DecodePlan(1, 2, 2, 256, 64, **prefill)  # type: ignore[arg-type]
    assert not plan.triton and "bytes of shared memory, and there are 65536" in plan.why()
    assert DecodePlan(1, 2, 2, 64, 64, **prefill).triton  # type: ignore[arg-type]


def test_the_decoupled_kernels_fall_back_and_say_what_they_lack(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = QuantizedCache(
        1, 64, 2, 16, 16, 32, KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4"), device
    )
    cache.append(*(rand(1, 2, 9, d, device=device) for d in cache.dims))
    q = rand(1, 2, 16, device=device), rand(1, 2, 16, device=device)
    want = decoupled_decode(*q, cache)
    as_gpu(monkeypatch, (8, 9))
    with caplog.at_level(logging.WARNING, logger="kernels"):
        whys = {DecoupledPlan.of(cache, 2).why() for _ in range(2)}
        assert torch.equal(tensor(decoupled_decode(*q, cache)), tensor(want))
    assert "SM 8.9: no programmatic dependent launch" in whys.pop() and not whys
    assert [r.message.count("nobody has timed them so") for r in caplog.records] == [1]
    as_gpu(monkeypatch, (7, 5))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="kernels"), monkeypatch.context() as patch:
        patch.setattr(DecoupledPlan, "run", forbidden)
        for _ in range(2):
            torch.testing.assert_close(decoupled_decode(*q, cache), want, atol=2e-3, rtol=2e-3)
        cache.append(*(rand(1, 2, 1, d, device=device) for d in cache.dims))
        patch.setenv("KERNELS_BACKEND", "triton")
        with pytest.raises(AssertionError, match="must not be called"):
            decoupled_decode(*q, cache)
    assert sum("the reference instead of Triton" in r.message for r in caplog.records) == 1
