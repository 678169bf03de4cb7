"""Facts: parsers on recorded text, and the real commands of this machine, one of them a fake nvidia-smi."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from pods.facts import Gpu, local_facts, parse_cpu_max, parse_meminfo, parse_nvidia_smi
from pods.facts import gpus as gpus_module
from pods.transport.base import Result
from pods.transport.local import LocalTransport
from workloads.contract.errors import UnreachableError
from workloads.contract.rundir import OrchHome

H200 = "0, GPU-6b1f0e6a-95b1-1d0c-7f0c-0e7d5c6e1a11, NVIDIA H200, 143771, 4\n"


def smi(stdout: str = "", code: int = 0, stderr: str = "") -> Result:
    return Result(gpus_module.NVIDIA_SMI, code, stdout, stderr)


def test_one_gpu() -> None:
    gpus, error = parse_nvidia_smi(smi(H200))
    assert gpus == (Gpu(0, "GPU-6b1f0e6a-95b1-1d0c-7f0c-0e7d5c6e1a11", "NVIDIA H200", 143771, 4),)
    assert error is None


def test_the_short_query_tells_the_driver() -> None:
    asked = gpus_module.NVIDIA_SMI[1].split("=")[1].split(",")
    answer = dict.fromkeys(asked, "0") | {"uuid": "GPU-6b1f0e6a-95b1", "name": "NVIDIA H200", "driver_version": "580.1"}
    gpus, error = parse_nvidia_smi(smi(", ".join(answer[k] for k in asked) + "\n"))
    assert gpus == (Gpu(0, "GPU-6b1f0e6a-95b1", "NVIDIA H200", 0, 0, driver="580.1"),) and error is None


def test_eight_gpus() -> None:
    text = "".join(f"{i}, GPU-{i:08x}-aaaa-bbbb-cccc-0123456789ab, NVIDIA H100 80GB HBM3, 81559, 3\n" for i in range(8))
    gpus, error = parse_nvidia_smi(smi(text))
    assert [g.index for g in gpus] == list(range(8)) and error is None


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (smi(code=127), None),
        (smi("No devices were found\n", 6), None),
        (smi("", 9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."), "exit code 9"),
        (smi("Unable to determine the device handle for GPU0: 0000:05:00.0: Unknown Error\n", 0), "no GPU"),
        (smi("0, GPU-6b1f0e6a-95b1, NVIDIA H200, [N/A], 4\n"), "no GPU"),
        (smi("\x1b[31m0, GPU-\n"), "no GPU"),
        (smi(H200 + H200), "twice"),
        (smi("", -9, ""), "no output"),
    ],
)
def test_strange_output_is_told_and_gives_no_gpu(result: Result, words: str | None) -> None:
    gpus, error = parse_nvidia_smi(result)
    assert gpus == ()
    assert error is None if words is None else words in (error or "")


def test_a_missing_gpu_line_keeps_the_good_ones_and_says_so() -> None:
    gpus, error = parse_nvidia_smi(smi(H200 + "1, ERR!, NVIDIA H200, ERR!, ERR!\n"))
    assert len(gpus) == 1 and "ERR!" in (error or "")


def test_this_machine(tmp_path: Path) -> None:
    import sys

    got = local_facts(OrchHome(tmp_path / "not" / "there"), sys.executable)
    assert got.cpus >= 1 and got.ram_mib > 0 and got.home_free_mib > 0
    assert got.python_version.startswith("3.") and len(got.boot_id) == 36


def fake_nvidia_smi(folder: Path, body: str) -> None:
    folder.mkdir()
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_fake_nvidia_smi_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path / "bin", f"printf '{H200.strip()}\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    gpus, error = gpus_module.gpus_of(LocalTransport())
    assert [g.name for g in gpus] == ["NVIDIA H200"] and error is None


def test_a_hung_nvidia_smi_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path / "bin", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(gpus_module, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    gpus, error = gpus_module.gpus_of(LocalTransport())
    assert gpus == () and "did not answer" in (error or "")


def test_memory_and_quota_parsers() -> None:
    assert parse_meminfo("MemTotal:       24684544 kB\nMemAvailable:   1048576 kB\n") == (24106, 1024)
    assert parse_meminfo("") == (0, 0)
    assert parse_cpu_max("150000 100000\n") == 1.5
    assert parse_cpu_max("max 100000\n") is None


def test_local_transport(tmp_path: Path) -> None:
    pod = LocalTransport()
    assert pod.run(["cat"], timeout_s=5, stdin=b"x\ny").stdout == "x\ny"
    assert pod.run(["no-such-command"], timeout_s=60).exit_code == 127
    assert pod.run([str(tmp_path)], timeout_s=60).exit_code == 126
    assert pod.run(["sh", "-c", "exit 3"], timeout_s=60).exit_code == 3
    with pytest.raises(UnreachableError):
        pod.run(["sleep", "5"], timeout_s=0.1)
    target = tmp_path / "a" / "b"
    pod.put(b"data", PurePosixPath(target), timeout_s=60)
    assert target.read_bytes() == b"data"
    assert target.stat().st_mode & 0o777 == 0o600
