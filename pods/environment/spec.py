"""What an environment is: requirement lines, a version of Python and a platform, and the hash of these. Pure.

A file of the user is read by `load_requirements`; the lines that orch's own parts need are added where they are
missing (`with_orch`): ranks, supervisor and Ray share one environment. Anything that cannot be carried to another
machine (paths, `-e`, variables) is refused here, with file and line. Called by `ensure` and `orch pods bootstrap`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workloads.contract.errors import LocalError, OrchError, SpecError, raise_all

PYTHONS = ("3.12", "3.11")
BUILT_IN = Path(__file__).with_name("requirements.txt")
ORCH_NEEDS = ("ray[default]==2.60.0", "pydantic>=2.10,<3", "py-spy>=0.4")
"""Supervisor, agent and stack dumps; in every environment that orch builds."""

INDEX_OPTIONS = ("--index-url", "--extra-index-url", "--find-links")
_SHORT = {
    "-i": "--index-url",
    "-f": "--find-links",
    "-r": "-r",
    "--requirement": "-r",
    "-c": "-c",
    "--constraint": "-c",
}
_LINE = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?P<rest>.*)")
_REST = re.compile(r"(?:[<>=!~(][\w.*+!<>=~,() -]*)?(?:;.*)?|@\s*(?:https://|git\+https://).*")
_HASH = re.compile(r"\s--hash[= ](\S+)")
_LOCAL = re.compile(r"[./~]|file:|.*\.(whl|tar\.gz|zip)$")
MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 10


class Interpreter(Protocol):
    @property
    def version(self) -> str: ...


class Machine(Protocol):
    """What an environment depends on, as `pods.facts.PodFacts` and `ensure.About` tell it."""

    @property
    def arch(self) -> str | None: ...
    @property
    def libc(self) -> str | None: ...
    @property
    def pythons(self) -> Sequence[Interpreter]: ...
    @property
    def home_free_mib(self) -> int: ...
    @property
    def orch_home(self) -> str | None: ...


@dataclass(frozen=True)
class Platform:
    """`version` is that of the C library, (2, 36) for glibc 2.36."""

    machine: str
    libc: str
    version: tuple[int, int]


@dataclass(frozen=True)
class Requirements:
    """Normalised lines of one source; `constraints` bound versions without asking for anything."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """Line by project name."""
        return {name_of(line): line for line in self.lines if not line.startswith("-")}

    @property
    def hashed(self) -> bool:
        """Every line carries hashes: nothing else may be installed."""
        lines = self.names.values()
        return bool(lines) and all(" --hash=" in line for line in lines)


@dataclass(frozen=True)
class EnvSpec:
    requirements: Requirements
    python: str
    machine: str
    libc: str

    @property
    def hash(self) -> str:
        """16 hex digits: where it lies on a pod, `$ORCH_HOME/envs/<hash>`."""
        wanted = self.requirements
        parts = ("1", self.python, self.machine, self.libc, *wanted.lines, "-c", *wanted.constraints)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def ray(self) -> str:
        """The version of Ray that is asked for: exact where the line is, as orch's own is."""
        m = re.search(r"==([0-9.]*[0-9])", self.requirements.names.get("ray", ""))
        return m[1] if m else ""

    @property
    def has_torch(self) -> bool:
        """Asked for by name. A package may bring it all the same."""
        return "torch" in self.requirements.names


def wanted(
    facts: Machine, source: Path | None = None, *, python: str | None = None, torch: str | None = None
) -> EnvSpec:
    """The environment for a pod: of a file of the user, with what orch needs, or orch's own list.

    `python`: the version asked for; else the newest there that orch runs on, else the one that orch brings. `torch`
    (else ORCH_TORCH) takes the place of the list's. SpecError or ErrorGroup for a file that cannot be carried out.
    """
    if python is not None and python not in PYTHONS:
        raise SpecError("E-ENV-010", "orch runs on Python 3.11 and 3.12", value=python, fix="--python-version 3.12")
    there = {row.version.rpartition(".")[0] for row in facts.pythons}
    chosen = python or next((v for v in PYTHONS if v in there), PYTHONS[0])
    found = load_requirements(source or BUILT_IN)
    if torch:
        found = with_torch(found, torch, "--torch")
    elif source is None and (torch := os.environ.get("ORCH_TORCH")):
        found = with_torch(found, torch, "ORCH_TORCH")
    libc = (facts.libc or "glibc").split()[0]
    return EnvSpec(with_orch(found), chosen, facts.arch or "unknown", libc)


def name_of(line: str) -> str:
    """The normalised project name a requirement line begins with."""
    m = _LINE.match(line)
    return normal(m["name"]) if m else line


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_torch(found: Requirements, torch: str, where: str) -> Requirements:
    """`where`: who asks for it, `--torch` or the variable."""
    line = _requirement(torch if torch.startswith("torch") else f"torch=={torch}", where)
    if name_of(line) != "torch":
        fix = f"{where}{'=' if where.isupper() else ' '}'torch==2.13.0'"
        raise SpecError("E-ENV-001", "that is no requirement for torch", where=where, value=torch, fix=fix)
    others = tuple(x for x in found.lines if name_of(x) != "torch")
    return Requirements(_sorted([*others, line]), found.constraints)


def with_orch(found: Requirements, needs: Sequence[str] = ORCH_NEEDS) -> Requirements:
    """The same with what orch's own parts need. SpecError when a file with hashes lacks some of it."""
    missing = [line for line in needs if name_of(line) not in found.names]
    if missing and found.hashed:
        raise SpecError(
            "E-ENV-002", "every requirement has a hash, so orch cannot add what its own parts need without one",
            value=", ".join(missing), fix="add them to the file, with hashes: uv pip compile --generate-hashes",
        )  # fmt: skip
    return Requirements(_sorted([*found.lines, *missing]), found.constraints)


def load_requirements(path: Path) -> Requirements:
    """A requirements.txt (with what it includes) or a pyproject.toml. SpecError or ErrorGroup; LocalError."""
    if path.name == "pyproject.toml" or path.suffix == ".toml":
        return parse_pyproject(_read(path), str(path))
    lines: list[str] = []
    constraints: list[str] = []
    errors: list[OrchError] = []
    _walk(path, lines, constraints, errors, (), False)
    raise_all(errors)
    return Requirements(_sorted(lines), _sorted(constraints))


def parse_pyproject(text: str, source: str) -> Requirements:
    """`[project].dependencies`. SpecError when there are none, or they are made at build time."""
    try:
        project = tomllib.loads(text).get("project", {})
    except tomllib.TOMLDecodeError as e:
        raise SpecError("E-ENV-003", f"the file is not TOML: {e}", where=source) from e
    found = project.get("dependencies") if isinstance(project, dict) else None
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise SpecError(
            "E-ENV-004", "[project].dependencies is not a list of requirements", where=source,
            value=found, fix="name a requirements.txt instead",
        )  # fmt: skip
    lines: list[str] = []
    errors: list[OrchError] = []
    for line in found:
        try:
            lines.append(_requirement(line, source))
        except SpecError as e:
            errors.append(e)
    raise_all(errors)
    return Requirements(_sorted(lines))


def _walk(
    path: Path,
    lines: list[str],
    constraints: list[str],
    errors: list[OrchError],
    inside: tuple[Path, ...],
    constrain: bool,
) -> None:
    here = path.resolve()
    if here in inside or len(inside) >= MAX_DEPTH:
        errors.append(SpecError("E-ENV-005", "requirement files include each other without end", where=str(path)))
        return
    for number, line in _logical(_read(path)):
        where = f"{path}:{number}"
        try:
            option, value = _option(line, where)
            if option in ("-r", "-c"):
                if "://" in value:
                    raise _refused("an included file must be one on this machine", where, line)
                _walk(path.parent / value, lines, constraints, errors, (*inside, here), constrain or option == "-c")
            elif option:
                lines.append(f"{option} {value}")
            else:
                (constraints if constrain else lines).append(_requirement(line, where))
        except (SpecError, LocalError) as e:
            errors.append(e)


def _logical(text: str) -> Iterable[tuple[int, str]]:
    """Lines with continuations joined and comments dropped, with the number of the first."""
    held, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        start = start if held else number
        if raw.rstrip().endswith("\\") and not raw.lstrip().startswith("#"):
            held += raw.rstrip()[:-1] + " "
            continue
        line = re.sub(r"(^|\s)#.*$", "", held + raw).strip()
        held = ""
        if line:
            yield start, line
    if held.strip():
        yield start, held.strip()


def _option(line: str, where: str) -> tuple[str, str]:
    """(option, value) of a line that is one; ("", "") of a requirement. SpecError for one that cannot travel."""
    if not line.startswith("-"):
        return "", ""
    m = re.match(r"(--?[a-z-]+)[\s=]*(.*)", line)
    word, value = (m[1], m[2].strip()) if m else (line, "")
    if line.startswith("-e") or word == "--editable":
        raise _refused("an editable install names a directory of this machine", where, line)
    word = _SHORT.get(word, word)
    if word not in (*INDEX_OPTIONS, "-r", "-c"):
        raise _refused("that option of a requirement file is not understood", where, line)
    if word in INDEX_OPTIONS and not re.match(r"https?://", value):
        raise _refused("a path of this machine means nothing on a pod", where, line)
    if word in INDEX_OPTIONS and "${" in value:
        raise _refused("a variable of this machine is not known on a pod", where, line)
    return word, value


def _requirement(line: str, where: str) -> str:
    """Its normal form: `name[extra]>=1,<2; marker --hash=...`. SpecError when it is none, or cannot travel."""
    if "${" in line:
        raise _refused("a variable of this machine is not known on a pod", where, line)
    hashes = sorted(set(_HASH.findall(line)))
    plain = _HASH.sub("", line).strip()
    m = _LINE.fullmatch(plain)
    if m is None or not _REST.fullmatch(m["rest"]):
        if _LOCAL.match(plain) or (m and m["rest"].lstrip("@ ").startswith(("file:", "/", "."))):
            raise _refused("a path of this machine means nothing on a pod", where, line)
        raise SpecError("E-ENV-006", "that line is no requirement", where=where, value=line, expected="as `numpy>=2.0`")
    version, _, marker = m["rest"].partition(";") if not m["rest"].startswith("@") else (m["rest"], "", "")
    extras = ",".join(sorted(normal(x.strip()) for x in (m["extras"] or "").split(",") if x.strip()))
    out = normal(m["name"]) + (f"[{extras}]" if extras else "")
    out += f" @ {version[1:].strip()}" if version.startswith("@") else re.sub(r"\s+", "", version)
    out += f"; {' '.join(marker.split())}" if marker.strip() else ""
    return out + "".join(f" --hash={h}" for h in hashes)


def _refused(what: str, where: str, line: str) -> SpecError:
    return SpecError(
        "E-ENV-007", what, where=where, value=line,
        fix="name packages that a registry has; code of your own travels with the run (orch launch -- COMMAND)",
    )  # fmt: skip


def _sorted(lines: Iterable[str]) -> tuple[str, ...]:
    """Requirements in order of name; options in front, in the order of the file (the first index comes first)."""
    unique = tuple(dict.fromkeys(lines))
    return (*(x for x in unique if x.startswith("-")), *sorted(x for x in unique if not x.startswith("-")))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError("E-ENV-008", "the requirement file is larger than 1 MiB", where=str(path))
        return path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise LocalError("E-ENV-009", f"the requirement file cannot be read: {e.strerror}", where=str(path)) from e
    except UnicodeDecodeError as e:
        raise SpecError("E-ENV-006", "the requirement file is not UTF-8 text", where=str(path)) from e
