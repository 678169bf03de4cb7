"""Ctrl-C while a launch looks at its pod: at once, with the word that nothing happened."""

from __future__ import annotations

import signal
import socket
import time

from tests.cli.conftest import Orch
from workloads.contract.rundir import OrchHome

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP8wwwJe9MNOnIN3Zn6wlFaq8ZsUeh/YhfdYAI31iFaN"


def test_interrupted_before_anything_was_submitted(home: OrchHome, orch: Orch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes the connection and says nothing
        port = deaf.getsockname()[1]
        home.inventory.write_text(f"pods:\n  box:\n    ssh: root@127.0.0.1:{port}\n    host_key: {KEY}\n")
        process = orch.start("launch", "--pod", "box", "--", "true")
        deaf.settimeout(20)
        peer, _ = deaf.accept()
        with peer:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, err = process.communicate(timeout=120)
            assert time.monotonic() - began < 3
        assert process.returncode == 130 and "interrupted; nothing was submitted" in err and "Traceback" not in err
        assert not home.mirror.exists()
