"""sitecustomize in real interpreters: invisible without ORCH_STACKDUMP, never in the way, and hands on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pod.shimlab import SITE


def others() -> list[str]:
    """Other Pythons of this machine that run: users bring any from 3.8 on."""
    found = filter(None, map(shutil.which, ("python3.8", "python3.9", "python3.10", "python3.12", "python3.13")))
    return [p for p in found if subprocess.run([p, "-c", ""], capture_output=True, timeout=120).returncode == 0]


def python(
    code: str, *path: Path, executable: str = sys.executable, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    whole = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, (SITE, *path)))} | env
    return subprocess.run([executable, "-c", code], env=whole, capture_output=True, text=True, timeout=120, cwd=cwd)


def quiet(got: subprocess.CompletedProcess[str]) -> str:
    assert (got.returncode, got.stderr) == (0, ""), got
    return got.stdout.strip()


@pytest.mark.parametrize("executable", [sys.executable, *others()])
def test_a_dump_signal_writes_the_stacks(tmp_path: Path, executable: str) -> None:
    dump = tmp_path / "dump.txt"
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('alive')"
    assert quiet(python(code, executable=executable, ORCH_STACKDUMP=str(dump))) == "alive"
    assert "most recent call first" in dump.read_text() and dump.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("executable", [sys.executable, *others()])
def test_a_program_that_takes_the_signal_is_left_alone(tmp_path: Path, executable: str) -> None:
    dump = tmp_path / "dump.txt"
    code = f"""
import os, signal
def holders(): return sum(os.path.realpath('/proc/self/fd/' + n) == {str(dump)!r} for n in os.listdir('/proc/self/fd'))
before = holders()
signal.signal(signal.SIGUSR2, lambda *a: print('two'))
between = holders()
signal.signal(signal.SIGUSR1, lambda *a: print('mine'))
os.kill(os.getpid(), signal.SIGUSR1)
mine = open({str(tmp_path / "data")!r}, 'wb')
signal.signal(signal.SIGUSR1, signal.SIG_DFL)
mine.write(b'whole'); mine.close()
print(before, between, holders(), signal.signal.__name__)
"""
    got = quiet(python(code, executable=executable, ORCH_STACKDUMP=str(dump)))
    assert got == "mine\n1 1 0 signal" and dump.read_text() == "" and (tmp_path / "data").read_text() == "whole"


@pytest.mark.parametrize("dump", [False, True])
def test_nothing_heavy_is_imported(tmp_path: Path, dump: bool) -> None:
    code = "import sys; print([m for m in ('enum', 'signal', 'pathlib', 'contextlib', 're') if m in sys.modules])"
    with_us = quiet(python(code, **({"ORCH_STACKDUMP": str(tmp_path / "dump.txt")} if dump else {})))
    bare = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, timeout=120)
    assert with_us == bare.stdout.strip()


def test_without_a_dump_file_nothing_is_registered() -> None:
    code = "import faulthandler; print(faulthandler.is_enabled(), open('/proc/self/status').read())"
    got = quiet(python(code))
    caught = next(line for line in got.splitlines() if line.startswith("SigCgt"))
    assert got.startswith("False") and not int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1


@pytest.mark.parametrize("dump", ["/nowhere/at/all", "", "/", "/dev/null/x", "\udcff"])
def test_a_bad_dump_file_is_silent(tmp_path: Path, dump: str) -> None:
    assert quiet(python("print('ran')", cwd=tmp_path, ORCH_STACKDUMP=dump)) == "ran"


@pytest.mark.parametrize("number", ["9", "11", "-1", "999", "USR2", "²", "1" * 5000])
def test_a_bad_signal_number_means_sigusr1(tmp_path: Path, number: str) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('alive')"
    dump = tmp_path / "dump.txt"
    got = quiet(python(code, ORCH_STACKDUMP=str(dump), ORCH_DUMP_SIGNAL=number))
    assert got == "alive" and dump.read_text()


def test_a_closed_stderr_is_silent(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(SITE), "ORCH_STACKDUMP": str(tmp_path / "dump.txt")}
    got = subprocess.run(
        ["sh", "-c", '"$0" -c "print(1)" 2>&-', sys.executable], env=env, capture_output=True, timeout=120
    )
    assert (got.returncode, got.stdout) == (0, b"1\n")


def test_the_next_sitecustomize_runs_as_if_we_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.path.append('/added')\nVALUE = 42\n")
    code = """
import sys, sitecustomize as s
print(s.VALUE, s.__file__, sys.path[-1], any('runtime/site' in p for p in sys.path))
"""
    assert quiet(python(code, tmp_path)) == f"42 {tmp_path}/sitecustomize.py /added False"


def test_an_error_of_the_next_one_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import no_such_module_at_all\n")
    ours, bare = python("print(1)", tmp_path), python("print(1)", tmp_path, PYTHONPATH=str(tmp_path))
    assert "no_such_module_at_all" in ours.stderr and (ours.returncode, ours.stdout) == (bare.returncode, bare.stdout)


def test_nothing_else_lies_in_the_folder() -> None:
    assert [p.name for p in SITE.iterdir() if p.name != "__pycache__"] == ["sitecustomize.py"]
