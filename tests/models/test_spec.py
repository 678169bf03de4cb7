"""What a model spec gained for published weights: its rotation, its norms, and what it means for old checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from orchestrator.jobs.sizes import parameters
from tests.models.published import STRETCHED
from workloads.contract.config.bound import bound_fields, refuse_changes
from workloads.contract.config.job import JobSpec, ModelSpec, RopeScalingSpec
from workloads.contract.errors import SpecError
from workloads.models.decoder import Decoder
from workloads.models.rope import Rope, frequencies


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_frequencies_are_bit_for_bit_the_published_ones(theta: float, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes: dict[str, Any] = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "max_position_embeddings": 131072}
    for rope in ({"rope_type": "default", "rope_theta": theta}, {**STRETCHED, "rope_theta": theta}):
        scaling = None if rope["rope_type"] == "default" else RopeScalingSpec(original_positions=64)
        theirs = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rope))
        assert torch.equal(frequencies(head_dim, theta, scaling), theirs.inv_freq)


def test_a_stretched_rotation_keeps_short_waves_and_stretches_long_ones() -> None:
    plain, scaling = frequencies(128, 5e5, None), RopeScalingSpec()
    wave, ratio = 2 * torch.pi / plain, plain / frequencies(128, 5e5, scaling)
    assert (ratio[wave < 8192 / 4] == 1).all() and (ratio[wave > 8192] == 8).all()
    between = ratio[(wave > 8192 / 4) & (wave < 8192)]
    assert len(between) > 2 and (between > 1).all() and (between < 8).all() and (between.diff() > 0).all()
    with pytest.raises(ValidationError, match="must be above low_freq_factor"):
        RopeScalingSpec(low_freq_factor=4.0)


def test_tables_that_grow_keep_their_values() -> None:
    rope, whole = Rope(8, 1e4, 3), Rope(8, 1e4, 100)
    for reach in (4, 5, 9, 40, 41, 100):
        rope.reserve(reach, torch.device("cpu"))
        assert rope.cos_PH.shape[0] >= reach
    assert torch.equal(rope.cos_PH[:100], whole.cos_PH) and torch.equal(rope.sin_PH[:100], whole.sin_PH)
    assert rope.cos_PH.shape[0] <= 200


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_plan_counts_the_parameters_that_the_model_has(tied: bool, qk_norm: bool) -> None:
    spec = ModelSpec(dim=48, layers=3, heads=4, kv_heads=2, head_dim=20, vocab=77, tie_embeddings=tied, qk_norm=qk_norm)
    assert parameters(spec) == sum(p.numel() for p in Decoder(spec, 77).parameters())


def test_a_checkpoint_of_an_orch_without_the_field_fits_its_default_and_nothing_else() -> None:
    old = {k: v for k, v in bound_fields(JobSpec(name="a")).items() if k not in ("model.qk_norm", "model.rope_scaling")}
    refuse_changes(old, bound_fields(JobSpec(name="a")), "step_00000001")
    with pytest.raises(SpecError, match=r"model\.qk_norm"):
        refuse_changes(old, bound_fields(JobSpec(name="a", model=ModelSpec(qk_norm=True))), "step_00000001")
    with pytest.raises(SpecError, match=r"model\.dim"):
        refuse_changes(old, bound_fields(JobSpec(name="a", model=ModelSpec(dim=64))), "step_00000001")
