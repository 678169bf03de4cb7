"""Published Llama and Qwen3 weights in our decoder: their config to a `ModelSpec`, their state dict to a `Decoder`.

A weight is used exactly once and nothing is filled in: what is left over, missing or of another shape is listed in one
ValueError, and so is a setting that our decoder does not compute. Never imports transformers: a config is an object or
a mapping with the keys of config.json (both the old form, `rope_theta` and `rope_scaling`, and the new one,
`rope_parameters`). Called by whoever decodes with published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workloads.contract.config.job import ModelSpec, RopeScalingSpec
from workloads.models.decoder import Decoder

KINDS = ("llama", "qwen3")
_TOP = {
    "embed.weight": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "head.weight": ["lm_head.weight"],
}
_LAYER = {
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention.qkv.weight": ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "attention.q_norm.weight": ["self_attn.q_norm.weight"],
    "attention.k_norm.weight": ["self_attn.k_norm.weight"],
    "attention.out.weight": ["self_attn.o_proj.weight"],
    "ffn_norm.weight": ["post_attention_layernorm.weight"],
    "ffn.up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "ffn.out.weight": ["mlp.down_proj.weight"],
}
_SHOWN = 12
"""names listed of each sort of mistake; the rest are counted"""


def spec_from_hf(config: object) -> ModelSpec:
    """The `ModelSpec` of a Llama or Qwen3 config (object or mapping).

    Keys that are absent have the value that their model kind gives them. ValueError for another kind, a key that is
    needed and absent, or a setting that the decoder does not compute (biases, sliding windows, another activation,
    another rope type than default and llama3).
    """
    get = _getter(config)
    kind = get("model_type", None)
    if kind not in KINDS:
        raise ValueError(f"model_type {kind!r}: our decoder computes {' and '.join(KINDS)} models")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if absent := [key for key in needed if get(key, None) is None]:
        raise ValueError(f"the {kind} config lacks {', '.join(absent)}")
    _refuse(get, kind)
    theta, scaling = _rope(get)
    return ModelSpec(
        dim=get("hidden_size", None),
        layers=get("num_hidden_layers", None),
        heads=get("num_attention_heads", None),
        kv_heads=get("num_key_value_heads", None) or get("num_attention_heads", None),
        head_dim=get("head_dim", None) or (128 if kind == "qwen3" else None),
        ffn_dim=get("intermediate_size", None),
        vocab=get("vocab_size", None),
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=kind == "qwen3",
        norm_eps=get("rms_norm_eps", 1e-6),
        tie_embeddings=get("tie_word_embeddings", False),
    )


def _getter(config: object) -> Callable[[str, Any], Any]:
    if isinstance(config, Mapping):
        return config.get
    return lambda key, default: getattr(config, key, default)


def _refuse(get: Callable[[str, Any], Any], kind: str) -> None:
    """ValueError naming every setting that would change the numbers and that the decoder lacks."""
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    found = [f"{key} {get(key, want)!r}, not {want!r}" for key, want in wanted.items() if get(key, want) != want]
    layers = get("layer_types", None) or []
    found += [f"layer_types {other!r}, not 'full_attention'" for other in sorted(set(layers) - {"full_attention"})]
    if get("quantization_config", None) is not None:
        found.append("quantization_config: quantized weights")
    if found:
        raise ValueError(f"our decoder does not compute this {kind} config: {'; '.join(found)}")


def _rope(get: Callable[[str, Any], Any]) -> tuple[float, RopeScalingSpec | None]:
    """(theta, scaling) from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    rope = dict(get("rope_parameters", None) or get("rope_scaling", None) or {})
    theta = float(rope.get("rope_theta") or get("rope_theta", None) or 10_000.0)
    partial = rope.get("partial_rotary_factor", get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor {partial}: our decoder rotates whole heads")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r}: our decoder computes 'default' and 'llama3'")
    places = rope.get("original_max_position_embeddings")
    if absent := [key for key in keys if key not in rope] + ([] if places else ["original_max_position_embeddings"]):
        raise ValueError(f"rope_type 'llama3' lacks {', '.join(absent)}")
    factor, low, high = (float(rope[key]) for key in keys)
    return theta, RopeScalingSpec(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_positions=int(str(places))
    )


def decoder_from_hf(
    config: object,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Decoder:
    """A decoder for inference; its weights are copies of `state_dict` (of a LlamaForCausalLM or Qwen3ForCausalLM).

    dtype, device: of the copies; default: as they are. With tied embeddings `lm_head.weight` may be absent, or equal
    to the embeddings. ValueError lists what is missing, left over, misshapen or no floating point.
    """
    spec = spec_from_hf(config)
    with torch.device("meta"):
        decoder = Decoder(spec, 1)
    sources = {ours: _theirs(ours) for ours in decoder.state_dict()}
    _check_names(sources, state_dict, spec.tie_embeddings)
    ours: dict[str, Tensor] = {}
    wrong = []
    for name, empty in decoder.state_dict().items():
        if name == "head.weight" and spec.tie_embeddings:
            continue
        parts = {theirs: state_dict[theirs].detach() for theirs in sources[name]}
        problems = _problems(parts, _shapes(name, tuple(empty.shape), spec))
        wrong += problems
        if not problems:
            whole = torch.cat(list(parts.values())) if len(parts) > 1 else parts[sources[name][0]].clone()
            ours[name] = whole.to(device=device, dtype=dtype)
    if wrong:
        raise ValueError(f"{len(wrong)} weights do not fit the config: {_some(wrong)}")
    if spec.tie_embeddings:
        ours["head.weight"] = ours["embed.weight"]
    decoder.load_state_dict(ours, strict=True, assign=True)
    if spec.tie_embeddings:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


def _theirs(ours: str) -> list[str]:
    if ours in _TOP:
        return _TOP[ours]
    _, layer, rest = ours.split(".", 2)
    return [f"model.layers.{layer}.{name}" for name in _LAYER[rest]]


def _check_names(sources: Mapping[str, list[str]], given: Mapping[str, Tensor], tied: bool) -> None:
    """ValueError unless the names of `given` are the ones that are used."""
    used = {name for theirs in sources.values() for name in theirs}
    head, embed = _TOP["head.weight"][0], _TOP["embed.weight"][0]
    if tied and head in given and embed in given and not torch.equal(given[head], given[embed]):
        raise ValueError(f"tie_word_embeddings is true, but {head} and {embed} differ")
    missing = sorted(used - given.keys() - ({head} if tied else set()))
    extra = sorted(given.keys() - used)
    if missing or extra:
        said = [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("left over", extra)) if names]
        raise ValueError(f"the state dict does not fit the config; {'; '.join(said)}")


def _shapes(name: str, whole: tuple[int, ...], spec: ModelSpec) -> list[tuple[int, ...]]:
    """Shapes of the parts that our weight `name` is made of, in order."""
    if name.endswith("attention.qkv.weight"):
        return [(n * spec.d_head, spec.dim) for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
    if name.endswith("ffn.up.weight"):
        return [(spec.d_ffn, spec.dim)] * 2
    return [whole]


def _problems(parts: Mapping[str, Tensor], shapes: list[tuple[int, ...]]) -> list[str]:
    found = []
    for (name, part), shape in zip(parts.items(), shapes, strict=True):
        if tuple(part.shape) != shape:
            found.append(f"{name} {tuple(part.shape)}, not {shape}")
        elif not part.is_floating_point():
            found.append(f"{name} {part.dtype}, no floating point")
    if not found and len({part.dtype for part in parts.values()}) > 1:
        found.append(f"{' + '.join(parts)}: dtypes {[str(part.dtype) for part in parts.values()]}, not one")
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
