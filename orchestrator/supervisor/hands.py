"""What is done on a pod for its ranks, without Ray: shims through the keeper, ports, devices, leases, sweeps.

Each PodAgent has one; everything that starts or ends a process goes through the keeper, whose children outlive Ray.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pods.keeper.client import KeeperClient, ensure_keeper
from pods.keeper.runs import lock_is_held
from workloads.contract.errors import RemoteError, escape
from workloads.contract.files import try_read_json
from workloads.contract.rundir import OrchHome, leases_dir

RENDEZVOUS_PORTS = range(12_000, 20_000)  # below orch's Ray (20000 on) and below the kernel's ephemeral ports
SMI_TIMEOUT_S = 20.0
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Hands:
    def __init__(self, home: OrchHome, python: str, tree: Path) -> None:
        self.home, self.python, self.tree = home, python, tree

    def keeper(self) -> KeeperClient:
        """The keeper of this pod, started when it is missing. Raises OrchError."""
        return ensure_keeper(self.home, self.python, self.tree)

    def spawn(self, orders: Sequence[str]) -> None:
        """Have a shim started for each order file; idempotent. Raises OrchError at the first refusal."""
        keeper = self.keeper()
        for path in orders:
            keeper.spawn(Path(path))

    def sweep(self, mark: str) -> tuple[int, ...]:
        """End every process with this mark; the pids that stayed."""
        return tuple(self.keeper().sweep(mark).get("stayed", ()))


def free_port() -> int:
    """A port for the ranks' rendezvous that nothing is bound to now. Raises OSError when none was found."""
    for port in random.sample(RENDEZVOUS_PORTS, 64):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 12000 and 20000 in 64 tries")


def gpu_uuids(ids: Sequence[str]) -> tuple[str, ...]:
    """Ray's GPU ids (indices, or UUIDs already) as UUIDs. RemoteError when nvidia-smi does not know one."""
    if all(i.startswith(("GPU-", "MIG-")) for i in ids):
        return tuple(ids)
    argv = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        text = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as e:
        raise RemoteError("E-SUP-011", f"nvidia-smi could not be asked for the GPUs' UUIDs: {escape(e, 200)}") from e
    table = parse_uuids(text)
    missing = [i for i in ids if i not in table]
    if missing:
        raise RemoteError("E-SUP-012", f"nvidia-smi does not show GPU {', '.join(missing)}", value=escape(text, 400))
    return tuple(table[i] for i in ids)


def parse_uuids(text: str) -> dict[str, str]:
    """Index -> UUID from nvidia-smi's CSV; lines that are no such row are skipped."""
    rows = (line.split(",") for line in text.splitlines())
    pairs = ((row[0].strip(), row[1].strip()) for row in rows if len(row) == 2)
    return {index: uuid for index, uuid in pairs if index.isdigit() and _DEVICE.fullmatch(uuid)}


def busy_devices(devices: Sequence[str]) -> dict[str, str]:
    """Those of `devices` that somebody leases now -> the run that does, as its lease says."""
    busy = {}
    for device in devices:
        path = leases_dir() / f"{device}.lock"
        if lock_is_held(path):
            holder = (try_read_json(path) or {}).get("run")
            busy[device] = escape(holder, 80) if isinstance(holder, str) else "an unnamed holder"
    return busy
