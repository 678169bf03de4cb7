"""An $ORCH_HOME of its own, and the real command in it."""

from __future__ import annotations

from tests.cli.conftest import home, orch

__all__ = ["home", "orch"]
