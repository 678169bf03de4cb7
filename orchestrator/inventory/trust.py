"""Deciding whether a host key may be pinned: by a fingerprint that was given, by known_hosts, or by a person's `yes`.

Nothing is trusted because it is there. Without a terminal and without a fingerprint it refuses, with the very command
to type. Asks through a function that is handed in; prints nothing. Called by `orchestrator.inventory.add` and `repin`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pods.transport.hostkeys import HostKey
from workloads.contract.errors import RefusedError, UsageError

Ask = Callable[[list[str]], str]
"""Show some lines and return what the person typed. Raises EOFError where nobody can be asked."""
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")


@dataclass(frozen=True)
class Trust:
    """`given`: fingerprints from the command line. `ask` is None where nobody can be asked."""

    given: Sequence[str] = ()
    ask: Ask | None = None
    command: Sequence[str] = ()
    """the command line without fingerprints, to be shown with them"""
    known_is_enough: bool = False
    """take a pod's key that known_hosts has (import): that trust exists already"""
    pinned: Sequence[str] = ()
    """fingerprints that were pinned before, to be shown beside the new ones"""
    others: Mapping[str, str] = field(default_factory=dict)
    """host to the fingerprint of another key that known_hosts has for it"""


def checked_fingerprints(given: Sequence[str]) -> list[str]:
    """The fingerprints in one form. UsageError for what is none."""
    found = []
    for text in given:
        full = text.strip() if text.strip().startswith("SHA256:") else f"SHA256:{text.strip()}"
        if not _FINGERPRINT.fullmatch(full):
            raise UsageError(
                "E-PODS-020", "that is no fingerprint", where="--fingerprint", value=text,
                expected="SHA256: and 43 characters, as `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints",
                fix="on the machine: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            )  # fmt: skip
        found.append(full.rstrip("="))
    return found


def confirm_on_the_way(name: str, trust: Trust, pinned: Sequence[str] = ()) -> Callable[[HostKey], bool]:
    """Asked about each unknown host that is jumped through, before anything is shown to it."""

    def confirm(key: HostKey) -> bool:
        if key.key not in pinned and key.fingerprint not in trust.given:
            _ask(name, key, trust, [f"on the way to pod {name}", *_shown(key, "not known")])
        return True

    return confirm


def decide(name: str, keys: Sequence[HostKey], trust: Trust) -> None:
    """Return when the pod's key, the last of `keys`, may be pinned; RefusedError otherwise."""
    key = keys[-1]
    if key.fingerprint not in trust.given and not (key.known and trust.known_is_enough and not trust.given):
        _ask(name, key, trust, question(name, keys, trust))


def question(name: str, keys: Sequence[HostKey], trust: Trust) -> list[str]:
    """What a person has to compare, hop by hop."""
    *way, key = keys
    lines = [f"pod {name}", *(line for hop in way for line in _shown(hop, "on the way there"))]
    lines += _shown(key, "in your known_hosts" if key.known else "not known")
    lines += (
        [f"    {trust.others[key.host]}  is ANOTHER key, which known_hosts has"] if key.host in trust.others else []
    )
    lines += [f"    {old}  is the key pinned until now: go on only if you rebuilt the pod" for old in trust.pinned]
    return lines


def _shown(key: HostKey, said: str) -> list[str]:
    return [f"  {key.host}", f"    {key.fingerprint}  {key.kind}  ({said})"]


def _ask(name: str, key: HostKey, trust: Trust, lines: list[str]) -> None:
    if trust.given:
        raise RefusedError(
            "E-PODS-021", f"{key.host} shows another key than the fingerprint that was given", where=f"pod {name}",
            value=f"{key.fingerprint} ({key.kind})", expected=" or ".join(trust.given),
            fix="do not go on: compare with what the provider or the machine's console shows",
        )  # fmt: skip
    if trust.ask is None:
        raise _nobody_to_ask(name, key, trust)
    compare = "compare on the machine: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub   (or the provider's page)"
    try:
        said = trust.ask([*lines, compare])
    except EOFError as e:
        raise _nobody_to_ask(name, key, trust) from e
    if said.strip() != "yes":
        raise RefusedError(
            "E-PODS-022", f"not confirmed: the key of {key.host} is not pinned", value=said.strip()[:40] or None,
            expected="yes", fix=shlex.join([*trust.command, "--fingerprint", key.fingerprint]),
        )  # fmt: skip


def _nobody_to_ask(name: str, key: HostKey, trust: Trust) -> RefusedError:
    return RefusedError(
        "E-PODS-023", f"the key of {key.host} must be confirmed for pod {name}, and nobody can be asked (no terminal)",
        where=key.host, value=f"{key.fingerprint} ({key.kind})",
        expected="the fingerprint that the machine or the provider shows",
        fix=shlex.join([*trust.command, "--fingerprint", key.fingerprint]),
    )  # fmt: skip
