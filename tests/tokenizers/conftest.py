from __future__ import annotations

from pathlib import Path

import pytest

from tests.tokenizers.vocabularies import gpt2_files
from workloads.contract.rundir import OrchHome


@pytest.fixture(scope="session")
def gpt2_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)  # not there with -p no:cacheprovider
    return gpt2_files(Path(cache.mkdir("gpt2")) if cache is not None else tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OrchHome:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    return OrchHome(tmp_path / "home")
