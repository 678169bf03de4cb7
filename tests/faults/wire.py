"""Ranks in lockstep without torch: rank 0 listens at MASTER_PORT, gathers what all say and tells it to all.

It stands in for a collective in the tests of faults: it blocks while a peer does not speak and raises when one is gone.
Has the face of `workloads.runtime.agreement.Agreement`. Pickles between processes of one run on one machine only.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import time
from typing import Any, TypeVar

from tests.faults.orders import pause
from workloads.runtime.rankenv import RankEnv

T = TypeVar("T")
CONNECT_S = 60.0
_LENGTH = struct.Struct("!I")


class Wire:
    def __init__(self, env: RankEnv) -> None:
        self.group = None
        self.rank, self.world = env.rank, env.world_size
        self._peers: list[socket.socket] = []
        place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if self.rank == 0:
            self._listen(place)
        else:
            self._peers = [self._connect(place)]

    def gather(self, mine: T) -> list[T]:
        """What every rank says, by rank."""
        if self.rank:
            _send(self._peers[0], mine)
            said: list[T] = _receive(self._peers[0])
            return said
        said = [mine, *(_receive(peer) for peer in self._peers)]
        for peer in self._peers:
            _send(peer, said)
        return said

    def from_rank0(self, mine: T | None) -> T:
        answer = self.gather(mine)[0]
        assert answer is not None
        return answer

    def _listen(self, place: tuple[str, int]) -> None:
        with socket.create_server(place, reuse_port=False) as server:
            server.settimeout(CONNECT_S)
            by_rank: dict[int, socket.socket] = {}
            while len(by_rank) < self.world - 1:
                peer, _ = server.accept()
                peer.setblocking(True)
                by_rank[_receive(peer)] = peer
        self._peers = [peer for _, peer in sorted(by_rank.items())]

    def _connect(self, place: tuple[str, int]) -> socket.socket:
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                peer = socket.create_connection(place, timeout=CONNECT_S)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                pause(0.02)
            else:
                peer.setblocking(True)
                _send(peer, self.rank)
                return peer


def _send(peer: socket.socket, value: Any) -> None:
    raw = pickle.dumps(value)
    peer.sendall(_LENGTH.pack(len(raw)) + raw)


def _receive(peer: socket.socket) -> Any:
    return pickle.loads(_exactly(peer, _LENGTH.unpack(_exactly(peer, _LENGTH.size))[0]))


def _exactly(peer: socket.socket, n: int) -> bytes:
    raw = b""
    while len(raw) < n:
        chunk = peer.recv(n - len(raw))
        if not chunk:
            raise ConnectionError("a peer is gone")
        raw += chunk
    return raw
