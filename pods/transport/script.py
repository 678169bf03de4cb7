"""A command as text for a far shell, whichever shell the user has there, and what is its output in what comes back.

The login shell (bash, zsh, fish, csh, ...) sees one constant line without anything it could misread. That line has
/bin/sh take a POSIX script of known length from standard input and evaluate it; the rest of standard input is the
command's. The script is one compound command, so a script that arrived in part is never begun. It prints a mark of its
own before the command, so what login files print is told from output, and another with the exit code after it.

Text only: nothing here has a connection.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workloads.contract.errors import RemoteError, UsageError

MAX_NOISE_BYTES = 1 << 20
MAX_OUTPUT_BYTES = 4 << 20
MAX_SIGNAL = 31
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_STATUS_BYTES = 8


def login_line(script: bytes) -> str:
    """What the login shell is given; `script` follows on standard input."""
    return f"/bin/sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"'"


def run_script(argv: Sequence[str], env: Mapping[str, str] | None, mark: str) -> bytes:
    """Marks, runs `argv` in a process of its own, marks again with its exit code."""
    return (
        f"{{ {_begin(mark)}\n{_exports(env)}"
        f"(exec {_words(argv)})\ns=$?\n"
        f"printf '\\n%s. %s\\n' {mark} $s; printf '\\n%s. %s\\n' {mark} $s >&2\nexit 0\n}}"
    ).encode()


def start_script(argv: Sequence[str], mark: str) -> bytes:
    """Marks, then becomes `argv`."""
    return f"{{ {_begin(mark)}\nexec {_words(argv)}\n}}".encode()


def _begin(mark: str) -> str:
    """Standard output last: who has seen its mark knows that the command comes next."""
    return f"printf '\\n%s\\n' {mark} >&2; printf '\\n%s\\n' {mark}"


def _words(argv: Sequence[str]) -> str:
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise UsageError("E-SSH-047", "a command begins with a program", value=" ".join(argv) or None)
    for word in argv:
        check_text(word)
    return shlex.join(argv)


def _exports(env: Mapping[str, str] | None) -> str:
    for name, value in (env or {}).items():
        if not _NAME.match(name):
            raise UsageError("E-SSH-048", "this is no name of an environment variable", value=name)
        check_text(value)
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env or {}).items())


def check_text(word: str) -> None:
    """UsageError for what no command can be given: a NUL, or half a character."""
    if "\0" in word:
        raise UsageError("E-SSH-047", "a word of a command cannot have a NUL byte", value=word)
    try:
        word.encode()
    except UnicodeEncodeError as e:
        raise UsageError("E-SSH-047", "a word of a command is not UTF-8", value=word) from e


@dataclass
class Stream:
    """One stream of a command from its raw bytes: noise before the mark dropped, the end mark found, output bounded."""

    mark: str
    pod: str
    limit: int = MAX_OUTPUT_BYTES
    begun: bool = False
    exit_code: int | None = None
    """set when the end mark has come"""
    output: bytearray = field(default_factory=bytearray)
    _pending: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        if self.exit_code is not None:
            return
        self._pending += data
        if not self.begun and not self._begin():
            return
        end = f"\n{self.mark}. ".encode()
        at = self._pending.find(end)
        if at >= 0:
            line_end = self._pending.find(b"\n", at + len(end))
            if line_end >= 0:
                self.exit_code = _code(bytes(self._pending[at + len(end) : line_end]))
                self._keep(at)
            return
        self._keep(len(self._pending) - len(end) - _STATUS_BYTES)

    def _begin(self) -> bool:
        begin = f"\n{self.mark}\n".encode()
        at = self._pending.find(begin)
        if at >= 0:
            del self._pending[: at + len(begin)]
            self.begun = True
        elif len(self._pending) > MAX_NOISE_BYTES:
            raise RemoteError(
                "E-SSH-045", f"pod {self.pod} prints without end before a command begins",
                value=self.noise(), fix="quiet the login files there (~/.bashrc and the like)",
            )  # fmt: skip
        return self.begun

    def _keep(self, count: int) -> None:
        if count > 0:
            self.output += self._pending[: min(count, max(self.limit - len(self.output), 0))]
            del self._pending[:count]

    def take(self) -> bytes:
        """All output so far that cannot be part of a mark is taken out; for a stream that has no end mark, all."""
        taken = bytes(self.output)
        self.output.clear()
        if self.begun:
            taken += bytes(self._pending)
            self._pending.clear()
        return taken

    def noise(self) -> str:
        """The last line that came before the command began, for a message."""
        lines = bytes(self._pending[-4096:]).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _code(text: bytes) -> int:
    """The shell's `$?`, where 128 + n says that signal n ended the command."""
    status = int(text) if text.isdigit() and len(text) <= 3 else 255
    return 128 - status if 128 < status <= 128 + MAX_SIGNAL else status
