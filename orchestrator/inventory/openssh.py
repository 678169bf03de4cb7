"""The `ssh` command of OpenSSH for a pod: it accepts the pinned key and no other, and never forwards the agent.

The pinned keys go into a file of their own, `$ORCH_HOME/cache/known_hosts/<pod>`, made anew each time; it goes
with the pod. Hosts that are jumped through are checked against their pinned keys, or where there
are none against the person's own known_hosts. Called by `orch pods ssh`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from pods.transport.hostkeys import algorithms, parse_key
from pods.transport.target import parse_ssh
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import LocalError, RefusedError
from workloads.contract.files import atomic_write
from workloads.contract.rundir import OrchHome


def known_hosts_file(home: OrchHome, name: str) -> Path:
    return home.cache / "known_hosts" / name


def forget_file(home: OrchHome, name: str) -> None:
    with contextlib.suppress(OSError):
        known_hosts_file(home, name).unlink()


def ssh_argv(home: OrchHome, name: str, spec: PodSpec, command: Sequence[str] | None, *, tty: bool) -> list[str]:
    """What to run. LocalError without OpenSSH, RefusedError for a pod whose key is not pinned."""
    if spec.ssh is None or spec.host_key is None:
        raise RefusedError(
            "E-PODS-010", f"the host key of pod {name} is not pinned", where=str(home.inventory),
            fix=f"orch pods repin {name}   (shows the key and asks)",
        )  # fmt: skip
    program = shutil.which("ssh")
    if program is None:
        raise LocalError(
            "E-PODS-011", "OpenSSH's `ssh` is not installed here", fix=f"orch pods exec {name} -- COMMAND",
        )  # fmt: skip
    path = known_hosts_file(home, name)
    keys = {
        alias_of(name): parse_key(spec.host_key),
        **{alias_of(name, i): parse_key(k) for i, k in enumerate(spec.jump_keys)},
    }
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(path, "".join(f"{alias} {key}\n" for alias, key in keys.items()).encode(), durable=False)
    proxy = _proxy(program, path, name, spec) if spec.jump_keys else None
    argv = [program, *_options(path, alias_of(name), spec.host_key, proxy), *_identity(spec)]
    if tty:
        argv.append("-t")
    return [*argv, *_where(spec.ssh), *(["--", shlex.join(command)] if command else [])]


def alias_of(name: str, hop: int | None = None) -> str:
    """The name a key has in the file: no address, so that another machine's can never be meant."""
    return f"orch-pod-{name}" if hop is None else f"orch-pod-{name}-jump{hop}"


def _options(path: Path, alias: str, key: str, proxy: str | None) -> list[str]:
    options = [
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={_config_path(path)}",
        "GlobalKnownHostsFile=none",
        f"HostKeyAlias={alias}",
        f"HostKeyAlgorithms={','.join(algorithms([key]))}",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
        "VerifyHostKeyDNS=no",
        "KnownHostsCommand=none",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "ControlPath=none",
        *([f"ProxyCommand={proxy}"] if proxy else []),
    ]
    return [*_config_file(), *(word for option in options for word in ("-o", option))]


def _config_file() -> list[str]:
    """`-F` where HOME is not the home of /etc/passwd: ssh looks only there, and would read another configuration."""
    path = Path.home() / ".ssh" / "config"
    try:
        same = Path(pwd.getpwuid(os.getuid()).pw_dir) == Path.home()
    except KeyError:
        same = False
    return ["-F", str(path)] if not same and path.is_file() else []


def _config_path(path: Path) -> str:
    """A path as ssh's configuration takes it: quoted for spaces, `%` and `$` not expanded."""
    return '"' + str(path).replace("%", "%%").replace('"', '\\"') + '"'


def _identity(spec: PodSpec) -> list[str]:
    return ["-i", str(Path(spec.identity).expanduser()), "-o", "IdentitiesOnly=yes"] if spec.identity else []


def _where(text: str) -> list[str]:
    """`-p 2222 -l ada host`, which no host name can turn into an option."""
    target = parse_ssh(text)
    port = ["-p", str(target.port)] if target.port else []
    user = ["-l", target.user] if target.user else []
    return [*port, *user, target.host]


def _proxy(program: str, path: Path, name: str, spec: PodSpec) -> str | None:
    """A ProxyCommand that goes over every host on the way, each checked against its pinned key."""
    from pods.transport.sshconfig import resolve

    proxy = None
    for i, (hop, key) in enumerate(zip(resolve(str(spec.ssh))[:-1], spec.jump_keys, strict=False)):
        way = ["-o", "ProxyJump=none"] if proxy is None else []
        keys = [word for p in hop.identities if hop.named for word in ("-i", str(p))]
        options = [*_options(path, alias_of(name, i), parse_key(key), proxy), *way, *keys]
        argv = [program, *options, "-p", str(hop.port), "-l", hop.user, "-W", "TARGET", hop.host]
        proxy = shlex.join(argv).replace("%", "%%").replace("TARGET", "'[%h]:%p'")
    return proxy
