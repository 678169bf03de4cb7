"""Requirement files become normal lines and a hash; what cannot travel is refused with file and line. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.environment.spec import (
    ORCH_NEEDS,
    EnvSpec,
    Platform,
    Requirements,
    load_requirements,
    parse_pyproject,
    wanted,
    with_orch,
)
from pods.environment.wheels import platform_tags, uv_platform
from workloads.contract.errors import ErrorGroup, OrchError, SpecError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "errors"


@dataclass(frozen=True)
class Row:
    version: str


@dataclass(frozen=True)
class Facts:
    arch: str | None = "x86_64"
    libc: str | None = "glibc 2.36"
    pythons: tuple[Row, ...] = ()
    home_free_mib: int = 100_000
    orch_home: str | None = "/root/.orch"


def written(folder: Path, text: str, name: str = "requirements.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_normal_form(tmp_path: Path) -> None:
    text = """
    # a comment
    Ray [Default,  serve]  == 2.60.0   # why
    numpy >= 2.0 , < 3 ; python_version  >= "3.11"
    --extra-index-url https://example.invalid/simple
    idna==3.10 \\
        --hash=sha256:bb \\
        --hash=sha256:aa
    Some_Package.Name @ https://example.invalid/x-1-py3-none-any.whl
    """
    assert load_requirements(written(tmp_path, text)).lines == (
        "--extra-index-url https://example.invalid/simple",
        "idna==3.10 --hash=sha256:aa --hash=sha256:bb",
        'numpy>=2.0,<3; python_version >= "3.11"',
        "ray[default,serve]==2.60.0",
        "some-package-name @ https://example.invalid/x-1-py3-none-any.whl",
    )


def test_the_hash_is_of_what_is_meant_not_of_how_it_is_written(tmp_path: Path) -> None:
    one = load_requirements(written(tmp_path, "NumPy>=2\niniconfig\n"))
    two = load_requirements(written(tmp_path, "# other\niniconfig  \nnumpy >= 2\nnumpy>=2\n", "b.txt"))

    def of(found: Requirements, **more: str) -> str:
        fields = {"python": "3.12", "machine": "x86_64", "libc": "glibc"} | more
        return EnvSpec(found, **fields).hash

    assert of(one) == of(two) and len(of(one)) == 16
    other = [of(one, python="3.11"), of(one, machine="aarch64"), of(one, libc="musl"), of(Requirements(("numpy>=2",)))]
    other.append(of(Requirements(one.lines, ("idna<4",))))
    assert len({of(one), *other}) == 6


def test_includes_and_constraints(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    written(tmp_path, "idna\n-r inner.txt\n-c ../bounds.txt\n", "more/outer.txt")
    written(tmp_path, "packaging\n", "more/inner.txt")
    written(tmp_path, "idna<4\n", "bounds.txt")
    found = load_requirements(written(tmp_path, "iniconfig\n--requirement more/outer.txt\n"))
    assert found == Requirements(("idna", "iniconfig", "packaging"), ("idna<4",))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("-e .", "E-ENV-007"), ("--editable=./x", "E-ENV-007"), ("./wheels/x-1-py3-none-any.whl", "E-ENV-007"),
        ("../x", "E-ENV-007"), ("x @ file:///tmp/x.whl", "E-ENV-007"), ("~/x.tar.gz", "E-ENV-007"),
        ("--find-links ./wheels", "E-ENV-007"), ("--no-binary :all:", "E-ENV-007"),
        ("--index-url https://${TOKEN}@example.invalid/", "E-ENV-007"),
        ("-r https://example.invalid/r.txt", "E-ENV-007"),
        ("numpy 2.0", "E-ENV-006"), ("numpy]x", "E-ENV-006"), ("=2.0", "E-ENV-006"), ("-r missing.txt", "E-ENV-009"),
        ("-r requirements.txt", "E-ENV-005"),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_refused_with_its_line(tmp_path: Path, line: str, code: str) -> None:
    path = written(tmp_path, f"idna\n{line}\n")
    with pytest.raises(OrchError) as e:
        load_requirements(path)
    assert e.value.code == code
    if code in ("E-ENV-006", "E-ENV-007"):
        assert e.value.where == f"{path}:2"


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ErrorGroup) as e:
        load_requirements(written(tmp_path, "-e .\nnumpy\n./x.whl\n"))
    assert [x.where for x in e.value.errors] == [f"{tmp_path}/requirements.txt:{n}" for n in (1, 3)]


def test_pyproject() -> None:
    assert parse_pyproject('[project]\ndependencies = ["Idna>=3", "packaging"]', "x").lines == ("idna>=3", "packaging")
    for text, code in (("[project]\nname='x'", "E-ENV-004"), ("[", "E-ENV-003")):
        with pytest.raises(SpecError) as e:
            parse_pyproject(text, "x")
        assert e.value.code == code


def test_what_orch_needs_is_added_once() -> None:
    found = with_orch(Requirements(("ray==2.60.1", "idna")))
    assert found.lines == ("idna", "py-spy>=0.4", "pydantic>=2.10,<3", "ray==2.60.1")
    with pytest.raises(SpecError) as e:
        with_orch(Requirements(("idna==3.10 --hash=sha256:aa",)))
    assert e.value.code == "E-ENV-002" and ORCH_NEEDS[0] in str(e.value.value)


def test_orchs_own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_TORCH", raising=False)
    spec = wanted(Facts(pythons=(Row("3.9.1"), Row("3.11.7"), Row("3.13.0"))))
    assert (spec.python, spec.machine, spec.libc, spec.ray, spec.has_torch) == (
        "3.11",
        "x86_64",
        "glibc",
        "2.60.0",
        True,
    )
    assert wanted(Facts()).python == "3.12"
    assert wanted(Facts(), python="3.11").python == "3.11"
    monkeypatch.setenv("ORCH_TORCH", "torch==2.12.*")
    assert wanted(Facts()).requirements.names["torch"] == "torch==2.12.*"
    assert wanted(Facts(), torch="2.11.0").requirements.names["torch"] == "torch==2.11.0"
    with pytest.raises(SpecError) as e:
        wanted(Facts(), python="3.13")
    assert e.value.code == "E-ENV-010"


@pytest.mark.parametrize("case", ["env_01_orch_torch", "env_02_orch_torch_of_another", "env_03_torch_of_another"])
def test_a_torch_that_is_none_says_who_asked_for_it(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("ORCH_TORCH", "2.12 && x" if "01" in case else "torchvision==0.27")
    with pytest.raises(SpecError) as e:
        wanted(Facts(), torch="torchaudio==1" if "03" in case else None)
    path = GOLDEN / f"{case}.txt"
    if os.environ.get("ORCH_REGEN"):
        path.write_text(e.value.render() + "\n")
    assert e.value.render() + "\n" == path.read_text()


def test_a_file_of_requirements_is_not_changed_by_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCH_TORCH", "torchvision==0.27")
    assert "torch" not in wanted(Facts(), written(tmp_path, "numpy>=2\n")).requirements.names


@given(st.text(max_size=200))
def test_any_text_is_requirements_or_one_of_our_errors(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text(text, errors="surrogatepass")
        try:
            found = load_requirements(path)
        except OrchError:
            return
        again = Path(folder) / "again.txt"
        again.write_text("\n".join(found.lines))
        assert load_requirements(again) == found


def test_platforms() -> None:
    tags = list(platform_tags(Platform("x86_64", "glibc", (2, 19))))
    assert tags[:4] == [
        "manylinux_2_19_x86_64",
        "manylinux_2_18_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
    ]
    assert "manylinux_2_28_x86_64" not in tags and "manylinux1_x86_64" in tags
    assert list(platform_tags(Platform("aarch64", "musl", (1, 1)))) == [
        "musllinux_1_1_aarch64",
        "musllinux_1_0_aarch64",
    ]
    assert uv_platform(Platform("x86_64", "glibc", (2, 30))) == "x86_64-manylinux_2_28"
    assert uv_platform(Platform("x86_64", "glibc", (2, 99))) == "x86_64-manylinux_2_40"
    assert uv_platform(Platform("x86_64", "glibc", (2, 5))) is None
