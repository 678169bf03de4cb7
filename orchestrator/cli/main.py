"""The `orch` command: its verbs, and the one place where errors become words and exit codes.

No verb lives here and no heavy import happens here: each function imports what it needs when it is called.
`--debug` anywhere before `--` shows tracebacks.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrator.cli import (
    bench,
    control,
    data,
    decode,
    estimate,
    export,
    gpu,
    halt,
    launch,
    look,
    machine,
    parity,
    pods,
    pull,
    reach,
    smoke,
    verifyresume,
    watch,
    why,
)
from orchestrator.cli.blocks import block_of, is_usage_error
from orchestrator.cli.shared import private
from workloads.contract.errors import ErrorGroup, OrchError
from workloads.contract.exitcodes import CliExit

COMMANDS = (
    launch.init,
    launch.launch,
    estimate.estimate,
    look.status,
    look.logs,
    why.why,
    watch.watch,
    control.dump,
    halt.halt,
    control.resume,
    look.runs,
    pull.pull,
    export.export,
    smoke.smoke,
    parity.parity,
    bench.bench,
    decode.decode,
    verifyresume.verify_resume,
    gpu.gpu,
    machine.doctor,
    machine.down,
    reach.forward,
    reach.dashboard,
    reach.tensorboard,
)


def build() -> typer.Typer:
    app = typer.Typer(
        name="orch",
        rich_markup_mode=None,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for command in COMMANDS:
        app.command(command.__name__.replace("_", "-"))(command)
    app.add_typer(pods.build(), name="pods")
    app.add_typer(data.build(), name="data")
    return app


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True, help="Show tracebacks.")] = False,
) -> None:
    """From machines with GPUs to a verified training run that keeps going."""
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            print("orch", installed("orch-runs"))
        except PackageNotFoundError:  # run from a checkout that was never installed
            print("orch (not installed)")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line; the exit code of the process. Never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    head, tail = split_command(args)
    debug = "--debug" in head or bool(os.environ.get("ORCH_DEBUG"))
    head = [a for a in head if a != "--debug"]
    _prepare_streams()
    try:
        with private():
            code = _carry_out(head, tail, debug=debug)
        sys.stdout.flush()
    except BrokenPipeError:
        return _die_of_pipe()
    except KeyboardInterrupt:  # a second one, while the first was being handled
        return CliExit.INTERRUPTED
    except OSError as e:  # stdout leads to a full disk: the answer cannot be given, and that is told on stderr
        _mute(1)
        return _tell(block_of(e), as_json=False)
    return code


def split_command(args: list[str]) -> tuple[list[str], list[str] | None]:
    """(orch's own words, the user's command): where a command may follow, all after the first `--` is that, whole."""
    words = [a for a in args[: args.index("--")] if not a.startswith("-")] if "--" in args else []
    if words[:1] != ["launch"] and words[:2] not in (["pods", "exec"], ["pods", "ssh"]):
        return args, None
    at = args.index("--")
    return args[:at], args[at + 1 :]


def _verb(args: list[str]) -> str | None:
    return next((a for a in args if not a.startswith("-")), None)


def _carry_out(head: list[str], tail: list[str] | None, *, debug: bool) -> int:
    command = typer.main.get_command(build())
    try:
        code = command.main(head, prog_name="orch", standalone_mode=False, obj=tail)
    except BrokenPipeError:
        raise
    except SystemExit as e:  # Typer turns a broken pipe into exit 1, and completion ends this way
        if isinstance(e.__context__, BrokenPipeError):
            raise e.__context__ from e
        return e.code if isinstance(e.code, int) else CliExit.OK
    except (KeyboardInterrupt, typer.Abort):
        return CliExit.INTERRUPTED
    except Exception as e:  # the top of the program: whatever happens becomes one block and an exit code
        if debug and not is_usage_error(e):
            traceback.print_exc()
        return _tell(block_of(e, _verb(head)), as_json="--json" in head)
    return int(code) if isinstance(code, int) else CliExit.OK


def _tell(error: OrchError, *, as_json: bool) -> int:
    from orchestrator.runs.redact import redact_error
    from orchestrator.runs.render import redacted

    for one in error.errors if isinstance(error, ErrorGroup) else (error,):
        redact_error(one, redacted)  # what a pod says went wrong may hold a secret of the run
    try:
        print(error.render(), file=sys.stderr)
    except OSError:  # nobody can be told; the exit code still says it
        _mute(2)
    if as_json:
        from orchestrator.cli.shared import emit

        emit({"v": 1, "error": error.as_dict()})
    return error.exit_code


def _prepare_streams() -> None:
    """Closed standard streams become /dev/null; what a terminal cannot encode is escaped instead of raised."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _mute(fd: int) -> None:
    """What is still buffered for a stream that takes nothing goes to /dev/null at the interpreter's last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _die_of_pipe() -> int:
    """End as any filter does whose reader went away: silently, by SIGPIPE."""
    _mute(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return CliExit.OK  # not reached unless SIGPIPE is blocked


if __name__ == "__main__":
    sys.exit(main())
