"""`orch decode`: what does a model say, and how fast? A supervised run, followed to its replies."""

from __future__ import annotations

import json as jsonlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_jobs, complete_pods, complete_runs
from orchestrator.cli.judging import Kind, answer, judge, refuse_anything_beside_run
from orchestrator.cli.shared import Json, as_the_person, emit, hint, maybe_number, maybe_whole, open_source, say
from workloads.contract.errors import LocalError, UsageError, escape

if TYPE_CHECKING:
    from orchestrator.runs.source import Source
    from workloads.contract.rundir import RunDir


def _files(run: RunDir) -> list[Path]:
    return [run.decode_rows, run.decode_summary, run.rank_log(0)]


KIND = Kind(
    "decode", "E-DECODE-024", "answers no prompts", "back to it, and its replies", "stop it; answered turns are kept",
    _files,
)  # fmt: skip


JobArg = Annotated[
    str | None, typer.Argument(metavar="JOB", help="A job file of kind decode.", autocompletion=complete_jobs)
]
FromOpt = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="DIR|RUN", help="A published folder, a checkpoint, or a run; default: random weights.",
        autocompletion=complete_runs,
    ),
]  # fmt: skip
PromptsOpt = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE", help="A prompt a line, or *.json: a list of lists of turns.")
]
PromptOpt = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A turn; repeatable: one conversation.")
]
BackendOpt = Annotated[
    str | None, typer.Option("--backend", metavar="full|cache|decoupled", help="full: no cache, the replay.")
]
PolicyOpt = Annotated[
    str | None, typer.Option("--kv-policy", metavar="POLICY", help="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128")
]
TokensOpt = Annotated[str | None, typer.Option("--max-new-tokens", metavar="N", help="Of a reply; default 64.")]
TemperatureOpt = Annotated[
    str | None, typer.Option("--temperature", metavar="X", help="Default 0: the likeliest token.")
]
TopPOpt = Annotated[str | None, typer.Option("--top-p", metavar="X", help="With a temperature.")]
SeedOpt = Annotated[str | None, typer.Option("--seed", metavar="N", help="Of draws and random weights.")]
RepeatsOpt = Annotated[str | None, typer.Option("--repeats", metavar="N", help="Time every reply so often.")]
DtypeOpt = Annotated[str | None, typer.Option("--dtype", metavar="auto|fp32|bf16|fp16", help="Of the weights.")]
DeviceOpt = Annotated[
    str | None, typer.Option("--device", metavar="auto|cuda|cpu", help="Default: a GPU where there is one.")
]
PodOpt = Annotated[
    str | None,
    typer.Option("--pod", metavar="POD", help="Where; default: this machine.", autocompletion=complete_pods),
]
PythonOpt = Annotated[
    str | None, typer.Option("--python", metavar="PATH", help="An interpreter there; default: the pod's.")
]
RunOpt = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN", help="The replies of a run that there is.", autocompletion=complete_runs),
]
OutOpt = Annotated[str | None, typer.Option("--out", metavar="FILE", help="Replies and figures as JSON.")]


def decode(
    job: JobArg = None,
    weights: FromOpt = None,
    prompts: PromptsOpt = None,
    prompt: PromptOpt = None,
    backend: BackendOpt = None,
    kv_policy: PolicyOpt = None,
    max_new_tokens: TokensOpt = None,
    temperature: TemperatureOpt = None,
    top_p: TopPOpt = None,
    seed: SeedOpt = None,
    repeats: RepeatsOpt = None,
    dtype: DtypeOpt = None,
    device: DeviceOpt = None,
    pod: PodOpt = None,
    python: PythonOpt = None,
    run: RunOpt = None,
    out: OutOpt = None,
    json: Json = False,
) -> None:
    """Generate with a model on a pod: text, tokens/s, bytes, memory. Ctrl-C leaves it running."""
    from orchestrator.runs.waiting import Live

    number = partial(maybe_number, where="orch decode", example="0.8")
    settings: dict[str, Any] = {
        "backend": backend, "kv_policy": kv_policy, "max_new_tokens": maybe_whole(max_new_tokens, "--max-new-tokens"),
        "temperature": number(temperature, "--temperature"), "top_p": number(top_p, "--top-p"),
        "seed": maybe_whole(seed, "--seed"), "repeats": maybe_whole(repeats, "--repeats"),
        "dtype": dtype, "device": device,
    }  # fmt: skip
    _refuse_out(out)
    live, tell = Live(silent=json), partial(_tell, out=out, json=json)
    if run is None:
        from orchestrator.jobs.decode import Asked, decode_job

        if weights is not None:
            weights, pod = _weights(weights, pod)
        asked = Asked(job, weights, prompts, prompt or (), pod, python, settings)
        code = judge(KIND, decode_job(asked, Path.cwd()), live, tell, json=json)
    else:
        said = [v for v in settings.values() if v is not None]
        refuse_anything_beside_run(KIND, run, [job, weights, prompts, prompt, pod, python, *map(str, said)])
        code = answer(KIND, run, live, tell)
    raise typer.Exit(code)


def _weights(named: str, pod: str | None) -> tuple[str, str | None]:
    """(as the rank finds them, the pod where they lie). A folder of that name here goes before a run."""
    path = Path(named).expanduser()
    if path.is_dir():
        return str(path.absolute()), pod
    if "/" in named or named.startswith("~"):
        return named, pod  # on the pod
    try:
        source = open_source(named)
    except UsageError as e:
        raise UsageError(
            "E-DECODE-022", f"'{escape(named, 200)}' is no folder here and no run", where="--from", value=named,
            expected="a folder with config.json and *.safetensors, a checkpoint, or a run", did_you_mean=e.did_you_mean,
            fix="orch runs   (the runs that there are)",
        ) from e  # fmt: skip
    source.close()
    if pod is not None and pod != source.pod:
        raise UsageError(
            "E-DECODE-023", f"run {source.run.run_id} lies on pod {source.pod}", where="--pod", value=pod,
            expected=source.pod, fix=f"orch decode --from {source.run.run_id} --pod {source.pod}",
        )  # fmt: skip
    return source.run.run_id, source.pod


def _refuse_out(out: str | None) -> None:
    """Before anything is launched: a run is not to end in a name that was mistyped."""
    if out is None or (Path(out).parent.is_dir() and not Path(out).is_dir()):
        return
    why = "it is a directory" if Path(out).is_dir() else "its directory is not there"
    raise LocalError("E-DECODE-025", f"the replies cannot be written: {why}", where=out, fix="--out replies.json")


def _tell(source: Source, *, out: str | None, json: bool) -> int:
    from orchestrator.runs.decode import result_of
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.report import ending

    view = source.view()
    result = result_of(view, source.pod)
    if out is not None:
        _write(out, result.as_json())
    if json:
        emit({**result.as_json(), "out": out})
    else:
        if result.summary is None:
            say(*last_words(view), *ending(view, None), "")
        say(*result.lines(), *([] if out is None else [f"written: {out}"]))
    return exit_code(view)


def _write(out: str, document: dict[str, Any]) -> None:
    from orchestrator.runs.render import redacted

    text = jsonlib.dumps(redacted(document), indent=1, ensure_ascii=False)
    try:
        with as_the_person():
            Path(out).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        hint(f"note: the replies were not written: {e.strerror}")
