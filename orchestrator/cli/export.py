"""`orch export`: a run's weights as config.json and *.safetensors, for transformers and whatever reads its files."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import Json, Run, as_the_person, emit, home, look_at, open_source, own_parts, say
from workloads.contract.errors import ConflictError, UsageError, escape

if TYPE_CHECKING:
    from orchestrator.runs.source import Source
    from pods.pod import Pod

DTYPES = ("fp32", "bf16")


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, here.")],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="NAME", help="step_00000120; default: the newest that verifies.")
    ] = "newest",
    dtype: Annotated[str, typer.Option("--dtype", metavar="fp32|bf16", help="Of the weights.")] = "fp32",
    json: Json = False,
) -> None:
    """The weights of a run in the form that transformers loads. The checkpoint is verified first."""
    from orchestrator.runs import export as exporting
    from orchestrator.runs.render import duration
    from orchestrator.runs.waiting import Live

    if dtype not in DTYPES:
        raise UsageError(
            "E-CLI-004", f"--dtype cannot be '{escape(dtype, 40)}'", value=dtype, expected=" or ".join(DTYPES),
            fix="--dtype bf16",
        )  # fmt: skip
    target = out.expanduser().absolute()
    if os.path.lexists(target):
        raise ConflictError(
            "E-EXPORT-004", "something lies there already", where=str(target), expected="a name that is free",
            fix=f"--out {shlex.quote(str(out))}-2",
        )  # fmt: skip
    source, began, live = open_source(run), time.monotonic(), Live(silent=json)
    look_at(source)
    pod, tree = _place(source)
    try:
        live.line(f"{source.run.run_id}  exporting on pod {source.pod}")
        with as_the_person():
            done = exporting.export(
                source, pod, tree, checkpoint=checkpoint, out=target, dtype=dtype,
                on_bytes=lambda n, total: live.status(f"  {n >> 20} of {total >> 20} MiB", time.monotonic()),
            )  # fmt: skip
    finally:
        pod.close()
        source.close()
    if json:
        emit(done.as_json())
        return
    say(
        f"{done.run}  step {done.step}, {done.parameters} parameters, {done.size_bytes / (1 << 20):.1f} MiB in "
        f"{duration(time.monotonic() - began)}",
        f"  directory   {done.folder}",
        f"  read it     AutoModelForCausalLM.from_pretrained({str(done.folder)!r})",
    )


def _place(source: Source) -> tuple[Pod, str]:
    """The pod where the run lies, and orch's own files there."""
    from orchestrator.runs.source import FarSource

    if isinstance(source, FarSource):
        tree = source.push_tree()
        pod: Pod = source.far_pod()
        return pod, tree
    from pods.pod import LocalPod
    from pods.transport.local import LocalTransport

    return LocalPod(home(), LocalTransport()), str(own_parts()[1])
