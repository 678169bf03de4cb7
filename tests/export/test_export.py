"""A checkpoint of the trainer, exported: transformers loads it and computes what our decoder computes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.runs.export import Exported
from tests.checkpoints.killer import flip
from tests.checkpoints.saver import checkpointer
from tests.cli.conftest import Orch as Command
from tests.mirror.conftest import Far, bounded, far
from workloads.contract.config.bound import bound_fields
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import ConflictError, IntegrityError, OrchError, RemoteError, SpecError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.rundir import OrchHome, RunDir
from workloads.export import write
from workloads.export.write import export
from workloads.models.decoder import Decoder
from workloads.models.pretrained import decoder_from_pretrained
from workloads.runtime.agreement import Agreement
from workloads.runtime.scriptstate import ObjectsState
from workloads.runtime.state import TorchState
from workloads.train.optim import make_optimizer
from workloads.train.resume import Position, trainer_state

__all__ = ["bounded", "far"]
RUN_ID = "told-20260101T000000Z-0123"
STRETCHED = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"dim": 64, "layers": 2, "heads": 8, "kv_heads": 2, "tie_embeddings": False},
    "llama-tied": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 32, "rope_theta": 500.0},
    "llama-stretched": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 1, "rope_scaling": STRETCHED},
    "qwen3": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "qk_norm": True, "ffn_dim": 96},
}


def trained(root: Path, model: dict[str, Any], steps: tuple[int, ...] = (10,)) -> tuple[RunDir, Decoder]:
    """A run with real checkpoints, and the decoder as it was at the last of them."""
    run = RunDir(root / RUN_ID)
    for folder in run.skeleton():
        folder.mkdir(parents=True, exist_ok=True)
    run.epoch.write_text("1\n")
    job = JobSpec.model_validate({"name": "told", "model": model, "data": {"seq_len": 48}})
    torch.manual_seed(5)
    decoder = Decoder(job.model, 256)
    with torch.no_grad():  # norms that are all ones would hide one that is left out
        for name, p in decoder.named_parameters():
            p.uniform_(0.5, 1.5) if "norm" in name else p.mul_(8)
    state = TorchState(0, Agreement(), decoder, make_optimizer(decoder, job.train))
    saver = checkpointer(run, state=state)
    for step in steps:
        assert saver.save(step, trainer_state(Position(step, step), bound_fields(job), "x"))
    return run, decoder.eval()


@pytest.mark.parametrize("case", MODELS)
def test_transformers_computes_the_same(tmp_path: Path, case: str) -> None:
    import transformers

    run, ours = trained(tmp_path, MODELS[case])
    done = export(run.checkpoint(10), tmp_path / "out", "fp32")
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs.eval()
    again = decoder_from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if case == "qwen3" else "LlamaForCausalLM")
    tokens_BT = torch.randint(0, 256, (3, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BTV = ours(tokens_BT)
        torch.testing.assert_close(theirs(tokens_BT).logits, expected_BTV, rtol=1e-4, atol=1e-4)
        assert torch.equal(again(tokens_BT), expected_BTV)
    assert expected_BTV.std() > 0.5
    assert done.parameters == sum(p.numel() for p in ours.parameters())
    assert {f.name for f in done.files} == {"config.json", "model.safetensors", "orch.json"}
    told = read_json(tmp_path / "out" / "orch.json")
    assert (told["run"], told["step"], told["config"]["data.seq_len"]) == (RUN_ID, 10, 48)


def test_bf16_is_the_rounded_weights_and_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ours = trained(tmp_path, MODELS["llama"])
    monkeypatch.setattr(write, "SHARD_BYTES", 60_000)
    done = export(run.checkpoint(10), tmp_path / "out", "bf16")
    shards = [f.name for f in done.files if f.name.endswith(".safetensors")]
    assert len(shards) >= 3 and "model.safetensors.index.json" in {f.name for f in done.files}
    again = decoder_from_pretrained(tmp_path / "out")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16()), name
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"


def test_nothing_that_does_not_verify_and_nothing_over_what_is_there(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, MODELS["llama"])
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConflictError):
        export(run.checkpoint(10), tmp_path / "taken", "fp32")
    flip(next(run.checkpoint(10).glob("__0_*")), 4321)
    with pytest.raises(IntegrityError) as e:
        export(run.checkpoint(10), tmp_path / "out", "fp32")
    assert e.value.code == "E-EXPORT-003" and sorted(p.name for p in tmp_path.iterdir()) == ["taken", RUN_ID]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(OrchHome(tmp_path / "home"), tmp_path)
    yield made
    made.close()


def test_the_command_exports_the_newest_that_verifies_or_the_one_that_is_named(
    command: Command, tmp_path: Path
) -> None:
    run, _ = trained(command.home.runs, MODELS["llama-tied"], (10, 20))
    pods = [{"name": "local", "address": "127.0.0.1", "ranks": [0], "gpus": 0, "python": sys.executable}]
    row = {"v": 1, "run": RUN_ID, "name": "told", "kind": "train", "created": 1.0, "pods": pods, "world_size": 1}
    atomic_write_json(run.run_json, row)
    flip(next(run.checkpoint(20).glob("__0_*")), 99)
    ran = command("export", RUN_ID, "--out", "out", "--json", timeout_s=600)
    assert ran.code == 0, ran.err
    assert (ran.json["step"], ran.json["dir"]) == (10, str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 100_000
    for argv, code, word in (
        (("--out", "out"), 6, "E-EXPORT-004"),
        (("--out", "new", "--checkpoint", "step_00000020"), 8, "E-EXPORT-003"),
        (("--out", "new", "--checkpoint", "../../x"), 2, "E-EXPORT-002"),
        (("--out", "new", "--dtype", "int8"), 2, "E-CLI-004"),
    ):
        refused = command("export", RUN_ID, *argv, timeout_s=600)
        assert refused.code == code and word in refused.err, (argv, refused.err)
    assert not (tmp_path / "new").exists()


def test_answers_of_a_pod_that_are_none() -> None:
    from orchestrator.runs.export import _read
    from orchestrator.runs.source import LocalSource

    source = LocalSource(OrchHome(Path("/h")), RunDir(Path("/h/runs") / RUN_ID))
    good = {"name": "config.json", "size": 3, "sha256": "ab" * 32}

    def answered(**row: Any) -> str:
        return json.dumps({"run": RUN_ID, "step": 3, "parameters": 5, "files": [good], **row})

    assert _read(answered(), "", source, Path("/x")).files == (("config.json", 3, "ab" * 32),)
    bad = [
        "", "[]", "{}", "x", "[" * 9999, answered(step="3"), answered(files=[]), answered(files=[None]),
        answered(files=[{**good, "name": "../../.bashrc"}]), answered(files=[{**good, "name": "evil.py"}]),
        answered(files=[{**good, "size": -1}]), answered(files=[{**good, "sha256": "zz"}]),
    ]  # fmt: skip
    for text in bad:
        with pytest.raises(RemoteError) as e:
            _read(text, "\x1b[2Jboom", source, Path("/x"))
        assert e.value.code in ("E-EXPORT-008", "E-EXPORT-009") and "\x1b" not in e.value.render()
    with pytest.raises(SpecError, match="no checkpoint"):
        told = {"code": "E-EXPORT-002", "what": "no checkpoint", "where": "there"}
        _read(json.dumps({"error": told, "exit": 2}), "", source, Path("/x"))


def written(folder: Path, run: str, files: dict[str, bytes]) -> Exported:
    """An export of `run` in a folder of the pod, as it tells of it."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    told = tuple((name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())
    return Exported(run, 3, 5, folder.parent / "here" / "m", told)


def test_what_a_cut_export_left_is_not_in_the_next_one(far: Far, tmp_path: Path) -> None:
    """A whole file and half of one: other weights, which the reader of the folder would take."""
    import orchestrator.runs.export as exporting

    old = {"config.json": b"old", "model.safetensors": b"old weights", "orch.json": b"of the old"}
    new = {"config.json": b"new", "model-00001-of-00001.safetensors": b"new weights", "orch.json": b"of the new"}
    before, now = written(tmp_path / "old", "old", old), written(tmp_path / "new", "new", new)

    def cut(so_far: int, total: int) -> None:
        if so_far == total - len(old["orch.json"]):
            far.kill()

    with pytest.raises(OrchError):
        exporting._bring(far.pod, tmp_path / "old", before, cut)
    staged = before.folder.with_name(".m.part")
    assert (staged / "model.safetensors").is_file() and not before.folder.exists()
    (staged / "sub").mkdir()
    far.pod.close()
    exporting._bring(far.pod, tmp_path / "new", now, lambda so_far, total: None)
    assert {p.name: p.read_bytes() for p in now.folder.iterdir()} == new and not staged.exists()


def test_a_scripts_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path / RUN_ID)
    for folder in run.skeleton():
        folder.mkdir(parents=True, exist_ok=True)
    run.epoch.write_text("1\n")
    saver = checkpointer(run, state=ObjectsState(0, Agreement(), {"model": torch.nn.Linear(2, 2)}))
    path = saver.save(3, {"v": 1, "step": 3})
    assert path is not None
    with pytest.raises(SpecError, match="a script saved it") as refused:
        export(path, tmp_path / "out", "fp32")
    assert refused.value.code == "E-EXPORT-006" and refused.value.value == "model.pt" and refused.value.fix
    assert not (tmp_path / "out").exists()
