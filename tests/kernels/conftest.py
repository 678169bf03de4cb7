"""Where kernels run in tests: on a GPU when there is one, else under Triton's interpreter; fresh memory holds NaN.

Triton reads TRITON_INTERPRET when it is imported, when a kernel is declared and when it is called. So the variable is
set here, before any test module of this folder is imported, taken away once everything is collected, and set again
around this folder's tests only: no other folder's tests, and none of their child processes, run in the interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.utils import deterministic

VARIABLE = "TRITON_INTERPRET"
INTERPRET = not torch.cuda.is_available()
BEFORE = os.environ.get(VARIABLE)


def _set(value: str | None) -> None:
    if value is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = value


def _interpret() -> None:
    if not INTERPRET:
        return
    late = "triton" in sys.modules and not BEFORE
    os.environ[VARIABLE] = "1"
    try:
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:  # without Triton the references are tested, and nothing else
        return
    if late and not isinstance(tl.sum, InterpretedFunction):
        raise pytest.UsageError(f"triton was imported before tests/kernels: set {VARIABLE}=1 for this run")


_interpret()


def pytest_collection_finish() -> None:
    _set(BEFORE)


@pytest.fixture(scope="package", autouse=True)
def _interpreted() -> Iterator[None]:
    threads = torch.get_num_threads()
    if INTERPRET:
        os.environ[VARIABLE] = "1"
        torch.set_num_threads(1)  # tensors of a few kB: threads only wait for one another on a loaded machine
    yield
    _set(BEFORE)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN (the largest value for integers): what a kernel forgets to write is seen."""
    filled, mode, warn = (
        deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(mode, warn_only=warn)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRET else "cuda")
