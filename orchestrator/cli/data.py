"""`orch data`: does a job's data come, and how fast? Tokenize it once. Bring GPT-2's vocabulary to a pod.

`check` and `prepare` are supervised runs, followed to their answer. Registered by `orchestrator.cli.main`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.complete import complete_jobs, complete_pods, complete_runs
from orchestrator.cli.judging import Kind, answer, judge
from orchestrator.cli.shared import Json, emit, home, maybe_number, maybe_whole, say
from workloads.contract.errors import escape
from workloads.contract.exitcodes import CliExit

if TYPE_CHECKING:
    from orchestrator.runs.source import Source

KIND = Kind(
    "data", "E-DATA-052", "checks and prepares no data", "back to it, and its answer",
    "stop it; parts that are done are kept", lambda run: (run.verdict, run.rank_log(0)),
)  # fmt: skip
JobArg = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="A job of kind train; or give --source.", autocompletion=complete_jobs),
]
PodOpt = Annotated[
    str | None,
    typer.Option("--pod", metavar="POD", help="Where; default: the job's, or here.", autocompletion=complete_pods),
]
SourceOpt = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="text, jsonl, parquet, hub, stdlib, ...")
]
PathOpt = Annotated[str | None, typer.Option("--path", metavar="PATH", help="Of the source, on the pod.")]
RepoOpt = Annotated[str | None, typer.Option("--repo", metavar="NAME", help="Source hub: the data set.")]
ConfigOpt = Annotated[str | None, typer.Option("--config", metavar="NAME", help="Source hub: its configuration.")]
SplitOpt = Annotated[str | None, typer.Option("--split", metavar="NAME", help="Source hub: default train.")]
FieldOpt = Annotated[str | None, typer.Option("--text-field", metavar="NAME", help="Where a document's text is.")]
TokenizerOpt = Annotated[
    str | None, typer.Option("--tokenizer", metavar="NAME|PATH", help="byte, gpt2, or a tokenizer.json on the pod.")
]
SetOpt = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As of orch launch.")]
PythonOpt = Annotated[str | None, typer.Option("--python", metavar="PATH", help="An interpreter there.")]


def build() -> typer.Typer:
    """The sub-commands of `orch data`."""
    app = typer.Typer(help="What a training reads: check it, prepare it.", rich_markup_mode=None)
    app.callback(invoke_without_command=True)(_root)
    app.command("check")(check)
    app.command("prepare")(prepare)
    app.command("import")(import_)
    return app


def _root(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="The answer of a run there is.", autocompletion=complete_runs),
    ] = None,
    json: Json = False,
) -> None:
    """What a training reads: check it, prepare it."""
    if ctx.invoked_subcommand is not None:
        return
    if run is None:
        print(ctx.get_help())
        return
    from orchestrator.runs.waiting import Live

    raise typer.Exit(answer(KIND, run, Live(silent=json), partial(_tell, json=json)))


def check(
    job: JobArg = None,
    source: SourceOpt = None,
    path: PathOpt = None,
    repo: RepoOpt = None,
    config: ConfigOpt = None,
    split: SplitOpt = None,
    text_field: FieldOpt = None,
    tokenizer: TokenizerOpt = None,
    batches: Annotated[str | None, typer.Option("--batches", metavar="N", help="At most so many.")] = None,
    seconds: Annotated[str | None, typer.Option("--seconds", metavar="S", help="At most so long; default 10.")] = None,
    pod: PodOpt = None,
    sets: SetOpt = None,
    python: PythonOpt = None,
    json: Json = False,
) -> None:
    """Read a job's data as its training would: speed, waits, source, first text. Exit 1: it does not come."""
    task = {
        "kind": "check", "batches": maybe_whole(batches, "--batches"),
        "seconds": maybe_number(seconds, "--seconds", "orch data check", "10"),
    }  # fmt: skip
    data = _data(source, path, repo, config, split, text_field, tokenizer)
    _run(job, data, task, pod=pod, sets=sets, python=python, json=json)


def prepare(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="A new folder for the shards, on the pod.")],
    job: JobArg = None,
    source: SourceOpt = None,
    path: PathOpt = None,
    repo: RepoOpt = None,
    config: ConfigOpt = None,
    split: SplitOpt = None,
    text_field: FieldOpt = None,
    tokenizer: TokenizerOpt = None,
    workers: Annotated[str | None, typer.Option("--workers", metavar="N", help="Default: one a core.")] = None,
    max_tokens: Annotated[str | None, typer.Option("--max-tokens", metavar="N", help="About so many.")] = None,
    pod: PodOpt = None,
    sets: SetOpt = None,
    python: PythonOpt = None,
    json: Json = False,
) -> None:
    """Tokenize a source once, into hashed shards for `data.source: prepared`. Again after a kill: it goes on."""
    task = {
        "kind": "prepare", "out": out, "workers": maybe_whole(workers, "--workers"),
        "max_tokens": maybe_whole(max_tokens, "--max-tokens"),
    }  # fmt: skip
    data = _data(source, path, repo, config, split, text_field, tokenizer)
    _run(job, data, task, pod=pod, sets=sets, python=python, json=json)


def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="vocab.bpe and encoder.json, their folder, or a .tiktoken.")
    ],
    pod: PodOpt = None,
    json: Json = False,
) -> None:
    """Bring GPT-2's vocabulary to a pod that cannot download it. Its hash is checked here, there, and at each use."""
    from pods.access import find_pod
    from pods.pod import told
    from workloads.contract.gptvocab import SHA256, read_import

    data = read_import(files)
    name = pod or "local"
    there = find_pod(home(), name)[1]
    try:
        path = told(there.call("tokenizers.keep", {}, data).fields, "path", str, name)
    finally:
        there.close()
    if json:
        emit({"v": 1, "pod": name, "path": path, "sha256": SHA256, "tokenizer": "gpt2"})
    else:
        say(f"gpt2 is on pod {name}: {escape(path, 400)}")


def _run(
    job: str | None, data: dict[str, Any], task: dict[str, Any], *, pod: str | None, sets: list[str] | None,
    python: str | None, json: bool,
) -> None:  # fmt: skip
    from orchestrator.jobs.data import Asked, data_job
    from orchestrator.runs.waiting import Live

    task = {key: value for key, value in task.items() if value is not None}
    loaded = data_job(Asked(job, data, task, sets or (), pod, python), Path.cwd())
    raise typer.Exit(judge(KIND, loaded, Live(silent=json), partial(_tell, json=json), json=json))


def _data(
    source: str | None, path: str | None, repo: str | None, config: str | None, split: str | None,
    text_field: str | None, tokenizer: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The typed keys of a `data` block."""
    named = {"source": source, "path": path, "text_field": text_field, "tokenizer": tokenizer}
    found: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    dataset = {key: value for key, value in (("repo", repo), ("config", config), ("split", split)) if value is not None}
    if dataset:
        found["dataset"] = dataset
        found.setdefault("source", "hub")
    return found


def _tell(source: Source, *, json: bool) -> int:
    from orchestrator.runs.data import result_of
    from orchestrator.runs.follow import exit_code, last_words
    from orchestrator.runs.judged import GO
    from orchestrator.runs.report import ending

    view = source.view()
    result = result_of(view, source.pod)
    if json:
        emit(result.as_json())
    else:
        if result.verdict is None:
            say(*last_words(view), *ending(view, None), "")
        say(*result.lines())
    if result.verdict is not None:
        return CliExit.OK if result.verdict.verdict == GO else CliExit.RUN_FAILED
    return exit_code(view) or CliExit.RUN_FAILED
