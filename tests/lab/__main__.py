"""`make lab`: three pods to try orch on, and a shell on the laptop that reaches them; all gone when the shell exits.

Without a terminal it prints what to type and stays until it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.lab.lab import Lab
from tests.lab.need import LabUnavailable


def words(lab: Lab, *, shell: bool) -> str:
    rows = [f"  {p.name}   {p.target}   {p.host_key}" for p in lab.pods.values()]
    within = shlex.join(lab.laptop.within([]))
    env = lab.env()
    given = {key: env[key] for key in ("HOME", "ORCH_HOME")}
    first = next(iter(lab.pods.values()))
    orch = "orch" if shell else f"{within} env {shlex.join(f'{k}={v}' for k, v in given.items())} orch"
    return "\n".join(
        [
            "Pods, and their host keys:",
            *rows,
            f"They are in {lab.home.inventory}, keys pinned; a key for all: {lab.identity}",
            "Try:",
            f"  {orch} --help",
            f"  {within + ' ' if not shell else ''}ssh -i {lab.identity} {first.target}",
            "From another terminal, as root, pull a cable and put it back:",
            f"  {shlex.join(lab.switch.within(['ip', 'link', 'set', first.cable.port, 'down']))}   (up)",
            "Everything goes when this ends: " + ("leave the shell." if shell else "Ctrl-C."),
        ]
    )


def stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--pods", type=int, default=3, choices=range(1, 21), metavar="N")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)  # also where it was started in the background, with SIGINT ignored
    shell = sys.stdin.isatty()
    try:
        with Lab(args.pods) as lab:
            print(words(lab, shell=shell), flush=True)
            if not shell:
                signal.pause()
            env = lab.env()
            env["PATH"] = f"{Path(sys.prefix, 'bin')}:{env['PATH']}"
            env["PS1"] = "lab laptop \\w# "
            argv = ["sh"] if not os.access("/bin/bash", os.X_OK) else ["/bin/bash", "--norc"]
            lab.popen(argv, stdin=None, stdout=None, stderr=None, cwd=Path.cwd(), env=env).wait()
    except LabUnavailable as e:
        print(f"no lab: {e}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
