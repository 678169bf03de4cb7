"""The keeper's socket: who asked is answered, also when the answer is the last thing a keeper does."""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pods.keeper.client import KeeperClient, ensure_keeper, running
from pods.keeper.keeper import Keeper
from pods.keeper.server import Operations, Server
from pods.tree import ensure_tree
from tests.pod.shimlab import ROOT
from workloads.contract.errors import RemoteError
from workloads.contract.files import atomic_write_json, read_json
from workloads.contract.process import ProcId
from workloads.contract.rundir import OrchHome


class Slow(Operations):
    """Takes its time between having done what was asked and having said so."""

    def poke(self, request: dict[str, Any]) -> dict[str, Any]:
        super().poke(request)
        time.sleep(0.4)
        return {"told": True}


def test_the_end_waits_for_answers_that_are_on_their_way(tmp_path: Path) -> None:
    wake = threading.Event()
    server = Server(tmp_path / "s" / "keeper.sock", Slow(Keeper(OrchHome(tmp_path)), wake))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(tmp_path / "s" / "keeper.sock"))
        s.sendall(b'{"op":"poke"}\n')
        assert wake.wait(timeout=120)  # what was asked is done: a keeper that was asked to go down ends its loop here
        assert not server.answered(0.05)
        assert server.answered(5)
        s.settimeout(0.5)
        assert json.loads(s.recv(1000)) == {"ok": True, "told": True}
    server.shutdown()
    server.server_close()


def test_a_keeper_that_goes_down_says_so(tmp_path: Path) -> None:
    home = OrchHome(tmp_path / "home")
    tree = ensure_tree(home)
    for _ in range(5):
        ensure_keeper(home, sys.executable, tree)
        assert KeeperClient(home).down()["stopped"] is True
        deadline = time.monotonic() + 60
        while running(home) is not None and time.monotonic() < deadline:
            time.sleep(0.01)


def test_a_keeper_whose_home_was_made_anew_leaves_it_to_the_other_one(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    tree = ensure_tree(home)
    ensure_keeper(home, sys.executable, tree)
    old = running(home)
    assert old is not None
    shutil.rmtree(home.keeper)
    ensure_keeper(home, sys.executable, tree)
    new = running(home)
    assert new is not None and new["pid"] != old["pid"]
    try:
        process = ProcId(old["pid"], old["start_time"], old["boot_id"])
        deadline = time.monotonic() + 60
        while process.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not process.alive()
        assert running(home) == new, "what carries the name is the new one's"
    finally:
        KeeperClient(home).down()


@pytest.mark.parametrize("row", [{"host": "gpu-b"}, {}], ids=["named", "by an older orch"])
def test_a_home_that_another_machine_keeps_is_refused_by_its_name(tmp_path: Path, row: dict[str, Any]) -> None:
    """A home on a shared disk, where locks hold across machines."""
    home = OrchHome(tmp_path)
    home.keeper.mkdir()
    theirs = {"pid": 1, "start_time": 1, "boot_id": "11111111-2222-3333-4444-555555555555", "socket": "/s", **row}
    atomic_write_json(home.keeper_record, theirs)
    home.keeper_log.write_text("keeper 1 keeps this home\n")
    with home.keeper_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RemoteError) as caught:
            ensure_keeper(home, sys.executable, ROOT)
    assert caught.value.code == "E-KEEP-006" and caught.value.where == str(home.path)
    assert caught.value.value == row.get("host", "its name is not known") and read_json(home.keeper_record) == theirs


def test_a_record_that_another_machine_or_boot_left_keeps_no_keeper_away(tmp_path: Path) -> None:
    home = OrchHome(tmp_path)
    home.keeper.mkdir()
    left = {"pid": 1, "start_time": 1, "boot_id": "old", "host": "gpu-b", "socket": "/s"}
    atomic_write_json(home.keeper_record, left)
    ensure_keeper(home, sys.executable, ensure_tree(home))
    try:
        assert (running(home) or {})["host"] == socket.gethostname()
    finally:
        KeeperClient(home).down()
