"""Run directories and the real command, as the tests of the CLI have them."""

from __future__ import annotations

from tests.cli.conftest import home, make, orch

__all__ = ["home", "make", "orch"]
