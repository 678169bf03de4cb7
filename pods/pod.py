"""A pod that can be asked: `call("runs.halt", ...)` carries out an operation of `pods.remote` there.

`LocalPod` calls the function. `FarPod` calls the same function in a process on the pod that it started over its one
connection; that process is made of the standard library and orch's own files, sent once and known by their hash. Losing
the connection loses that process and nothing else. One request at a time; every wait has a bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from pods.bundle import Bundle, remote_bundle
from pods.remote.dispatch import Answer, dispatch
from pods.remote.wire import GREETING, VERSION, FrameError, error_of, pack, unpack
from pods.transport.base import Process, Transport
from workloads.contract.errors import OrchError, RemoteError, UnreachableError, escape
from workloads.contract.rundir import OrchHome

CALL_S = 20.0
START_S = 30.0
PUT_S = 60.0
MAX_NOISE_BYTES = 1 << 20
T = TypeVar("T")


def told(fields: Mapping[str, Any], key: str, kind: type[T], pod: str) -> T:
    """`fields[key]` of an answer, which must be a `kind`: a pod is not trusted to answer as orch's own parts do."""
    value = fields.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RemoteError(
            "E-POD-026", f"pod {pod} answered without {key}", value=repr(value)[:80], expected=kind.__name__,
            fix=f"orch pods exec {pod} -- uname -a   (is it the machine you mean?)",
        )  # fmt: skip
    return value


class Pod(Protocol):
    name: str
    transport: Transport

    @property
    def home(self) -> OrchHome:
        """`$ORCH_HOME` there, absolute."""
        ...

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = CALL_S
    ) -> Answer:
        """Carry out one operation. UnreachableError when it cannot be asked; else the error that the pod gave."""
        ...

    def close(self) -> None: ...


class LocalPod:
    name = "local"

    def __init__(self, home: OrchHome, transport: Transport) -> None:
        self.home, self.transport = home, transport

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = CALL_S
    ) -> Answer:
        return dispatch(self.home, op, args or {}, data)

    def close(self) -> None:
        self.transport.close()


class _Ended(UnreachableError):
    """The process on the pod is gone, or its connection is."""


class NeedsPython(RemoteError):
    """The pod has no Python that can run orch's parts."""


_FIND = r"""
umask 077
H=$1; B=$2; W=$3
tilde() { case $1 in "~/"*) printf %s "$HOME${1#"~"}" ;; *) printf %s "$1" ;; esac; }
H=$(tilde "${H:-$HOME/.orch}"); W=$(tilde "$W")
D=$H/remote/$B
[ "$4" = fresh ] && rm -rf "$D" "$D.zip"
ok() { "$1" -I -S -c 'import sys; sys.exit(not sys.version_info >= (3, 11))' </dev/null >/dev/null 2>&1; }
P=
[ -r "$D/python" ] && read -r P <"$D/python"
if ! [ -x "$P" ] || { [ -n "$W" ] && [ "$W" != "$P" ]; }; then
  P=
  for c in "$W" "$H"/python/*/bin/python3 python3.12 python3.11 python3 /usr/local/bin/python3 \
           /opt/conda/bin/python3 "$HOME"/miniconda3/bin/python3; do
    [ -n "$c" ] || continue
    c=$(command -v "$c" 2>/dev/null) || continue
    if ok "$c"; then P=$c; break; fi
  done
  if [ -n "$P" ] && [ -d "$D" ]; then printf '%s\n' "$P" >"$D/python.$$" && mv -f "$D/python.$$" "$D/python"; fi
fi
if [ -z "$P" ]; then printf '\n%s python %s\n' ORCH-NEEDS "$H"; exit 0; fi
if ! [ -d "$D" ]; then
  if [ -f "$D.zip" ]; then
    mkdir -p "$D.new.$$" && "$P" -I -S -m zipfile -e "$D.zip" "$D.new.$$" && printf '%s\n' "$P" >"$D.new.$$/python" &&
      mv "$D.new.$$" "$D" 2>/dev/null
    rm -rf "$D.new.$$" "$D/$B.new.$$"
  fi
  [ -d "$D" ] || { printf '\n%s bundle %s\n' ORCH-NEEDS "$H"; exit 0; }
fi
exec "$P" -I -S "$D" serve "$H"
"""


@dataclass
class FarPod:
    """A pod behind a transport. `root` and `python` are those of the inventory."""

    name: str
    transport: Transport
    root: str | None = None
    python: str | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    _process: Process | None = None
    _buffer: bytearray = field(default_factory=bytearray, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def home(self) -> OrchHome:
        self.connect()
        return OrchHome(Path(str(self.hello.get("home"))))

    def connect(self) -> None:
        """Have the process on the pod answer; at once when it does already. NeedsPython when there is none for it."""
        with self._lock:
            if self._process is not None:
                return
            bundle = remote_bundle()
            fresh = False
            for _ in range(3):
                try:
                    need = self._start(bundle, fresh=fresh)
                except _Ended:
                    if fresh:
                        raise
                    fresh = True  # what lies there may be what a crash of the machine left of it
                    continue
                if need is None:
                    return
                fresh = False
                what, home = need
                if what == "python":
                    raise NeedsPython(
                        "E-POD-020", f"pod {self.name} has no Python 3.11 or newer", where=home,
                        fix=f"orch pods bootstrap {self.name}   (brings one)",
                    )  # fmt: skip
                self.transport.put(
                    bundle.data, PurePosixPath(home) / "remote" / f"{bundle.digest}.zip", timeout_s=PUT_S
                )
            raise RemoteError("E-POD-021", f"orch's own files cannot be unpacked on pod {self.name}", where=home)

    def _start(self, bundle: Bundle, *, fresh: bool) -> tuple[str, str] | None:
        """None once it answers; else what it lacks, and where orch's home is there."""
        argv = [
            "/bin/sh",
            "-c",
            _FIND,
            "sh",
            self.root or "",
            bundle.digest,
            self.python or "",
            "fresh" if fresh else "",
        ]
        self._buffer.clear()
        process = self.transport.start(argv, timeout_s=START_S)
        try:
            line = self._marked_line(process)
            if line.startswith("ORCH-NEEDS "):
                process.close()
                what, _, home = line.removeprefix("ORCH-NEEDS ").partition(" ")
                if what not in ("python", "bundle") or not home.startswith("/"):
                    raise RemoteError("E-POD-027", f"pod {self.name} does not say where orch's home is", value=line)
                return what, home
            version = line.removeprefix(GREETING).strip()
            if version != str(VERSION):
                newer = version.isascii() and version.isdigit() and len(version) < 6 and int(version) > VERSION
                raise RemoteError(
                    "E-POD-022", f"orch's process on pod {self.name} speaks version {escape(version, 20)} of the "
                    f"protocol, this machine version {VERSION}", value=version, expected=str(VERSION),
                    fix="upgrade orch on this machine" if newer else f"orch pods exec {self.name} -- uname -a",
                )  # fmt: skip
            self.hello, _ = self._frame(process, START_S)
            if not told(self.hello, "home", str, self.name).startswith("/") or "\0" in self.hello["home"]:
                raise RemoteError(
                    "E-POD-027", f"pod {self.name} does not say where orch's home is", value=self.hello["home"]
                )
        except OrchError:
            process.close()
            raise
        self._process = process
        return None

    def _marked_line(self, process: Process) -> str:
        """The first line that is ours; what a login shell's files print before it is skipped."""
        deadline = time.monotonic() + START_S
        while True:
            *lines, _rest = bytes(self._buffer).split(b"\n")
            for i, line in enumerate(lines):
                at = max(line.rfind(GREETING.encode()), line.rfind(b"ORCH-NEEDS "))
                if at >= 0:
                    del self._buffer[: sum(len(x) + 1 for x in lines[: i + 1])]
                    return line[at:].decode(errors="replace")
            if len(self._buffer) > MAX_NOISE_BYTES:
                raise RemoteError("E-POD-023", f"pod {self.name} prints without end when a command is started")
            self._more(process, max(deadline - time.monotonic(), 0.0))

    def _more(self, process: Process, timeout_s: float) -> None:
        chunk = process.read(timeout_s=timeout_s)
        if not chunk:
            told = process.stderr().strip().splitlines()
            raise _Ended("E-POD-024", f"orch's process on pod {self.name} ended", value=told[-1] if told else None)
        self._buffer += chunk

    def _frame(self, process: Process, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s

        def read_exactly(count: int) -> bytes:
            while len(self._buffer) < count:
                self._more(process, max(deadline - time.monotonic(), 0.0))
            taken = bytes(self._buffer[:count])
            del self._buffer[:count]
            return taken

        try:
            return unpack(read_exactly)
        except FrameError as e:
            raise RemoteError("E-POD-025", f"pod {self.name} answered with something else: {e}") from e

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, data: bytes = b"", *, timeout_s: float = CALL_S
    ) -> Answer:
        with self._lock:
            self.connect()
            assert self._process is not None
            try:
                self._process.write(pack({"op": op, "args": dict(args or {})}, data), timeout_s=timeout_s)
                message, found = self._frame(self._process, timeout_s)
            except BaseException:  # also Ctrl-C: an answer that was not read would be taken for the next one's
                self._drop()
                raise
            if message.get("ok") is True and isinstance(message.get("fields"), dict):
                return Answer(message["fields"], found)
            raise error_of(message.get("error"), self.name)

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def close(self) -> None:
        with self._lock:
            self._drop()
            self.transport.close()
