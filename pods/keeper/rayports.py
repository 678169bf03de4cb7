"""A block of ports for one Ray node: every port explicit, so that nothing collides with Ray's own defaults.

Blocks of 500 between 20000 and 32500: above Ray's default worker ports (10002 to 19999), below the kernel's ephemeral
range (32768). The first free block after one chosen by the cluster id is taken.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, fields

FIRST, BLOCK, BLOCKS = 20_000, 500, 25


@dataclass(frozen=True)
class RayPorts:
    gcs: int
    dashboard: int
    node_manager: int
    object_manager: int
    runtime_env_agent: int
    agent_http: int
    agent_grpc: int
    metrics: int
    client_server: int
    autoscaler_metrics: int
    dashboard_metrics: int
    worker_min: int
    worker_max: int

    @classmethod
    def block(cls, base: int) -> RayPorts:
        fixed = [f.name for f in fields(cls) if not f.name.startswith("worker_")]
        ports = {name: base + i for i, name in enumerate(fixed)}
        return cls(**ports, worker_min=base + 20, worker_max=base + BLOCK - 1)

    def fixed(self) -> list[int]:
        return [v for k, v in asdict(self).items() if not k.startswith("worker_")]

    def flags(self) -> list[str]:
        """`ray start` flags, head node."""
        named = {
            "--port": self.gcs,
            "--dashboard-port": self.dashboard,
            "--node-manager-port": self.node_manager,
            "--object-manager-port": self.object_manager,
            "--runtime-env-agent-port": self.runtime_env_agent,
            "--dashboard-agent-listen-port": self.agent_http,
            "--dashboard-agent-grpc-port": self.agent_grpc,
            "--metrics-export-port": self.metrics,
            "--ray-client-server-port": self.client_server,
            "--min-worker-port": self.worker_min,
            "--max-worker-port": self.worker_max,
        }
        return [f"{k}={v}" for k, v in named.items()]

    def env(self) -> dict[str, str]:
        """Ports that Ray takes from the environment only."""
        return {
            "AUTOSCALER_METRIC_PORT": str(self.autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(self.dashboard_metrics),
        }


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def free_block(cluster_id: str) -> RayPorts:
    """Raises OSError when no block is free."""
    start = int(cluster_id, 16) % BLOCKS
    for i in range(BLOCKS):
        ports = RayPorts.block(FIRST + (start + i) % BLOCKS * BLOCK)
        if all(is_free(p) for p in ports.fixed()):
            return ports
    raise OSError(f"no free block of {BLOCK} ports between {FIRST} and {FIRST + BLOCK * BLOCKS}")
