"""Parsers of facts: strange words of a machine, and any bytes at all, never raise and never make up a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.inventory.check import Checked, lines
from orchestrator.inventory.findings import judge
from orchestrator.runs.render import harmless
from pods.facts import facts_of, parse
from pods.facts.gpus import (
    parse_compute_apps,
    parse_gpu_lines,
    parse_mig_list,
    parse_module_version,
    parse_smi_header,
    parse_xids,
)
from pods.facts.kinds import Gpu, GpuProcess, Interpreter, MigDevice, Xid
from pods.facts.script import SCRIPT
from pods.facts.sections import Section, split_sections

UUID = "GPU-5ce6f751-d9a5-2669-cfdd-cb0224401395"
LONG = f"0, {UUID}, NVIDIA H200, 143771, 4, 580.159.04, Enabled, 0, 2, Disabled, 30, 5, 16"
SECTION_NAMES = sorted(
    set(re.findall(r"^\s*(?:\[.*\] && )?sec ([a-z0-9]+)", SCRIPT, re.M))
    | set(re.findall(r'\blim (?:\d+|"\$G") ([a-z0-9]+)', SCRIPT))
)


def test_the_long_answer() -> None:
    gpus, error = parse_gpu_lines(LONG)
    assert error is None and gpus == (
        Gpu(0, UUID, "NVIDIA H200", 143771, 4, "580.159.04", True, 0, 2, False, 30, 5, 16),
    )  # fmt: skip


def test_what_a_gpu_does_not_say_is_none() -> None:
    line = f"1, {UUID}, NVIDIA GeForce RTX 4090, 24564, 18211, 550.54.15, [N/A], [N/A], [N/A], [N/A], ERR!, 1, 16"
    (gpu,), error = parse_gpu_lines(line)
    assert error is None
    assert (gpu.ecc, gpu.ecc_volatile, gpu.ecc_aggregate, gpu.mig, gpu.temperature_c) == (None,) * 5
    assert (gpu.pcie_gen, gpu.memory_mib, gpu.name) == (1, 24564, "NVIDIA GeForce RTX 4090")


@pytest.mark.parametrize(
    "line",
    [
        LONG.replace("143771", "ERR!"),
        LONG + ", 1",
        LONG.replace(UUID, "GPU-"),
        LONG.replace("NVIDIA H200", "\x1b[0m"),
        LONG.replace("0, GPU", "-1, GPU"),
        LONG.replace("143771", "٣"),
    ],
)
def test_a_line_that_is_no_gpu(line: str) -> None:
    gpus, error = parse_gpu_lines(line)
    assert gpus == () and "no GPU" in (error or "")


def test_one_index_twice() -> None:
    assert parse_gpu_lines(LONG + "\n" + LONG.replace("5ce6", "5ce7"))[1] == "nvidia-smi names one GPU twice"


def test_mig_list_of_two_gpus() -> None:
    text = (
        "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c)\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
        "  MIG 1g.10gb+me  Device  1: (UUID: MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/1/5)\n"
        "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-b198c54f-11df-05cf-f34b-032975e80cde)\n"
    )
    assert parse_mig_list(text) == {
        "GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c": (
            MigDevice("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "3g.40gb"),
            MigDevice("MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/1/5", "1g.10gb+me"),
        )
    }


def test_versions_of_the_driver() -> None:
    head = "Driver Version                            : 535.161.08\nCUDA Version                              : 12.2\n"
    assert parse_smi_header(head) == ("535.161.08", "12.2")
    assert parse_smi_header("CUDA Version : N/A\n") == (None, None)
    closed = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12"
    )
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)  "
    assert (parse_module_version(closed), parse_module_version(opened)) == ("550.54.15", "580.159.04")


def test_processes_on_gpus() -> None:
    text = f"{UUID}, 572, 1542, python3\n{UUID}, 573, [N/A], /opt/a, b\nNo running processes found\n{UUID}, x, 1, y\n"
    assert parse_compute_apps(text, {572: "ada"}) == (
        GpuProcess(572, UUID, "python3", 1542, "ada"), GpuProcess(573, UUID, "/opt/a, b", None, None),
    )  # fmt: skip


def test_xids() -> None:
    line = "[1.2] NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    old = "NVRM: Xid (0000:03:00): 31, Ch 00000018"
    assert parse_xids(f"{line}\n{line}\n{old}\nN-read dmesg", "N") == (
        Xid(79, "0000:c1:00", "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        Xid(31, "0000:03:00", "Ch 00000018"),
    )
    assert parse_xids("N-read dmesg", "N") == ()
    assert parse_xids("dmesg: read kernel buffer failed: Operation not permitted", "N") is None


def test_processor_and_memory_limits() -> None:
    assert parse.parse_cpu_list("\t0-3,8,10-11\n") == 7
    assert parse.parse_cpu_list("0-") is None and parse.parse_cpu_list("") is None
    nested = (
        "/sys/fs/cgroup/a/b cpu.max 400000 100000\n/sys/fs/cgroup/a cpu.max 250000 100000\n"
        "/sys/fs/cgroup/a/b memory.max max\n/sys/fs/cgroup/a memory.max 1000\n"
        "/sys/fs/cgroup/a memory.current 900\n/sys/fs/cgroup/a inactive_file 300\n"
    )
    assert parse.parse_cgroups(nested) == (2.5, 1000, 400)
    assert parse.parse_cgroups("/sys/fs/cgroup/memory memory.limit_in_bytes 9223372036854771712") == (None, None, None)
    assert parse.parse_limits("Max open files            1024                 unlimited            files") == {
        "Max open files": (1024, None)
    }


def test_disks_lie_on_the_last_of_the_longest_mounts() -> None:
    mounts = parse.parse_mounts(
        "overlay / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nnfs:/x /data\\040set nfs4 rw,noexec 0 0\n"
        "/dev/x /tmp ext4 ro 0 0\n"
    )
    assert parse.mount_of("/tmp/x", mounts) == ("/tmp", "ext4", ("ro",))
    assert parse.mount_of("/tmpfoo", mounts) == ("/", "overlay", ("rw",))
    disks, writable = parse.parse_disks(
        "at root /data set/orch\nat evil ../x\nwritable no\nfs 1048576 100 50 0 0 /data set/orch\n",
        "nfs:/x /data\\040set nfs4 rw,noexec 0 0\n",
    )
    assert len(disks) == 1 and writable is False
    d = disks[0]
    assert (d.mount, d.type, d.size_mib, d.free_mib, d.noexec, d.network) == ("/data set", "nfs4", 100, 50, True, True)


def test_libc_python_and_user() -> None:
    assert parse.parse_libc("musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n") == "musl 1.2.4"
    assert parse.parse_pythons("/a b/python3 Python 3.12.0rc1\n\n/x/python Python 2.7.18\n/y pyenv: not found\n") == (
        Interpreter("/a b/python3", "3.12.0"), Interpreter("/x/python", "2.7.18"),
    )  # fmt: skip
    assert parse.parse_id("uid=1000(ada) gid=1(x)") == (1000, "ada") and parse.parse_id("uid=7 gid=0") == (7, None)
    assert parse.container_of([], ["0::/lxc/pod"]) == "lxc" and parse.container_of([], ["0::/"]) is None


def test_clocks_lie_between_what_was_asked_and_what_was_answered() -> None:
    # one second of work there; 0.2 s on the way there, 0.4 s back: the middle is off by half the difference
    offset = parse.clock_offset(100.0, 101.6, (1100.2, 0.0), (1101.2, 0.0))
    assert offset == pytest.approx((999.9, 0.3))
    assert parse.parse_date("1795248554.815419147") == (1795248554.815419147, 0.0)
    assert parse.parse_date("1795248554.%N") == parse.parse_date("1795248554.N") == (1795248554.5, 0.5)
    assert parse.parse_date("now") is None and parse.clock_offset(1, 2, None, (1.0, 0.0)) is None


def test_sections() -> None:
    text = "noise\nN a\nx\nN b\ny\n\nN = 0\nlost\nN a\nsecond\nN c\nN = late\n N d\nNN e\n"
    assert split_sections(text, "N") == {
        "a": Section("x"), "b": Section("y", "0"), "c": Section("", "late"),
    }  # fmt: skip


def test_the_names_of_sections_are_known() -> None:
    assert {"about", "gpus", "gpus5", "migs", "owners", "apps", "xids", "disks", "end"} <= set(SECTION_NAMES)


STRANGE = st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("utf-8", "replace"))
BASE = split_sections(
    (Path(__file__).resolve().parents[1] / "golden" / "facts" / "base.txt").read_text(), "RECORDED"
)  # fmt: skip
HALVES = st.builds(
    lambda name, cut, more, at: BASE[name].text[:cut] + more + BASE[name].text[at:],
    st.sampled_from(sorted(BASE)), st.integers(0, 400), STRANGE, st.integers(0, 400),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(SECTION_NAMES),
        st.builds(Section, STRANGE | HALVES, st.sampled_from([None, "0", "1", "late", "x"])),
    )
)
def test_no_answer_raises_or_makes_up_a_gpu(sections: dict[str, Section]) -> None:
    facts = facts_of({**BASE, **sections}, nonce="RECORDED", asked=1.0, took_s=0.1)
    for gpu in facts.gpus:
        assert re.fullmatch(r"GPU-[0-9A-Za-z-]+", gpu.uuid) and gpu.name.isprintable() and gpu.memory_mib >= 0
        assert any(gpu.uuid in sections.get(n, BASE.get(n, Section(""))).text for n in ("gpus", "gpus5"))
    assert facts.cpus >= 1 and facts.ram_mib >= 0
    report = lines(Checked("pod-a", facts, tuple(judge("pod-a", facts))))
    assert all(line == harmless(line) and "\n" not in line for line in report)
