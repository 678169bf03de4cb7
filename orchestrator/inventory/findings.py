"""What facts of a pod mean: findings, worst first, each with one thing to type. Pure.

Called by `orch pods check` and as the preflight of a launch.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.inventory.finding import GIB_MIB, ORDER, Finding, Level, size
from orchestrator.inventory.gpufindings import gpu_findings
from orchestrator.runs.render import duration
from pods.facts.kinds import Disk, PodFacts
from pods.facts.parse import version_key

DISK_FAIL_MIB, DISK_WARN_MIB = 1 * GIB_MIB, 20 * GIB_MIB
TMP_WARN_MIB = 512
INODES_WARN = 10_000
SHM_WARN_MIB = 256
RAM_WARN_MIB = 2 * GIB_MIB
OPEN_FILES_WARN = 4096
CLOCK_WARN_S = 5.0
OLDEST_PYTHON, OLDEST_GLIBC = (3, 11), (2, 28)
ARCHITECTURES = ("x86_64", "aarch64")


def judge(pod: str, facts: PodFacts) -> list[Finding]:
    """Every finding about `pod`, failures first."""
    if facts.system != "Linux":
        told = f"this is {facts.system}" if facts.system else "what this machine is cannot be told"
        return [Finding("fail", "system", f"{told}; a pod is a Linux machine", f"orch pods forget {pod}")]
    found = [*gpu_findings(pod, facts), *_machine(facts), *_programs(pod, facts), *_disks(pod, facts), *_limits(facts)]
    found += _unasked(pod, facts)
    return sorted(found, key=lambda f: ORDER.index(f.level))


def _machine(facts: PodFacts) -> Iterator[Finding]:
    if facts.arch not in ARCHITECTURES:
        yield Finding("fail", "arch", f"the processor is {facts.arch or 'unknown'}; PyTorch has no build for it")
    elif facts.arch == "aarch64":
        yield Finding("note", "arch", "the processor is aarch64: an environment locked for x86_64 does not fit")
    if facts.libc and facts.libc.startswith("musl"):
        yield Finding(
            "fail", "libc", f"{facts.libc} instead of glibc (Alpine?): PyTorch's wheels cannot be installed",
            "start the pod from an image made of Debian or Ubuntu",
        )  # fmt: skip
    elif facts.libc and version_key(facts.libc) < OLDEST_GLIBC:
        yield Finding(
            "fail", "libc", f"{facts.libc} is too old for PyTorch's wheels (2.28 or newer)",
            "start the pod from an image of Ubuntu 22.04 or newer",
        )  # fmt: skip
    if facts.ram_mib and facts.ram_available_mib < RAM_WARN_MIB:
        yield Finding(
            "warn", "memory", f"{size(facts.ram_available_mib)} of {size(facts.ram_mib)} memory are available",
            "ps aux --sort=-rss | head, on the pod",
        )  # fmt: skip
    yield from _clock(facts)


def _clock(facts: PodFacts) -> Iterator[Finding]:
    if facts.clock_offset_s is None:
        return
    off = abs(facts.clock_offset_s) - (facts.clock_uncertainty_s or 0.0)
    if off > CLOCK_WARN_S:
        side = "ahead of" if facts.clock_offset_s > 0 else "behind"
        yield Finding(
            "warn", "clock", f"its clock is {duration(abs(facts.clock_offset_s))} {side} this machine's",
            "sudo chronyc makestep (or: sudo date -s ...), on the machine that is wrong",
        )  # fmt: skip


def _programs(pod: str, facts: PodFacts) -> Iterator[Finding]:
    new = [p for p in facts.pythons if version_key(p.version) >= OLDEST_PYTHON]
    if facts.python and version_key(facts.python_version) < OLDEST_PYTHON and (not new or not facts.python_version):
        told = f"is {facts.python_version}" if facts.python_version else "cannot be started"
        others = f"; {new[0].path} is {new[0].version}" if new else "; 3.11 or newer is needed"
        yield Finding(
            "fail" if not facts.python_version else "warn", "python", f"{facts.python} {told}{others}",
            f"orch pods bootstrap {pod}   (brings one)",
        )  # fmt: skip
    elif not new and "pythons" not in facts.unasked:
        yield Finding(
            "warn", "python", "there is no Python 3.11 or newer", f"orch pods bootstrap {pod}   (brings one)"
        )  # fmt: skip
    if facts.gpus and not {"gcc", "cc", "clang"} & set(facts.tools) and "tools" not in facts.unasked:
        yield Finding(
            "warn", "compiler", "there is no C compiler: Triton cannot compile kernels",
            "apt-get install -y gcc libc6-dev, on the pod",
        )  # fmt: skip


def _disks(pod: str, facts: PodFacts) -> Iterator[Finding]:
    root, tmp = facts.disk("root"), facts.disk("tmp")
    where = facts.orch_home or "~/.orch"
    if facts.root_writable is False:
        why = ": its disk is mounted read-only" if root and root.read_only else ""
        if root and root.free_mib == 0:
            why = ": its disk is full"
        yield Finding(
            "fail", "root", f"{where} cannot be written by {facts.user or facts.uid}{why}",
            f"set `root:` of pod {pod} in pods.yaml to a directory that can be written",
        )  # fmt: skip
    if root is not None:
        yield from _root_disk(pod, root, where, full_is_told=facts.root_writable is False)
    if tmp is not None and tmp.free_mib is not None and tmp.free_mib < TMP_WARN_MIB:
        yield Finding(
            "warn", "tmp", f"/tmp has {size(tmp.free_mib)} free",
            f"remove what is not needed, or set TMPDIR in the job's env: {where}/tmp",
        )  # fmt: skip
    if tmp is not None and tmp.noexec:
        yield Finding(
            "warn", "tmp", "programs in /tmp may not be run (noexec): what compiles there fails",
            f"set TMPDIR in the job's env: {where}/tmp",
        )  # fmt: skip
    if facts.shm_size_mib is not None and facts.shm_size_mib < SHM_WARN_MIB:
        yield Finding(
            "warn", "shm", f"/dev/shm has {size(facts.shm_size_mib)}: data loaders with workers and NCCL need more",
            "docker run --shm-size=16g (or mount -o remount,size=16g /dev/shm)",
        )  # fmt: skip


def _root_disk(pod: str, root: Disk, where: str, *, full_is_told: bool) -> Iterator[Finding]:
    fix = f"free some space there, or set `root:` of pod {pod} in pods.yaml to another disk"
    told = full_is_told and root.free_mib == 0
    if root.free_mib is not None and root.free_mib < DISK_WARN_MIB and not told:
        level: Level = "fail" if root.free_mib < DISK_FAIL_MIB else "warn"
        yield Finding(level, "disk", f"{size(root.free_mib)} are free for {where} (on {root.mount or root.path})", fix)
    if root.inodes and root.inodes_free is not None and root.inodes_free < INODES_WARN:
        yield Finding(
            "fail" if root.inodes_free < 100 else "warn", "disk",
            f"{root.inodes_free} more files can be made for {where} (on {root.mount or root.path})", fix,
        )  # fmt: skip
    if root.noexec:
        yield Finding(
            "fail", "root", f"programs in {where} may not be run (noexec): environments there cannot work",
            f"set `root:` of pod {pod} in pods.yaml to another disk",
        )  # fmt: skip
    if root.network:
        yield Finding("note", "root", f"{where} is on a network disk ({root.type}): environments there are slow")


def _limits(facts: PodFacts) -> Iterator[Finding]:
    hard = facts.nofile[1] if facts.nofile else None
    if hard is not None and hard < OPEN_FILES_WARN:
        yield Finding(
            "warn", "open files", f"a process may open {hard} files; Ray wants {OPEN_FILES_WARN}",
            "docker run --ulimit nofile=65536:65536 (or LimitNOFILE= of sshd)",
        )  # fmt: skip
    if facts.ptrace_scope and facts.uid:
        yield Finding(
            "note", "ptrace", f"ptrace is restricted (scope {facts.ptrace_scope}): py-spy cannot look into ranks"
        )


def _unasked(pod: str, facts: PodFacts) -> Iterator[Finding]:
    words = {
        "disks": ("a disk does not answer (a dead network mount?)", "grep -e nfs -e cifs -e fuse /proc/mounts"),
        "pythons": ("an interpreter does not answer when it is asked for its version", "python3 -V"),
    }
    others = [p for p in facts.unasked if p not in words and p not in ("gpus", "gpus5")]  # GPUs: told with them
    for part in facts.unasked:
        if part in words:
            text, typed = words[part]
            yield Finding("fail" if part == "disks" else "warn", part, text, f"orch pods exec {pod} -- {typed}")
    if others:
        yield Finding(
            "warn", "answer", f"parts of the answer did not come: {', '.join(others)}", f"orch pods check {pod}"
        )
