"""The real script that asks for facts: in every shell that is here, over a real sshd, and beside tools that hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pods.facts import PodFacts, collect, cpu_count
from pods.transport.base import Result
from pods.transport.local import LocalTransport
from tests.lab.sshd import Sshd, why_no_sshd
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import RemoteError

UUID = "GPU-5ce6f751-d9a5-2669-cfdd-cb0224401395"
SHELLS = ("dash", "bash", "busybox sh", "mksh")
FAKE = f"""#!/bin/sh
case $FAKE in
  hang) exec sleep 30 ;;
  child) sleep 30; exit ;;
  flood) exec yes garbage ;;
  old) case $* in *ecc*) echo 'Field "ecc.mode.current" is not a valid field to query.'; exit 2 ;; esac ;;
esac
case $* in
  *--query-gpu=*temperature*) echo "0, {UUID}, NVIDIA A100, 81920, 3, 535.161.08, Enabled, 0, 0, Enabled, 30, 4, 16" ;;
  *--query-gpu=*) echo "0, {UUID}, Tesla V100, 16160, 3" ;;
  *--query-compute-apps=*) echo "{UUID}, $HOLDER, 1542, python3" ;;
  -L) printf 'GPU 0: NVIDIA A100 (UUID: {UUID})\\n  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3)\\n' ;;
  -q*) printf 'Driver Version                     : 535.161.08\\nCUDA Version                       : 12.2\\n' ;;
esac
"""


class Through(LocalTransport):
    """This machine by another shell than /bin/sh, with an environment of its own."""

    def __init__(self, shell: str, env: Mapping[str, str]) -> None:
        self.shell, self.env = shell.split(), dict(env)

    def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        assert argv[0] == "/bin/sh"
        return super().run([*self.shell, *argv[1:]], timeout_s=timeout_s, env={**self.env, **(env or {})})


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """A home and a folder for temporary files of its own, a PATH with a fake nvidia-smi."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(FAKE)
    (tools / "nvidia-smi").chmod(0o755)
    for name in ("home with space", "scratch"):
        (tmp_path / name).mkdir()
    return {
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home with space"),
        "TMPDIR": str(tmp_path / "scratch"), "HOLDER": str(os.getpid()), "FAKE": "",
    }  # fmt: skip


def files_below(folder: str) -> list[Path]:
    return list(Path(folder).rglob("*"))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gives_the_same_facts(shell: str, bare: dict[str, str]) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"{shell} is not installed")
    facts = collect(Through(shell, bare))
    (gpu,) = facts.gpus
    assert (gpu.uuid, gpu.name, gpu.mig, gpu.temperature_c) == (UUID, "NVIDIA A100", True, 30)
    assert [m.profile for m in gpu.mig_devices] == ["3g.40gb"]
    assert (facts.driver, facts.cuda, facts.gpu_error, facts.unasked) == ("535.161.08", "12.2", None, ())
    assert facts.gpu_processes is not None
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert [(p.pid, p.user) for p in facts.gpu_processes] == [(os.getpid(), me)]
    assert (facts.uid, facts.user, facts.home_dir) == (os.getuid(), me, bare["HOME"])
    assert facts.orch_home == bare["HOME"] + "/.orch" and facts.root_writable is True
    assert facts.cpus == cpu_count() and facts.ram_mib > 0 and facts.shm_size_mib
    root = facts.disk("root")
    assert root is not None and (root.path, root.type is None) == (bare["HOME"], False)
    usage = shutil.disk_usage(bare["HOME"])
    assert root.size_mib == usage.total >> 20 and abs(facts.home_free_mib - (usage.free >> 20)) < 4096
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (facts.system, facts.arch) == (os.uname().sysname, os.uname().machine)
    assert facts.clock_offset_s is not None and abs(facts.clock_offset_s) <= (facts.clock_uncertainty_s or 0) + 1e-3
    assert files_below(bare["HOME"]) + files_below(bare["TMPDIR"]) == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("how", ["hang", "child"])
def test_a_hung_nvidia_smi_costs_its_limit_and_spoils_nothing_else(
    shell: str, how: str, bare: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"{shell} is not installed")
    began = time.monotonic()
    facts = collect(Through(shell, {**bare, "FAKE": how}), gpu_timeout_s=0.4)
    assert 0.4 <= time.monotonic() - began < 25
    assert facts.gpus == () and facts.gpu_error == "nvidia-smi does not answer"
    assert facts.unasked == ("gpus",) and facts.disk("root") is not None and facts.pythons
    assert files_below(bare["TMPDIR"]) == []
    deadline = time.monotonic() + 60  # a shell that was told to end may still be about to
    while left := [p for p in Path("/proc").glob("[0-9]*/environ") if mine(p, bare)]:
        assert time.monotonic() < deadline, [(p.parent / "cmdline").read_bytes() for p in left]
        time.sleep(0.02)


def mine(environ: Path, bare: dict[str, str]) -> bool:
    try:
        return f"TMPDIR={bare['TMPDIR']}\0".encode() in environ.read_bytes()
    except OSError:
        return False


def test_what_floods_is_cut_and_an_old_driver_is_asked_less(bare: dict[str, str]) -> None:
    flooded = collect(Through("sh", {**bare, "FAKE": "flood"}))
    assert flooded.gpus == () and "garbage" in (flooded.gpu_error or "")
    old = collect(Through("sh", {**bare, "FAKE": "old"}))
    assert [(g.name, g.ecc) for g in old.gpus] == [("Tesla V100", None)] and old.gpu_error is None


def test_without_a_place_for_temporary_files(bare: dict[str, str], tmp_path: Path) -> None:
    """Everything is still answered when no folder can be made (a `mkdir` that refuses stands for full disks)."""
    (tmp_path / "tools" / "mkdir").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "tools" / "mkdir").chmod(0o755)
    facts = collect(Through("sh", bare))
    assert [g.name for g in facts.gpus] == ["NVIDIA A100"] and facts.gpus[0].mig_devices
    assert facts.unasked == () and facts.pythons and facts.disk("root")


def test_root_python_and_a_home_that_cannot_be_written(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    own = tmp_path / "python" / "mypy3"
    own.write_text("#!/bin/sh\necho Python 3.12.9\n")
    own.chmod(0o755)
    facts = collect(Through("sh", bare), root="~/deep/er", python=str(own))
    assert facts.orch_home == bare["HOME"] + "/deep/er" and facts.root_writable is True
    assert (facts.python, facts.python_version) == (str(own), "3.12.9")
    gone = collect(Through("sh", bare), root="/proc/no/such", python="/no/python")
    assert gone.root_writable is False and (gone.python, gone.python_version) == ("/no/python", "")


def test_what_is_no_shell_is_told(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="POSIX shell") as e:
        collect(Through("echo This account is currently not available. #", {}))
    assert e.value.code == "E-FACT-001"


def test_it_is_cheap() -> None:
    """Eight of them on two cores must leave most of two seconds to SSH: some 15 ms each, few processes started."""
    env = {"PATH": "/usr/bin:/bin"}
    took = []
    for _ in range(5):
        began = time.monotonic()
        collect(Through("sh", env))
        took.append(time.monotonic() - began)
    assert min(took) < 0.25  # a machine that is busy with other tests; alone it is a tenth of that


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    if (why := why_no_sshd()) is not None:
        pytest.skip(why)
    with Sshd(tmp_path / "sshd") as made:
        yield made


def test_over_a_real_sshd(sshd: Sshd, tmp_path: Path) -> None:
    from pods.transport.ssh import SshTransport

    spec = PodSpec(ssh=sshd.target, host_key=sshd.host_key, identity=str(sshd.identity))
    transport = SshTransport("pod-a", spec)
    try:
        far: PodFacts = collect(transport, root=str(tmp_path / "orch"))
    finally:
        transport.close()
    near = collect(LocalTransport(), root=str(tmp_path / "orch"))
    same = ("hostname", "boot_id", "cpus", "ram_mib", "user", "arch", "libc", "disks", "orch_home", "root_writable")
    assert [getattr(far, k) for k in same if k != "disks"] == [getattr(near, k) for k in same if k != "disks"]
    assert [(d.what, d.mount) for d in far.disks] == [(d.what, d.mount) for d in near.disks]
    assert far.connect_ms and far.round_trip_ms and far.unasked == ()
    assert far.clock_offset_s is not None and abs(far.clock_offset_s) <= (far.clock_uncertainty_s or 0) + 1e-3
