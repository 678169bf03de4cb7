"""Inventory: the pods a person knows (`$ORCH_HOME/pods.yaml`). `local`, this machine, is always known."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from workloads.contract.config.base import Config, Name


class PodSpec(Config):
    local: bool = False
    ssh: str | None = None
    """`[user@]host[:port]` or an alias of ~/.ssh/config"""
    host_key: str | None = None
    """the pinned key, `ssh-ed25519 AAAA...`"""
    identity: str | None = None
    """private key file for this pod; default: the agent's keys and those of ~/.ssh"""
    jump_keys: list[str] = []
    """pinned keys of the hosts jumped through, first hop first"""
    root: str | None = None
    """ORCH_HOME there; default ~/.orch"""
    python: str | None = None
    """the interpreter that runs orch's parts and, unless the job says otherwise, the ranks"""
    address: str | None = None
    """the address other pods reach it by"""

    @model_validator(mode="after")
    def _reach(self) -> Self:
        if self.local == (self.ssh is not None):
            raise ValueError("a pod is either `local: true` or has `ssh: user@host`")
        return self


class Inventory(Config):
    pods: dict[Name, PodSpec] = {}

    def with_local(self) -> Inventory:
        """The same inventory with the pod `local` added when it has none of that name."""
        return Inventory(pods={"local": PodSpec(local=True), **self.pods})
