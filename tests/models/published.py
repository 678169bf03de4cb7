"""Models of the library that published weights are made for, small and random, with grouped queries.

The library is imported when a model is made: it takes seconds.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # logits of a standard deviation of about 1.6: ties are no issue
    "eos_token_id": None,
    "bos_token_id": None,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = ("llama", "llama-tied", "llama-stretched", "qwen3", "qwen3-tied")


@functools.cache
def published(case: str) -> Any:
    """A `LlamaForCausalLM` (8 heads of 8 over 2) or `Qwen3ForCausalLM` (4 heads of 32 over 2; 4 x 32 is not 64)."""
    import transformers

    kind, _, variant = case.partition("-")
    sizes: dict[str, Any] = {**SIZES, "tie_word_embeddings": variant == "tied"}
    if variant == "stretched":
        sizes["rope_parameters"] = STRETCHED
    torch.manual_seed(len(case))
    model: Any
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=8, **sizes))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(num_attention_heads=4, head_dim=32, **sizes))
    with torch.no_grad():  # norms that are all ones would hide one that is left out
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (5, 17, 1)]
