"""The lab's fixtures for the tests of the lab."""

from tests.lab.fixtures import lab, make_lab  # noqa: F401
