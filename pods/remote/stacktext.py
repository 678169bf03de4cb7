"""What a stack dump says, in a few words: which call, at which line of the user's code; equal ranks put together.

Pure functions over the text of faulthandler and py-spy; reads no file and no process. Called by `dump`; an odd text
gives fewer words and never an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

MAX_FRAMES = 400  # of one thread; faulthandler stops at 100
MAX_WHERE_CHARS = 160
MAX_PLACES = 8  # named in one summary

_FAULT_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-fA-F]+ ?(?:\[(.*)\] )?\(most recent call first\):")
_FAULT_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_SPY_THREAD = re.compile(r'Thread (?:0x)?[0-9A-Fa-f]+(?:/\d+)? \([a-z+ ]*\)(?:: "(.*)")?')
_SPY_FRAME = re.compile(r"    (\S.*) \((.+):(\d+)\)")

_STDLIB = re.compile(r"^.*?/lib(?:64)?/python3(?:\.\d+)?t?/(?!site-packages/|dist-packages/)|^<frozen ")
_INSTALLED = re.compile(r"^.*/(?:site|dist)-packages/")
_OURS = re.compile(r"/workloads/(?:runtime|contract)/[^/]+\.py$|/sitecustomize\.py$")
_WRAPPING_FILES = re.compile(r"/(?:contextlib|functools|_contextlib|c10d_logger|sitecustomize)\.py$")
_WRAPPERS = frozenset({"wrapper", "wrapped", "inner", "_fn", "_call_impl", "_wrapped_call_impl", "__call__"})
_WAITING_FILES = re.compile(
    r"/(?:threading|selectors|queue|socket|subprocess|sitecustomize|contextlib|functools)\.py$"
    r"|/(?:multiprocessing|concurrent/futures|asyncio)/[^/]+\.py$"
)


@dataclass(frozen=True)
class Frame:
    function: str
    file: str
    line: int  # 0: not known

    @property
    def is_library(self) -> bool:
        """Not the user's own: the standard library, what was installed, or what orch runs inside a rank."""
        return any(p.search(self.file) for p in (_STDLIB, _INSTALLED, _OURS))


@dataclass(frozen=True)
class Thread:
    frames: tuple[Frame, ...]  # innermost first
    name: str = ""
    current: bool = False


def threads_of(text: str) -> list[Thread]:
    """The threads in a dump of one process, in its order. Lines that are none of a stack are passed over."""
    threads: list[Thread] = []
    frames: list[Frame] = []
    for line in text.splitlines():
        if m := _FAULT_THREAD.match(line):
            frames = []
            threads.append(Thread((), m[2] or "", m[1] == "Current thread"))
        elif m := _SPY_THREAD.fullmatch(line):
            frames = []
            threads.append(Thread((), m[1] or ""))
        elif threads and len(frames) < MAX_FRAMES and (frame := _frame(line)):
            frames.append(frame)
            threads[-1] = Thread(tuple(frames), threads[-1].name, threads[-1].current)
    return threads


def _frame(line: str) -> Frame | None:
    if m := _FAULT_FRAME.fullmatch(line):
        if m[1].endswith("/runtime/site/sitecustomize.py"):
            return None  # the handler that wrote this
        return Frame(m[3], m[1], int(m[2][:9]) if m[2].isdigit() else 0)
    if m := _SPY_FRAME.fullmatch(line):
        return Frame(m[1], m[2], int(m[3][:9]))
    return None


def main_thread(threads: Sequence[Thread]) -> Thread | None:
    """The one that runs the program: named so by py-spy; else one that `threading` did not start, the oldest last."""
    named = [t for t in threads if t.name == "MainThread" and t.frames]
    if named:
        return named[0]
    own = [t for t in threads if t.frames and not _was_started(t)]
    return own[-1] if own else next((t for t in threads if t.current and t.frames), None)


def _was_started(thread: Thread) -> bool:
    last = thread.frames[-1]
    return last.function in ("_bootstrap", "Thread._bootstrap") and last.file.endswith("threading.py")


def where(text: str) -> str:
    """`all_reduce at train.py:212` for the main thread of one process's dump; "" when it shows no stack.

    It names the call that the user's code made, not the depths of the library it ended up in.
    """
    main = _main_of(text)
    return _place(main.frames)[:MAX_WHERE_CHARS] if main else ""


@lru_cache(maxsize=16)  # a text is asked about several times in a row
def _main_of(text: str) -> Thread | None:
    return main_thread(threads_of(text))


def _place(frames: Sequence[Frame]) -> str:
    at = next((i for i, f in enumerate(frames) if not f.is_library), None)
    if at is None:
        inner = next((f for f in frames if not _WAITING_FILES.search(f.file)), frames[0])
        return f"{_plain(inner.function)} at {_label(inner)}"
    user = frames[at]
    calls = [f for f in reversed(frames[:at]) if not _is_wrapping(f)] or list(frames[max(0, at - 1) : at])
    if calls:
        return f"{_call(calls[0])} at {_label(user)}"
    return _label(user) if user.function == "<module>" else f"{_plain(user.function)} at {_label(user)}"


def _is_wrapping(frame: Frame) -> bool:
    return _plain(frame.function) in _WRAPPERS or bool(_WRAPPING_FILES.search(frame.file))


def _call(frame: Frame) -> str:
    """A library's function as the user would write it."""
    name = _plain(frame.function)
    if name in ("__next__", "__iter__"):
        return "next(loader)" if frame.file.endswith("/dataloader.py") else "next(iterator)"
    if frame.file.startswith("<frozen importlib"):
        return "import"
    stdlib = _STDLIB.match(frame.file)
    if stdlib is None or name == "<module>" or frame.file.startswith("<"):
        return name
    module = frame.file[stdlib.end() :].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"{module}.{name}"


def _plain(function: str) -> str:
    """Python 3.11 and later may qualify a name: the last part says it."""
    return function.rsplit(".", 1)[-1] if not function.endswith(">") else function


def _label(frame: Frame) -> str:
    parts = frame.file.split("/")
    short = "/".join(parts[-2:]) if parts[-1] == "__init__.py" else parts[-1]
    return f"{short}:{frame.line}" if frame.line else short


def shape(text: str) -> tuple[str, ...]:
    """The main thread as functions and files, without lines: what two ranks in the same place have in common."""
    main = _main_of(text)
    return tuple(f"{f.file} {_plain(f.function)}" for f in main.frames) if main else ()


_NOISE = (
    (re.compile(r"^=== orch stack dump .*\n?", re.MULTILINE), ""),
    (re.compile(r"^Process \d+: .*\n?", re.MULTILINE), ""),  # py-spy: pid and command line, which may name the rank
    (re.compile(r"^(?:proc|wchan|syscall|stack): .*\n?", re.MULTILINE), ""),
    (re.compile(r"0x[0-9a-fA-F]+"), "0x"),
    (re.compile(r"\b(Thread|pid|process) ?\d+"), r"\1"),
)


def normalised(text: str) -> str:
    """`text` without what differs between equal stacks: header, pids, thread ids, addresses."""
    for pattern, plain in _NOISE:
        text = pattern.sub(plain, text)
    return text


TORCHRUN = "torchrun: "
"""What a place begins with that is those of several workers of one rank."""


def phrase(numbers: Sequence[int], noun: str = "rank") -> str:
    """`rank 3`, `ranks 3, 5`, `7 ranks`."""
    if len(numbers) <= 3:
        return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return f"{len(numbers)} {noun}s"


def summary(groups: Iterable[tuple[Sequence[int], str]], noun: str = "rank") -> str:
    """`7 ranks in all_reduce at train.py:212; rank 3 in next(loader) at data.py:88`: the many first, all in a line."""
    places: dict[str, list[int]] = {}
    for ranks, place in groups:
        places.setdefault(place, []).extend(ranks)
    ordered = sorted(places.items(), key=lambda item: (-len(item[1]), sorted(item[1])))
    said = [f"{phrase(sorted(ranks), noun)}{_joined(place)}" for place, ranks in _shown(ordered)]
    left = len(ordered) - len(said)
    return "; ".join(said) + (f"; {left} more places" if left else "")


def _shown(ordered: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """The largest, and of the others the smallest: the odd ones are never among those left out."""
    if len(ordered) <= MAX_PLACES:
        return ordered
    return [ordered[0], *ordered[-(MAX_PLACES - 1) :]]


def _joined(place: str) -> str:
    if not place or place.startswith(("no ", TORCHRUN)):
        return f": {place or 'no stack'}"
    return f" in {place}" if " at " in place else f" at {place}"
