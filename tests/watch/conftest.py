"""Fixtures of the command line, and a far pod, for the watch."""

from __future__ import annotations

from tests.cli.conftest import home, make, orch, sleeper
from tests.mirror.conftest import far

__all__ = ["far", "home", "make", "orch", "sleeper"]
