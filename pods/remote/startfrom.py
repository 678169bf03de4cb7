"""The checkpoint that a new run shall begin with, found and looked at where it lies. Changes nothing.

Hashed as far as that takes a second or two, looked at by names and sizes beyond; ranks verify every byte all the same.
Called by `pods.remote.runs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pods.remote.resumable import MAX_HASHED_BYTES
from workloads.contract.errors import IntegrityError, SpecError, escape
from workloads.contract.files import try_read_json
from workloads.contract.manifest import committed, look, verify
from workloads.contract.rundir import RUN_ID_PATTERN, TRAINER_FILE, OrchHome, RunDir


@dataclass(frozen=True)
class Found:
    path: Path
    run: str
    step: int


def find(home: OrchHome, ref: str) -> Found:
    """`ref`: a checkpoint's directory, a run's, or the id of a run on this pod. SpecError when there is none,
    IntegrityError when it must not be used."""
    run = home.run(ref) if RUN_ID_PATTERN.fullmatch(ref) else RunDir(Path(ref))
    if not run.path.is_absolute() or not run.path.is_dir():
        raise SpecError(
            "E-LAUNCH-006", f"there is no checkpoint {escape(ref)} on this pod", where="--resume", value=ref,
            expected="the directory of a checkpoint, or a run that has one", fix="orch runs   (the ids of runs)",
        )  # fmt: skip
    if RunDir.manifest(run.path).exists() or not run.checkpoints.is_dir():
        return _checked([run.path], run.path)
    return _checked(committed(run), run.checkpoints)


def _refuse_a_scripts(path: Path) -> None:
    if not isinstance((try_read_json(path / TRAINER_FILE) or {}).get("config"), dict):
        raise SpecError(
            "E-LAUNCH-010", f"{path.name} holds no training of orch's own: a script saved it", where=str(path),
            expected="a checkpoint of a run of kind train", fix="orch runs   (the ids of runs)",
        )  # fmt: skip


def _checked(candidates: list[Path], where: Path) -> Found:
    """The first that can be used."""
    rejected = []
    for path in candidates:
        manifest, problems = look(path)
        if manifest is not None and sum(f.size for f in manifest.files) <= MAX_HASHED_BYTES:
            problems = verify(path)
        if manifest is not None and not problems:
            _refuse_a_scripts(path)
            return Found(path.resolve(), manifest.run, manifest.step)
        rejected.append(f"{path.name}: {escape('; '.join(problems), 200)}")
    if not rejected:
        raise SpecError(
            "E-LAUNCH-006", "this run has no checkpoint", where=str(where), expected="a run that has one",
            fix="orch runs   (the ids of runs)",
        )  # fmt: skip
    raise IntegrityError(
        "E-LAUNCH-007", f"a run cannot begin with this: {rejected[0]}", where=str(where),
        expected="a checkpoint that verifies", fix="name another checkpoint, or another run",
    )  # fmt: skip
