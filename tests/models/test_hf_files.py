"""What is refused of a published model, and by which words; folders as they are published."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.published import STRETCHED, published
from workloads.models.hf import decoder_from_hf, spec_from_hf
from workloads.models.pretrained import decoder_from_pretrained

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 112,
    "vocab_size": 97,
}


def test_a_short_config_means_what_its_kind_says() -> None:
    llama = spec_from_hf(LLAMA)
    assert (llama.kv_heads, llama.d_head, llama.norm_eps, llama.rope_theta) == (8, 8, 1e-6, 10_000.0)
    assert not llama.qk_norm and not llama.tie_embeddings and llama.rope_scaling is None
    qwen = spec_from_hf({**LLAMA, "model_type": "qwen3", "num_key_value_heads": 4, "rope_theta": 1_000_000})
    assert qwen.qk_norm and (qwen.kv_heads, qwen.d_head, qwen.rope_theta) == (4, 128, 1e6)


def test_the_old_and_the_new_form_of_rope_mean_the_same() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {k: v for k, v in STRETCHED.items() if k != "rope_theta"}}
    new = {**LLAMA, "rope_parameters": {**STRETCHED, "rope_theta": 5e5}}
    assert spec_from_hf(old) == spec_from_hf(new)
    scaling = spec_from_hf(new).rope_scaling
    assert scaling is not None and scaling.original_positions == 64
    assert spec_from_hf({**LLAMA, "rope_scaling": None}).rope_scaling is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'.*llama and qwen3"),
        ({"hidden_size": None, "vocab_size": None}, "lacks hidden_size, vocab_size"),
        ({"attention_bias": True, "hidden_act": "gelu"}, "hidden_act 'gelu', not 'silu'; attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn'.*'default' and 'llama3'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor.*original_max"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_from_hf({**LLAMA, **change})


def state(case: str) -> dict[str, torch.Tensor]:
    return dict(published(case).state_dict())


def test_missing_and_left_over_weights_are_listed() -> None:
    weights = state("llama")
    del weights["model.layers.1.self_attn.k_proj.weight"], weights["lm_head.weight"]
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    with pytest.raises(
        ValueError, match=r"missing: lm_head.weight, model.layers.1.self_attn.k_proj.weight; left over"
    ) as e:
        decoder_from_hf(published("llama").config, weights)
    assert "left over: model.layers.0.self_attn.q_norm.weight" in str(e.value)


def test_a_long_list_is_cut_and_counted() -> None:
    with pytest.raises(ValueError, match=r"missing: .* and 12 more"):
        decoder_from_hf(published("qwen3").config, {"lm_head.weight": torch.ones(97, 64)})


def test_weights_of_another_shape_or_dtype_are_listed() -> None:
    weights = state("llama")  # q and k exchanged: together they have the right size
    q, k = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")
    weights[q], weights[k] = weights[k], weights[q]
    weights["model.layers.1.mlp.gate_proj.weight"] = weights["model.layers.1.mlp.gate_proj.weight"].half()
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    with pytest.raises(ValueError, match="4 weights do not fit") as e:
        decoder_from_hf(published("llama").config, weights)
    for words in (f"{q} (16, 64), not (64, 64)", f"{k} (64, 64), not (16, 64)", "torch.int8", "'torch.float16'"):
        assert words in str(e.value)


def test_tied_embeddings_that_differ_are_refused_and_may_be_absent() -> None:
    weights, config = state("llama-tied"), published("llama-tied").config
    with pytest.raises(ValueError, match="differ"):
        decoder_from_hf(config, {**weights, "lm_head.weight": weights["lm_head.weight"] + 1})
    del weights["lm_head.weight"]
    model = decoder_from_hf(config, weights)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("case", ["llama-tied", "qwen3"])
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_a_folder_that_the_library_wrote_is_read(case: str, shard: str, tmp_path: Path) -> None:
    theirs = published(case)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    model = decoder_from_pretrained(tmp_path)
    x_BT = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(x_BT), theirs(x_BT).logits, rtol=0, atol=1e-5)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        decoder_from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an object"):
        decoder_from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ValueError, match=r"neither .*only: config\.json"):
        decoder_from_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for where, words in (
        ({"a": "../b.safetensors"}, "outside"),
        ({"a": "b.safetensors"}, "lacks 1 of 1"),
        ({}, "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(ValueError, match=words):
            decoder_from_pretrained(tmp_path)
    index.unlink()
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="cannot be read"):
        decoder_from_pretrained(tmp_path)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    published("qwen3").save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    row = json.loads(index.read_text())
    del row["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"disagree on 1 names: model\.norm\.weight"):
        decoder_from_pretrained(tmp_path)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published("qwen3").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        decoder_from_pretrained(tmp_path)
