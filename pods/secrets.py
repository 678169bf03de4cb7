"""Where the values of a job's `secrets` come from: the operator's environment, else `$ORCH_HOME/secrets.yaml`.

Values travel beside a plan, never in it, and lie on the pod in one file of the run directory with mode 0600
(`workloads.contract.secretfile`). Called by the launch.

A value is refused when it is shorter than 8 characters: it could not be kept out of logs without eating ordinary text.
A value of several lines (a private key) is taken; each of its lines is kept out of logs.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping, Sequence

from workloads.contract.errors import ErrorGroup, LocalError, OrchError, SpecError, raise_all
from workloads.contract.rundir import OrchHome

MIN_CHARS = 8
MAX_CHARS = 64 << 10  # Linux gives one environment variable 128 KiB


def collect(names: Sequence[str], environ: Mapping[str, str], home: OrchHome) -> dict[str, str]:
    """The value of each name. LocalError, or a group of them, names what is missing; no error shows a value."""
    found: dict[str, str] = {}
    problems: list[OrchError] = []
    rest = [name for name in names if not environ.get(name)]
    kept = read_file(home) if rest else {}
    for name in names:
        value = environ.get(name) or kept.get(name)
        if not value:
            problems.append(_missing(name, home))
            continue
        where = f"${name}" if environ.get(name) else str(home.secrets)
        problem = _unusable(name, value, where)
        if problem is None:
            found[name] = value
        else:
            problems.append(problem)
    raise_all(problems)
    return found


def read_file(home: OrchHome) -> dict[str, str]:
    """What secrets.yaml holds; {} when there is none. LocalError unless it is this user's own with mode 0600."""
    path = home.secrets
    try:
        st = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise LocalError("E-SEC-001", f"the file of secrets cannot be read: {e.strerror}", where=str(path)) from e
    if not stat.S_ISREG(st.st_mode) or st.st_uid != os.getuid():
        raise LocalError(
            "E-SEC-002", "the file of secrets is not a file of your own", where=str(path),
            value=f"owner {st.st_uid}", expected=f"a regular file of user {os.getuid()}",
            fix=f"sudo chown {os.getuid()} {shlex.quote(str(path))}",
        )  # fmt: skip
    if st.st_mode & 0o077:
        raise LocalError(
            "E-SEC-003", "others on this machine may read the file of secrets", where=str(path),
            value=f"mode {st.st_mode & 0o777:04o}", expected="mode 0600", fix=f"chmod 600 {shlex.quote(str(path))}",
        )  # fmt: skip
    from pods.yamlfile import read_yaml

    try:
        doc = read_yaml(path)
    except SpecError as e:  # its text would show the line, and the value in it
        raise _no_yaml(e.where or str(path)) from None
    except ErrorGroup as e:
        raise _no_yaml(e.errors[0].where or str(path)) from None
    if doc.data is None:
        return {}
    if not isinstance(doc.data, dict):
        raise _no_yaml(str(path))
    raise_all(
        [
            LocalError(
                "E-SEC-004", f"the secret {name} is not text", where=doc.place(str(name)), expected="NAME: \"value\"",
                fix="put the value in quotes",
            )
            for name, value in doc.data.items()
            if not isinstance(value, str)
        ]
    )  # fmt: skip
    return {str(name): value for name, value in doc.data.items()}


def _no_yaml(where: str) -> OrchError:
    return LocalError(
        "E-SEC-004", "the file of secrets is not plain `NAME: value` lines", where=where,
        expected='NAME: "value"', fix="put every value in quotes",
    )  # fmt: skip


def _missing(name: str, home: OrchHome) -> OrchError:
    return LocalError(
        "E-SEC-005", f"the secret {name} is set nowhere",
        expected=f"the environment variable {name}, or a line `{name}: \"...\"` in {home.secrets}",
        fix=f"read -rs {name} && export {name}",
    )  # fmt: skip


def _unusable(name: str, value: str, where: str) -> OrchError | None:
    if len(value.strip()) < MIN_CHARS:
        return LocalError(
            "E-SEC-006", f"the secret {name} is too short to be kept out of logs without harming other text",
            where=where, value=f"{len(value.strip())} characters", expected=f"{MIN_CHARS} or more",
            fix="if it is no secret, put it in the job's `env`",
        )  # fmt: skip
    if len(value) > MAX_CHARS or "\0" in value:
        what = "holds a NUL" if "\0" in value else "is too long for an environment variable"
        return LocalError(
            "E-SEC-007", f"the secret {name} {what}", where=where, value=f"{len(value)} characters",
            expected=f"text of at most {MAX_CHARS} characters", fix="put it in a file on the pod: orch pods push",
        )  # fmt: skip
    return None
