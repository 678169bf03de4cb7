from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataprep.corpus import make, spec, text_folder
from tests.tokenizers.conftest import gpt2_folder
from workloads.contract.rundir import OrchHome

__all__ = ["gpt2_folder"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OrchHome:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    return OrchHome(tmp_path / "home")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 3 MB, four parts."""
    return text_folder(tmp_path_factory.mktemp("prepare") / "text", files=12, words=60_000)


@pytest.fixture(scope="session")
def shards(text: Path) -> Path:
    """`text` as bytes, prepared without a break. Not to be written to."""
    out = text.parent / "shards"
    make(spec(text), out)
    return out
