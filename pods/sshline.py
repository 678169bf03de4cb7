"""What a provider's page gives for a machine, as a target: `root@1.2.3.4:40022`, an alias, a whole ssh line.

Pure: words in, `SshLine` out. Options that only concern a terminal session are left out and told; options that change
where the line leads, or what is checked, and that the inventory cannot hold, are refused by name. Nothing is run.
Called by `orch pods add`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from pods.transport.target import parse_ssh
from workloads.contract.errors import UsageError

_FLAGS = "46AaCfGgKkMNnqsTtVvXxYy"
_HARMLESS_FLAGS = "46CfgKkNnqTtvxy"
_WITH_VALUE = "BbcDEeFIiJLlmOoPpQRSWw"
_HARMLESS_VALUES = {
    "L": "port forwards are made by `orch forward`", "R": "not needed", "D": "not needed", "e": "not needed",
    "E": "not needed", "c": "not needed", "m": "not needed", "b": "not needed",
}  # fmt: skip
_HARMLESS_FLAG_WORDS = {"A": "the agent is never forwarded", "X": "not needed", "Y": "not needed", "a": "as always"}
_SAFE_OPTIONS = (
    "stricthostkeychecking userknownhostsfile globalknownhostsfile loglevel serveraliveinterval "
    "serveralivecountmax connecttimeout connectionattempts identitiesonly batchmode compression tcpkeepalive "
    "requesttty forwardagent addkeystoagent controlmaster controlpath controlpersist passwordauthentication "
    "preferredauthentications pubkeyauthentication updatehostkeys checkhostip exitonforwardfailure "
    "localforward remoteforward dynamicforward forwardx11 kbdinteractiveauthentication visualhostkey "
    "permitlocalcommand setenv sendenv addressfamily gssapiauthentication"
)
_SAYS = "left out"


@dataclass
class SshLine:
    """`ssh` and `identity` are for the inventory; `notes` say what was left out and why."""

    ssh: str = ""
    identity: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Found:
    hosts: list[str] = field(default_factory=list)
    port: str | None = None
    user: str | None = None
    host_name: str | None = None
    line: SshLine = field(default_factory=SshLine)


def parse_line(words: Sequence[str]) -> SshLine:
    """The machine that `words` (one quoted argument or several) lead to. UsageError or SpecError for what is none."""
    rest = _split(words)
    is_command = bool(rest) and rest[0].rsplit("/", 1)[-1] == "ssh"
    if is_command:
        rest = rest[1:]
    found = _Found()
    while rest:
        word = rest.pop(0)
        if word == "--":
            found.hosts += rest
            break
        if len(found.hosts) > 1:  # the command begins, and what looks like an option is its own
            found.hosts += [word, *rest]
            break
        if word.startswith("-") and len(word) > 1:
            _option(word, rest, found)
        else:
            found.hosts.append(word)
    return _target(found)


def _split(words: Sequence[str]) -> list[str]:
    text = words[0].strip() if len(words) == 1 else ""
    if not any(c.isspace() for c in text):
        return list(words) if not text else [text]
    if text.startswith("$ "):  # as pasted from a page
        text = text[2:]
    try:
        return shlex.split(text)
    except ValueError as e:
        raise UsageError(
            "E-PODS-001",
            "the line has a quote that is not closed",
            value=text,
            expected="ssh -p PORT user@host",
            fix="give the whole line in one pair of quotes",
        ) from e


def _option(word: str, rest: list[str], found: _Found) -> None:
    if word.startswith("--"):
        raise UsageError(
            "E-PODS-002", f"ssh has no option {word}", value=word, expected="-p, -i, -l or options of orch",
            fix="orch pods add --help",
        )  # fmt: skip
    at = 1
    while at < len(word):
        letter = word[at]
        at += 1
        if letter in _WITH_VALUE:
            value = word[at:] or (rest.pop(0) if rest else "")
            if not value:
                raise UsageError("E-PODS-003", f"-{letter} of ssh needs a value", where=word, fix=f"-{letter} VALUE")
            _valued(letter, value, found)
            return
        _flag(letter, found)


def _flag(letter: str, found: _Found) -> None:
    if letter in _HARMLESS_FLAG_WORDS:
        found.line.notes.append(f"-{letter} {_SAYS}: {_HARMLESS_FLAG_WORDS[letter]}")
    elif letter in _HARMLESS_FLAGS:
        found.line.notes.append(f"-{letter} {_SAYS}: it makes no difference here")
    else:
        raise _refused(f"-{letter}", "it" if letter in _FLAGS else "no option of ssh; it")


def _valued(letter: str, value: str, found: _Found) -> None:
    if letter == "p":
        found.port = value
    elif letter == "l":
        found.user = value
    elif letter == "i":
        found.line.identity = value
    elif letter == "o":
        _config_option(value, found)
    elif letter == "J":
        raise _jump(value)
    elif letter in _HARMLESS_VALUES:
        found.line.notes.append(f"-{letter} {value} {_SAYS}: {_HARMLESS_VALUES[letter]}")
    else:
        raise _refused(f"-{letter}", "it")


def _config_option(text: str, found: _Found) -> None:
    """`-o Key=value` or `-o "Key value"`."""
    key, _, value = text.replace("=", " ", 1).strip().partition(" ")
    value = value.strip().strip('"')
    low = key.lower()
    if low == "port":
        found.port = value
    elif low == "user":
        found.user = value
    elif low == "hostname":
        found.host_name = value
    elif low == "identityfile":
        found.line.identity = value
    elif low == "proxyjump" and value.lower() != "none":
        raise _jump(value)
    elif low in _SAFE_OPTIONS.split():
        why = "orch always checks the host key" if "hostkey" in low or "knownhosts" in low else "it makes no difference"
        found.line.notes.append(f"-o {text} {_SAYS}: {why}")
    else:
        raise _refused(f"-o {key}", "it")


def _jump(value: str) -> UsageError:
    return UsageError(
        "E-PODS-004", "a way over other hosts belongs into ~/.ssh/config", where="-J", value=value,
        expected="an alias with `ProxyJump`",
        fix=f"write `Host NAME`, `HostName ...`, `ProxyJump {value}` into ~/.ssh/config, then: orch pods add NAME NAME",
    )  # fmt: skip


def _refused(option: str, subject: str) -> UsageError:
    return UsageError(
        "E-PODS-005", f"{option} in the ssh line: {subject} changes how the machine is reached or checked",
        where=option, expected="-p, -i, -l and harmless ones",
        fix="write it into ~/.ssh/config below an alias, and add that: orch pods add NAME ALIAS",
    )  # fmt: skip


def _target(found: _Found) -> SshLine:
    if not found.hosts:
        raise UsageError(
            "E-PODS-006", "no machine is named", expected="user@host, user@host:port, an alias, or a whole ssh line",
            fix="orch pods add NAME root@203.0.113.7:40022",
        )  # fmt: skip
    host, *command = found.hosts
    if command:
        found.line.notes.append(f"`{shlex.join(command)}` {_SAYS}: a command behind the target is not run")
    text = host.removeprefix("ssh://").rstrip("/") if host.startswith("ssh://") else host
    if host != text:
        found.line.notes.append("written without ssh://")
    if found.port is not None and ":" in text and not text.endswith("]") and "[" not in text and text.count(":") > 1:
        login, at, bare = text.rpartition("@")
        text = f"{login}{at}[{bare}]"  # ssh -p 22 root@::1 is fine for ssh
    target = parse_ssh(text if found.port is None else _with_port(text, found.port))
    user = target.user or found.user
    name = found.host_name or target.host
    if target.user and found.user and target.user != found.user:
        raise UsageError("E-PODS-007", "two users are named", value=f"{target.user} and {found.user}", fix="name one")
    shown = f"[{name}]" if ":" in name else name
    found.line.ssh = (f"{user}@" if user else "") + shown + (f":{target.port}" if target.port else "")
    parse_ssh(found.line.ssh)
    return found.line


def _with_port(text: str, port: str) -> str:
    target = parse_ssh(text)
    if target.port is not None and str(target.port) != port:
        raise UsageError("E-PODS-008", "two ports are named", value=f"{target.port} and {port}", fix="name one")
    return text if target.port is not None else f"{text}:{port}"
