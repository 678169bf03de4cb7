"""Any exception as an `OrchError`, so that a person always reads one block of the same shape.

    E-CLI-001 unknown command   002 unknown option   003 something is missing   004 a value is wrong   005 other usage
    E-CLI-010 this machine refused something (OSError)   E-BUG-001 anything that should not happen

Called by `orchestrator.cli.main` alone.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import typer

from workloads.contract.errors import LocalError, OrchError, UsageError

# Typer carries its own Click since 0.26 and used Click before: the class is found, not imported
_CLICK_ERRORS = tuple(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def is_usage_error(error: Exception) -> bool:
    return isinstance(error, _CLICK_ERRORS)


def block_of(error: Exception, verb: str | None = None) -> OrchError:
    """The error as one that can be shown. An `OrchError` is itself. `verb`: the command that was typed."""
    if isinstance(error, OrchError):
        return error
    if isinstance(error, _CLICK_ERRORS):
        return _usage(error, verb)
    if isinstance(error, OSError) and error.strerror:
        where = None if error.filename is None else str(error.filename)
        return LocalError("E-CLI-010", f"this machine says: {error.strerror}", where=where, fix="see `orch doctor`")
    return LocalError(
        "E-BUG-001",
        f"orch itself failed: {type(error).__name__}: {error}",
        fix="run again with --debug and report what it shows",
    )


def _usage(error: Any, verb: str | None) -> UsageError:
    ctx = error.ctx
    path = ctx.command_path if ctx is not None else "orch"
    if verb and path == "orch" and type(error).__name__ == "BadOptionUsage":
        path = f"orch {verb}"  # it says nothing of the command itself
    message = str(error.format_message()).rstrip(".")
    fix = f"{path} --help"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return UsageError(
            "E-CLI-002", f"{path} has no option {error.option_name}", where=path,
            did_you_mean=_nearest(error.option_name, _options(ctx)), fix=fix,
        )  # fmt: skip
    if m := re.match(r"""No such command (['"])(.*?)\1""", message, re.DOTALL):
        commands = list(getattr(ctx.command, "commands", {})) if ctx is not None else []
        near = _nearest(m[2], commands)
        return UsageError("E-CLI-001", f"{path} has no command {m[2]!r}", did_you_mean=near, fix=fix)
    if kind == "MissingParameter":
        return UsageError("E-CLI-003", f"{path} needs {_parameter(error)}", where=path, fix=fix)
    code = "E-CLI-004" if kind == "BadParameter" else "E-CLI-005"
    return UsageError(code, message[:1].lower() + message[1:], where=path, fix=fix)


def _parameter(error: Any) -> str:
    param = error.param
    if param is None:
        return "one more argument"
    names = [o for o in param.opts if o.startswith("-")]
    return names[0] if names else str(param.metavar or param.name).upper()


def _options(ctx: Any) -> list[str]:
    return [o for p in ctx.command.params for o in p.opts if o.startswith("-")] if ctx is not None else []


def _nearest(word: str, words: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, 1, 0.5)), None)
