"""What is known of a machine, as data. A fact that could not be had is None (or named in `unasked`), never guessed."""

from __future__ import annotations

from dataclasses import dataclass

NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "9p", "afs", "ocfs2", "gfs2"}
    | {"juicefs", "wekafs"}
    | {f"fuse.{name}" for name in ("juicefs", "sshfs", "s3fs", "gcsfuse", "rclone", "mfs", "moosefs", "ceph", "weka")}
)


@dataclass(frozen=True)
class MigDevice:
    uuid: str
    profile: str  # such as 1g.10gb


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_mib: int
    used_mib: int
    driver: str | None = None
    ecc: bool | None = None  # None: this GPU has none, or would not say
    ecc_volatile: int | None = None  # uncorrected errors since the driver was loaded
    ecc_aggregate: int | None = None  # uncorrected errors of its life
    mig: bool | None = None
    temperature_c: int | None = None
    pcie_gen: int | None = None
    pcie_width: int | None = None
    mig_devices: tuple[MigDevice, ...] = ()


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU. In a container, others' processes are seen without a user or not at all."""

    pid: int
    gpu: str  # uuid
    command: str
    used_mib: int | None
    user: str | None = None


@dataclass(frozen=True)
class Xid:
    """A fault that the driver wrote into the kernel's log since the machine started."""

    code: int
    pci: str
    text: str


@dataclass(frozen=True)
class Interpreter:
    path: str
    version: str


@dataclass(frozen=True)
class Disk:
    """Where `what` (root, home, tmp, shm, workspace, volume) lies. Figures are None when it could not be asked."""

    what: str
    path: str
    mount: str | None = None
    type: str | None = None
    size_mib: int | None = None
    free_mib: int | None = None
    inodes: int | None = None  # 0: a file system that has no fixed number
    inodes_free: int | None = None
    options: tuple[str, ...] = ()

    @property
    def noexec(self) -> bool:
        return "noexec" in self.options

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    @property
    def network(self) -> bool:
        return self.type in NETWORK_TYPES


@dataclass(frozen=True)
class PodFacts:
    hostname: str
    boot_id: str
    cpus: int
    ram_mib: int
    ram_available_mib: int
    shm_mib: int  # free
    home_free_mib: int
    python: str
    python_version: str
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str | None = None  # why the GPUs could not be listed; None when there are none or all answered
    user: str | None = None
    uid: int | None = None
    home_dir: str | None = None
    orch_home: str | None = None
    root_writable: bool | None = None  # orch's home, or where it would be made
    system: str | None = None  # Linux
    kernel: str | None = None
    arch: str | None = None
    distribution: str | None = None
    libc: str | None = None  # glibc 2.36
    pythons: tuple[Interpreter, ...] = ()
    uv: str | None = None
    tools: tuple[str, ...] = ()
    driver: str | None = None  # of the kernel module
    cuda: str | None = None  # the newest that the driver can do
    smi: str | None = None  # path of nvidia-smi
    gpu_devices: int = 0  # /dev/nvidia0, 1, ...
    gpu_known: int = 0  # GPUs that the kernel module knows
    gpu_processes: tuple[GpuProcess, ...] | None = None
    xids: tuple[Xid, ...] | None = None
    cpu_model: str | None = None
    cpu_affinity: int | None = None
    cpu_quota: float | None = None
    ram_limit_mib: int | None = None  # of the container
    shm_size_mib: int | None = None
    disks: tuple[Disk, ...] = ()
    nofile: tuple[int | None, int | None] | None = None  # soft, hard; None inside: unlimited
    nproc: tuple[int | None, int | None] | None = None
    memlock: tuple[int | None, int | None] | None = None
    clock_offset_s: float | None = None  # the pod's clock minus this machine's
    clock_uncertainty_s: float | None = None
    uptime_s: float | None = None
    container: str | None = None
    pid1: str | None = None
    ptrace_scope: int | None = None
    connect_ms: float | None = None  # until the connection was there; None where none is needed
    round_trip_ms: float | None = None  # of the question and its answer, without what the pod took to find it
    unasked: tuple[str, ...] = ()  # parts of the answer that hung or did not come

    def disk(self, what: str) -> Disk | None:
        return next((d for d in self.disks if d.what == what), None)
