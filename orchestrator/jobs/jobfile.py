"""From what a person names (a recipe, a file, a command) to a checked `JobSpec`. Reads files, writes nothing.

All mistakes of a file and of the `--set` options are told at once, each with its place. Called by `orch launch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from orchestrator.jobs.commandname import name_of_command
from orchestrator.jobs.overrides import Override, apply_overrides, maker, one_more, origin, parse_overrides
from orchestrator.jobs.rules import LATER, broken_rules
from pods.remote.relaunch import COMMAND_LINE
from pods.speccheck import Subject, check
from pods.specwords import NAME_IN_WORDS, Broken, slug
from pods.yamlfile import YamlDoc, read_yaml
from workloads.contract.config.job import JobSpec
from workloads.contract.errors import ErrorGroup, LocalError, OrchError, SpecError, UsageError, raise_all
from workloads.contract.rundir import NAME_PATTERN

RECIPES = Path(__file__).resolve().parents[2] / "workloads" / "recipes"


@dataclass(frozen=True)
class LoadedJob:
    spec: JobSpec
    source: str  # absolute path or "command line"
    where: Callable[[str], str] = field(default=lambda path: path or COMMAND_LINE, compare=False)
    """the place of a key: `file:line` or the option that gave it"""


def recipes() -> dict[str, Path]:
    """The jobs that come with orch, by name."""
    return {p.stem: p for p in sorted(RECIPES.glob("*.yaml"))}


def load_job(
    ref: str, *, sets: Sequence[str] = (), name: str | None = None, pods: Sequence[str] = (), cwd: Path,
    synthetic_on_fail: bool = False,
) -> LoadedJob:  # fmt: skip
    """The job in a recipe or a file, with the overrides. SpecError, UsageError, LocalError or a group of them.

    synthetic_on_fail: `synthetic` is the last of `data.fallback`, whatever the job says.
    """
    path, shown = _find(ref, cwd)
    overrides, errors = _overrides(sets, name, pods)
    try:
        doc = read_yaml(path, shown)
    except ErrorGroup as e:
        raise_all([*errors, *e.errors])
    except OrchError as e:
        raise_all([*errors, e])
    data = _mapping(doc, errors)
    if "name" not in data and name is None and not any(o.path == ("name",) for o in overrides):
        errors.append(_nameless(doc, path))
    data = {"name": slug(path.stem), **data}
    if synthetic_on_fail:
        overrides += one_more(data, overrides, ("data", "fallback"), "synthetic", "--synthetic-on-fail")
    return _check(data, overrides, doc, errors, str(path))


def command_job(
    argv: Sequence[str], *, name: str | None, sets: Sequence[str] = (), pods: Sequence[str] = (), cwd: Path
) -> LoadedJob:
    """A job that runs `argv` as it is, whatever bytes are in it. `cwd` is where it will run."""
    overrides, errors = _overrides(sets, name, pods)
    # the model takes Unicode only; file names of any bytes arrive as surrogates and are put in afterwards
    plain = [a.encode("utf-8", "replace").decode() for a in argv]
    data = {"name": name_of_command(argv), "kind": "command", "command": plain}
    loaded = _check(data, overrides, YamlDoc(data, {}, COMMAND_LINE), errors, COMMAND_LINE)
    if loaded.spec.command != plain:
        return loaded
    return replace(loaded, spec=loaded.spec.model_copy(update={"command": list(argv)}))


def made_job(
    data: Mapping[str, Any], source: str, *, name: str | None, sets: Sequence[str] = (), pods: Sequence[str] = ()
) -> LoadedJob:
    """A job that a command makes of its own arguments; `source` is that command, as a person would type it."""
    overrides, errors = _overrides(sets, name, pods)
    loaded = _check(data, overrides, YamlDoc(dict(data), {}, COMMAND_LINE), errors, source)
    return loaded


def requirements_of(loaded: LoadedJob, cwd: Path) -> Path | None:
    """The job's file of requirements: beside the job file, or where the launch was typed."""
    named = loaded.spec.requirements
    if named is None:
        return None
    source = Path(loaded.source)
    return (source.parent if source.is_absolute() else cwd) / Path(named).expanduser()


def _overrides(sets: Sequence[str], name: str | None, pods: Sequence[str]) -> tuple[list[Override], list[OrchError]]:
    found, errors = parse_overrides(sets)
    if pods:
        found.append(Override(("pods",), list(pods), " --pod ".join(pods), "--pod"))
    if name is not None and not NAME_PATTERN.fullmatch(name):
        near = slug(name)
        errors.append(
            UsageError(
                "E-JOB-009",
                "--name is not a name",
                where="--name",
                value=name,
                expected=NAME_IN_WORDS,
                did_you_mean=near,
                fix=f"--name {near}",
            )
        )
    elif name is not None:
        found.append(Override(("name",), name, f"name={name}"))
    return found, errors


def _mapping(doc: YamlDoc, errors: Sequence[OrchError]) -> dict[str, Any]:
    if isinstance(doc.data, dict):
        return doc.data
    what = "the job file is empty" if doc.data is None else "the job file is not a mapping"
    raise_all(
        [
            *errors,
            SpecError(
                "E-JOB-002", what, where=f"{doc.source}:1", expected="`key: value` lines, first of all `name:`",
                fix="orch init   (writes a commented one)",
            ),
        ]
    )  # fmt: skip
    raise AssertionError("raise_all returned")


def _nameless(doc: YamlDoc, path: Path) -> SpecError:
    return SpecError(
        "E-JOB-003", "name is missing", where=f"{doc.source}:1", expected=NAME_IN_WORDS, fix=f"name: {slug(path.stem)}"
    )


def _check(
    data: Mapping[str, Any], overrides: Sequence[Override], doc: YamlDoc, errors: Sequence[OrchError], source: str
) -> LoadedJob:
    """The overrides put in, the model's rules, then the rules over several parts."""

    def where(path: str) -> str:
        made = None if path in doc.marks else maker(path, overrides)
        return origin(path, overrides) or made or doc.place(path)

    def rules(spec: JobSpec) -> list[Broken]:
        return broken_rules(spec, shortened=origin("train.steps", overrides) is not None)

    found = list(errors)
    try:
        data = apply_overrides(data, overrides)
    except ErrorGroup as e:
        found += e.errors
    except OrchError as e:
        found.append(e)
    spec = check(JobSpec, data, Subject("JOB", where, LATER, rules, doc.line), found)
    return LoadedJob(spec, source, where)


def _find(ref: str, cwd: Path) -> tuple[Path, str]:
    """(absolute path, as shown in errors) of a recipe or a job file."""
    known = recipes()
    if "/" not in ref and ref in known:
        return known[ref], f"recipe {ref}"
    path = cwd / Path(ref).expanduser()
    try:
        if path.is_file():
            return path.absolute(), ref
        if path.is_dir():
            raise _is_directory(ref, path)
        there = path.exists()
    except (OSError, ValueError) as e:  # a name that no file can have
        raise SpecError("E-JOB-001", f"{ref!r} is not the name of a file", where="JOB", value=ref) from e
    if there:
        raise SpecError("E-JOB-001", "this is not a regular file", where=ref, expected="a YAML file")
    raise _not_there(ref, path, known)


def _is_directory(ref: str, path: Path) -> SpecError:
    inside = sorted(p.name for p in path.glob("*.yaml"))
    return SpecError(
        "E-JOB-001", "this is a directory", where=ref, expected="a YAML file",
        fix=f"orch launch {ref.rstrip('/')}/{inside[0]}" if inside else "name the file in it",
    )  # fmt: skip


def _not_there(ref: str, path: Path, known: Mapping[str, Path]) -> OrchError:
    if "/" in ref or Path(ref).suffix in (".yaml", ".yml"):
        there = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = get_close_matches(path.name, there, n=1)
        return LocalError(
            "E-JOB-001", "there is no such job file", where=f"{ref} ({path.absolute()})",
            did_you_mean=str(Path(ref).parent / close[0]) if close else None,
            fix="orch init   (writes a commented one)",
        )  # fmt: skip
    close = get_close_matches(ref, known, n=1)
    return SpecError(
        "E-JOB-001", f"{ref!r} is neither a recipe nor a file here", where=f"JOB ({path.absolute()})",
        expected="a recipe (" + ", ".join(known) + ") or the path of a job file",
        did_you_mean=close[0] if close else None,
        fix=f"orch launch {close[0] if close else next(iter(known), 'job.yaml')}",
    )  # fmt: skip
