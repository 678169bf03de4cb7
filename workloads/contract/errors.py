"""Errors that a person is meant to read.

    OrchError                  .code .what .where .value .expected .did_you_mean .fix .exit_code
    ├── UsageError        2    a command line that cannot be carried out
    ├── SpecError         2    a job file or inventory that is wrong
    ├── LocalError        3    this machine: a file, a missing program, a full disk
    │   └── MissingDataError   data that are not where the job says: they may come back (a mount, a copy under way)
    ├── UnreachableError  4    a pod could not be asked
    ├── RefusedError      5    a pod said no: host key, authentication
    ├── ConflictError     6    somebody else has it, or it exists already
    ├── RemoteError       7    something failed on a pod
    └── IntegrityError    8    bytes that do not match their hash
    ErrorGroup                 several of them at once (all mistakes of a file); exit code of the first

Every error renders to one block (`OrchError.render`) in the shape

    error[E-JOB-004]: train.stepz is not a known key
      where: jobs/llama.yaml:14
      value: 22
      expected: ...
      did you mean: train.steps
      fix:   rename the key

Raised everywhere; caught and printed by `orchestrator.cli` alone. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from workloads.contract.exitcodes import CliExit

MAX_VALUE_CHARS = 120


def escape(text: object, limit: int = MAX_VALUE_CHARS) -> str:
    """`text` on one line, control and bidirectional characters escaped, cut at `limit` characters."""
    kept = str(text)[: limit + 1]  # a character never becomes less than one
    out = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)
    return out if len(out) <= limit else out[: limit - 1] + "…"


class OrchError(Exception):
    """Base. `code` is stable (`E-<AREA>-<NNN>`), `what` is one sentence in the user's words."""

    exit_code: CliExit = CliExit.LOCAL

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str | None = None,
        value: Any = None,
        expected: str | None = None,
        did_you_mean: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.code, self.what, self.where, self.value = code, what, where, value
        self.expected, self.did_you_mean, self.fix = expected, did_you_mean, fix

    def render(self) -> str:
        """The block for stderr, without a final newline."""
        lines = [f"error[{self.code}]: {escape(self.what, 400)}"]
        rows = (
            ("where", self.where),
            ("value", self.value),
            ("expected", self.expected),
            ("did you mean", self.did_you_mean),
        )
        lines += [
            f"  {label}: {escape(v, 400 if label != 'value' else MAX_VALUE_CHARS)}"
            for label, v in rows
            if v is not None
        ]
        if self.fix:
            lines.append(f"  fix:   {escape(self.fix, 400)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The shape of an error under `--json`."""
        fields = ("code", "what", "where", "expected", "did_you_mean", "fix")
        row = {k: getattr(self, k) for k in fields if getattr(self, k) is not None}
        if self.value is not None:
            row["value"] = escape(self.value)
        return row


class UsageError(OrchError):
    exit_code = CliExit.USAGE


class SpecError(OrchError):
    exit_code = CliExit.USAGE


class LocalError(OrchError):
    exit_code = CliExit.LOCAL


class MissingDataError(LocalError):
    """A rank that meets it exits 1 and not 77: the job is right, and another attempt may find the data again."""


class UnreachableError(OrchError):
    exit_code = CliExit.UNREACHABLE


class RefusedError(OrchError):
    exit_code = CliExit.REFUSED


class ConflictError(OrchError):
    exit_code = CliExit.CONFLICT


class RemoteError(OrchError):
    exit_code = CliExit.REMOTE


class IntegrityError(OrchError):
    exit_code = CliExit.INTEGRITY


class ErrorGroup(OrchError):
    """Several errors shown at once, one block each."""

    def __init__(self, errors: Iterable[OrchError]) -> None:
        self.errors: Sequence[OrchError] = tuple(errors)
        if not self.errors:
            raise ValueError("an ErrorGroup needs at least one error")
        super().__init__(self.errors[0].code, f"{len(self.errors)} errors")
        self.exit_code = self.errors[0].exit_code

    def render(self) -> str:
        return "\n".join(e.render() for e in self.errors)

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "what": self.what, "errors": [e.as_dict() for e in self.errors]}


def raise_all(errors: Sequence[OrchError]) -> None:
    """Raise nothing, the one error, or an `ErrorGroup` of them."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ErrorGroup(errors)
