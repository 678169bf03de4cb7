"""Bad inventories as golden files, and writing: all or nothing, one writer at a time, a person's text kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pods import inventoryfile
from pods.inventory import load_inventory, parse_inventory
from pods.inventoryfile import add_entry, change_entry, remove_entry
from pods.yamlfile import read_yaml
from workloads.contract.config.inventory import PodSpec
from workloads.contract.errors import ConflictError, OrchError
from workloads.contract.rundir import OrchHome

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "errors"
CASES = sorted(GOLDEN.glob("inv_*.yaml"))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKWgL5DoYLet8VA49+/xWQbhjvGdUYVHp60He69pDUka"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgFr1AuhJW++seEqDL5C4bz6xfGGw2l6sJCtIJE6Nnc"


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_bad_inventories(case: Path) -> None:
    with pytest.raises(OrchError) as e:
        parse_inventory(read_yaml(case, case.name))
    text = e.value.render() + "\n"
    expected = case.with_suffix(".txt")
    if os.environ.get("ORCH_REGEN"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert e.value.exit_code == 2 and text.count("fix:") == text.count("error[")


def test_there_are_cases() -> None:
    assert len(CASES) >= 8


def spec(host: str = "h", key: str = KEY) -> PodSpec:
    return PodSpec(ssh=f"root@{host}:22", host_key=key)


def test_the_first_pod_makes_the_file(home: OrchHome) -> None:
    add_entry(home, "box", spec())
    assert load_inventory(home).pods["box"] == spec()
    assert stat.S_IMODE(home.inventory.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    change_entry(home, "box", host_key=OTHER, jump_keys=[KEY])
    assert load_inventory(home).pods["box"] == spec(key=OTHER).model_copy(update={"jump_keys": [KEY]})
    change_entry(home, "box", jump_keys=[])
    assert load_inventory(home).pods["box"] == spec(key=OTHER)
    remove_entry(home, "box")
    assert list(load_inventory(home).pods) == ["local"]
    assert [p.name for p in sorted(home.path.iterdir())] == [".pods.yaml.lock", "pods.yaml"]


def test_comments_and_links_stay(home: OrchHome, tmp_path: Path) -> None:
    home.path.mkdir()
    real = tmp_path / "dotfiles.yaml"
    real.write_text("# mine\npods:\n  # the box\n  box: {ssh: ada@b}  # old\n")
    home.inventory.symlink_to(real)
    add_entry(home, "two", spec())
    assert home.inventory.is_symlink()
    assert real.read_text().startswith("# mine\npods:\n  # the box\n  box: {ssh: ada@b}  # old\n  two:\n")


@pytest.mark.parametrize(
    "text", ["pods: {a: {ssh: x, prot: 2}}\n", "pods:\n\ta: 1\n", "- a\n", "pods: {a: {ssh: b}, a: {ssh: c}}\n", "\xff"]
)
def test_an_invalid_file_is_left_as_it_is(home: OrchHome, text: str) -> None:
    home.path.mkdir()
    home.inventory.write_text(text, encoding="latin-1")
    before = home.inventory.read_bytes()
    for act in (lambda: add_entry(home, "n", spec()), lambda: remove_entry(home, "a")):
        with pytest.raises(OrchError):
            act()
    assert home.inventory.read_bytes() == before


def test_what_cannot_be_edited_is_left_as_it_is(home: OrchHome) -> None:
    home.path.mkdir()
    home.inventory.write_text('{\n "pods":\n  {"a":\n {"ssh": "x"}}}\n')
    add_entry(home, "n", spec())  # even this
    assert list(load_inventory(home).pods) == ["local", "a", "n"]
    home.inventory.write_text("? pods\n: ? a\n  : ssh: x\n")
    with pytest.raises(OrchError) as e:
        remove_entry(home, "a")
    assert e.value.code == "E-INV-025" and home.inventory.read_text() == "? pods\n: ? a\n  : ssh: x\n"


def test_a_name_that_is_taken_or_gone(home: OrchHome) -> None:
    add_entry(home, "box", spec())
    with pytest.raises(ConflictError, match="already"):
        add_entry(home, "box", spec("i", OTHER))
    remove_entry(home, "box")
    with pytest.raises(ConflictError, match="no longer"):
        change_entry(home, "box", host_key=KEY)


def test_writers_take_turns(home: OrchHome) -> None:
    code = """
import sys
from pathlib import Path
from pods.inventoryfile import add_entry
from workloads.contract.config.inventory import PodSpec
from workloads.contract.rundir import OrchHome
for i in range(5):
    add_entry(OrchHome(Path(sys.argv[1])), f"p{sys.argv[2]}-{i}", PodSpec(ssh=f"h{sys.argv[2]}{i}"))
"""
    argv = [sys.executable, "-c", code, str(home.path)]
    children = [subprocess.Popen([*argv, str(k)], cwd=ROOT) for k in range(4)]
    assert [c.wait(60) for c in children] == [0, 0, 0, 0]
    assert len(load_inventory(home).pods) == 21


def test_what_somebody_saved_meanwhile_is_not_overwritten(home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    add_entry(home, "one", spec())
    real = inventoryfile._edited
    saved = iter([True])

    def edited(path: Path, old: str, text: object) -> str:
        if next(saved, False):  # an editor saves between reading and writing
            path.write_text(old + "  mine:\n    ssh: x\n")
        return real(path, old, text)  # type: ignore[arg-type]

    monkeypatch.setattr(inventoryfile, "_edited", edited)
    add_entry(home, "two", spec("i", OTHER))
    assert list(load_inventory(home).pods) == ["local", "one", "mine", "two"]


def test_a_writer_that_holds_the_lock_is_waited_for_within_bounds(
    home: OrchHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventoryfile, "LOCK_S", 0.3)
    home.path.mkdir()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with inventoryfile._locked(home.inventory):
            held.set()
            done.wait(timeout=120)

    with ThreadPoolExecutor() as pool:
        holder = pool.submit(hold)
        assert held.wait(5)
        try:
            with pytest.raises(ConflictError) as e:
                add_entry(home, "n", spec())
        finally:
            done.set()
        holder.result(10)
    assert e.value.code == "E-INV-026" and not home.inventory.exists()
