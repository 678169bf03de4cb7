"""`orch forward`, `orch dashboard` and `orch tensorboard`: a page of a pod on this machine's loopback, until Ctrl-C."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.podswork import PodName
from orchestrator.cli.shared import RUN_HELP, Json, Run, emit, hint, home, say
from workloads.contract.errors import OrchError, UsageError
from workloads.contract.rundir import RunDir

if TYPE_CHECKING:
    from orchestrator.runs.source import Source
    from pods.transport.ssh import SshTransport
    from pods.transport.tunnel import Tunnel

LOOK_S = 0.5
REFRESH_S = 10.0
RUN_OR_POD_HELP = f"{RUN_HELP} Or a pod. Default: the newest run."


def forward(
    pod: PodName,
    port: Annotated[str, typer.Argument(metavar="PORT", help="A port that is listened on there, on its loopback.")],
    json: Json = False,
) -> None:
    """A port of a pod on a port of this machine's loopback, until Ctrl-C."""
    from orchestrator.cli.shared import whole

    number = whole(port, "PORT")
    if not 1 <= number <= 65535:
        raise UsageError("E-CLI-004", f"PORT cannot be {number}", value=port, expected="1 to 65535")
    with ExitStack() as stack:
        tunnel = _tunnel(stack, _transport(stack, pod), number)
        _tell(f"http://127.0.0.1:{tunnel.local_port}", {"pod": pod, "port": number}, json=json)
        _wait(LOOK_S, _troubles(tunnel))


def dashboard(
    what: Annotated[str | None, typer.Argument(metavar="RUN|POD", help=RUN_OR_POD_HELP)] = None,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the token that the page asks for.")] = False,
    json: Json = False,
) -> None:
    """Ray's dashboard for a run or a pod, until Ctrl-C. The page asks for a token."""
    from orchestrator.inventory.dashboard import find_dashboard, read_token
    from pods.access import find_pod

    name = _pod_of(what)
    spec, pod = find_pod(home(), name)
    with ExitStack() as stack:
        stack.callback(pod.close)
        found = find_dashboard(pod)
        token = read_token(pod, found) if show_token else None
        tunnel = None if spec.local else _tunnel(stack, _transport(stack, name), found.port)
        port = found.port if tunnel is None else tunnel.local_port
        read = f"cat {shlex.quote(str(found.token_path))}"
        command = read if spec.local else f"orch pods ssh {name} -- {read}"
        if not json:
            hint(f"token: {token}" if token else f"the page asks for a token; this prints it:  {command}")
        _tell(f"http://127.0.0.1:{port}", {"pod": name, "port": found.port, "token_command": command,
                                           "token": token}, json=json)  # fmt: skip
        if tunnel is not None:
            _wait(LOOK_S, _troubles(tunnel))


def tensorboard(run: Run, json: Json = False) -> None:
    """TensorBoard over a run's `tb/`, until Ctrl-C: on its pod when it is installed there, else here over a copy."""
    from orchestrator.inventory import tensorboard as tb
    from orchestrator.runs.source import FarSource, fetch, resolve
    from pods.transport.local import LocalTransport

    source = resolve(home(), run)
    ident = source.run.run_id
    with ExitStack() as stack:
        stack.callback(source.close)
        if isinstance(source, FarSource):
            fetch(source)
            transport = _transport(stack, source.pod)
            if argv := tb.on_pod(transport, _pythons(source)):
                there = RunDir(source.far_pod().home.runs / ident).tensorboard
                page = tb.Page.start(transport, argv, str(there))
                stack.callback(page.close)
                tunnel = _tunnel(stack, transport, page.port)
                _tell(f"http://127.0.0.1:{tunnel.local_port}", {"run": ident, "where": source.pod}, json=json)
                _wait(LOOK_S, page.look, _troubles(tunnel))
                return
        own = tb.here()
        if own is None:
            raise tb.installed_nowhere(source.pod if source.far else None, ident)
        if source.far:
            fetch(source, "no-logs")
        if not any(source.run.tensorboard.glob("**/*tfevents*")):
            hint("note: the run has written no event files so far")
        page = tb.Page.start(LocalTransport(), own, str(source.run.tensorboard))
        stack.callback(page.close)
        _tell(f"http://127.0.0.1:{page.port}", {"run": ident, "where": "local"}, json=json)
        _wait(LOOK_S, page.look, _refresher(source))


def _refresher(source: Source) -> Callable[[], None]:
    """Brings the copy of a run up to date every ten seconds; says once why that does not go on."""
    from orchestrator.runs.source import fetch

    due, told = time.monotonic() + REFRESH_S, ""

    def look() -> None:
        nonlocal due, told
        if not source.far or time.monotonic() < due:
            return
        try:
            fetch(source, "no-logs")
            told = ""
        except OrchError as e:
            if e.what != told:
                hint(f"note: {e.what}")
            told = e.what
        due = time.monotonic() + REFRESH_S

    return look


def _pythons(source: Source) -> list[str]:
    from workloads.contract.files import try_read_json

    pods = (try_read_json(source.run.run_json) or {}).get("pods")
    rows = [p for p in pods if isinstance(p, dict)] if isinstance(pods, list) else []
    found = [str(p[k]) for p in rows[:1] for k in ("python", "orch_python") if isinstance(p.get(k), str)]
    return list(dict.fromkeys([*found, "python3"]))


def _pod_of(what: str | None) -> str:
    """The pod that is meant: by its name, or as the place of a run."""
    from orchestrator.runs.find import LATEST, pick
    from orchestrator.runs.index import list_runs
    from pods.inventory import load_inventory

    if what is not None and what in load_inventory(home()).pods:
        return what
    return pick(list_runs(home()), what or LATEST).pod or "local"


def _transport(stack: ExitStack, name: str) -> SshTransport:
    """A connection of its own to a pod, made now: a pod that cannot be reached is told before anything is promised."""
    from pods.access import find_spec

    spec = find_spec(home(), name)
    if spec.local:
        raise UsageError("E-PODS-083", "this machine's ports need no way to them", value=name, fix="orch pods list")
    from pods.transport.ssh import SshTransport

    transport = SshTransport(name, spec)
    stack.callback(transport.close)
    transport.connect()
    return transport


def _tunnel(stack: ExitStack, transport: SshTransport, port: int) -> Tunnel:
    from pods.transport.tunnel import open_tunnel

    return stack.enter_context(open_tunnel(transport, "127.0.0.1", port))


def _tell(url: str, more: dict[str, object], *, json: bool) -> None:
    import sys

    if json:
        emit({"v": 1, "url": url, **more})
    else:
        say(url)
        hint("Ctrl-C ends it")
    sys.stdout.flush()


def _troubles(tunnel: Tunnel) -> Callable[[], None]:
    """Says each new reason for which a connection came to nothing."""
    told: list[OrchError | None] = [None]

    def look() -> None:
        if tunnel.last_error is not None and tunnel.last_error is not told[0]:
            told[0] = tunnel.last_error
            hint(tunnel.last_error.render())

    return look


def _wait(every_s: float, *looks: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM, which is how these commands are meant to end: exit code 0."""
    import signal

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        while True:
            time.sleep(every_s)
            for look in looks:
                look()
    except KeyboardInterrupt:
        return
