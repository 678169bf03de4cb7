"""Where the value of a secret comes from, and that no error shows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.secrets import collect
from workloads.contract.errors import ErrorGroup, LocalError, OrchError
from workloads.contract.rundir import OrchHome

VALUE = "hf_canary0123456789"


@pytest.fixture
def home(tmp_path: Path) -> OrchHome:
    return OrchHome(tmp_path)


def keep(home: OrchHome, text: str, mode: int = 0o600) -> None:
    home.secrets.write_text(text)
    home.secrets.chmod(mode)


def test_the_environment_first_then_the_file(home: OrchHome) -> None:
    keep(home, 'HF_TOKEN: "from-the-file"\nOTHER: "only-in-file"\nKEY: |\n  -----BEGIN\n  abc\n')
    assert collect(["HF_TOKEN", "OTHER"], {"HF_TOKEN": VALUE}, home) == {"HF_TOKEN": VALUE, "OTHER": "only-in-file"}
    assert collect(["KEY"], {}, home) == {"KEY": "-----BEGIN\nabc\n"}
    assert collect([], {}, home) == {}


def test_a_missing_one_is_named_with_both_places(home: OrchHome) -> None:
    with pytest.raises(LocalError) as e:
        collect(["HF_TOKEN"], {"HF_TOKEN": ""}, home)
    text = e.value.render()
    assert e.value.code == "E-SEC-005" and "HF_TOKEN" in text and str(home.secrets) in text and "read -rs" in text
    with pytest.raises(ErrorGroup) as group:
        collect(["A", "B"], {"B": "short"}, home)
    assert [p.code for p in group.value.errors] == ["E-SEC-005", "E-SEC-006"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_file_that_others_may_read_is_refused(mode: int, home: OrchHome) -> None:
    keep(home, f'HF_TOKEN: "{VALUE}"\n', mode)
    with pytest.raises(LocalError) as e:
        collect(["HF_TOKEN"], {}, home)
    assert e.value.code == "E-SEC-003" and e.value.fix == f"chmod 600 {home.secrets}"
    assert collect(["HF_TOKEN"], {"HF_TOKEN": VALUE}, home)  # it is not looked at when nothing is wanted of it


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN: '{VALUE}\n", f"HF_TOKEN: {VALUE}\nHF_TOKEN: {VALUE}x\n", f"- {VALUE}\n", f"HF_TOKEN: [{VALUE}]\n",
        f"HF_TOKEN: &a {VALUE}\n", "HF_TOKEN: 123456789\n", f"{VALUE}\n", f"HF_TOKEN:\n  x: {VALUE}\n", "\0",
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_told_without_what_it_holds(text: str, home: OrchHome) -> None:
    keep(home, text)
    with pytest.raises(OrchError) as e:
        collect(["HF_TOKEN"], {}, home)
    assert e.value.code == "E-SEC-004" and str(home.secrets) in e.value.render()
    shown = e.value.render() + repr(e.value.as_dict()) + str(e.value)
    assert VALUE not in shown and "123456789" not in shown


@pytest.mark.parametrize("value", ["brief", " 1234567 ", "x" * 70_000, "with\0nul0000"])
def test_a_value_that_cannot_be_kept_secret_is_refused(value: str, home: OrchHome) -> None:
    with pytest.raises(LocalError) as e:
        collect(["T"], {"T": value}, home)
    assert e.value.code in ("E-SEC-006", "E-SEC-007") and value.strip() not in e.value.render()
