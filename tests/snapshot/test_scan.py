"""Which files are code, which stay at home, and what is said of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pods import orchignore, snapshotscan
from pods.snapshot import Snapshot, notes, scan
from pods.snapshotscan import PRIVATE_WHY
from tests.snapshot.conftest import git, write
from workloads.contract.errors import LocalError, SpecError
from workloads.contract.rundir import OrchHome


def paths(snapshot: Snapshot) -> list[str]:
    return [e.path for e in snapshot.entries]


def why(snapshot: Snapshot, path: str) -> str:
    return dict(snapshot.left_out)[path]


def test_what_git_tracks_or_would_add_travels(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1", "pkg/b.py": "2", "old.py": "3", ".gitignore": "data/\n*.log\n", "data/x.bin": "x"})
    git(repo, "add", "a.py", "old.py", ".gitignore")
    write(repo, {"run.sh": "#!/bin/sh\n", "pkg/noise.log": "y"})
    (repo / "run.sh").chmod(0o755)
    (repo / "old.py").unlink()
    found = scan(repo, home)
    assert paths(found) == [".gitignore", "a.py", "pkg/b.py", "run.sh"]
    assert {e.path: e.kind for e in found.entries}["run.sh"] == "x"
    assert why(found, "data") == why(found, "pkg/noise.log") == "ignored by git"
    assert found.cwd == "" and found.root == repo


def test_the_whole_repository_travels_and_the_place_in_it_is_kept(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1", "sub/deep/b.py": "2", ".gitignore": "out/\n", "out/x": "x"})
    found = scan(repo / "sub" / "deep", home)
    assert found.cwd == "sub/deep" and "a.py" in paths(found) and found.id == scan(repo, home).id
    with pytest.raises(LocalError) as e:
        scan(repo / "out", home)
    assert e.value.code == "E-CODE-024"


def test_the_id_is_that_of_the_content_alone(repo: Path, home: OrchHome, tmp_path: Path) -> None:
    write(repo, {"a.py": "1", "b/c.py": "2"})
    first = scan(repo, home)
    shutil.copytree(repo, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".git"))
    assert scan(tmp_path / "elsewhere", home).id == first.id
    (repo / "a.py").chmod(0o755)
    assert scan(repo, home).id != first.id


def test_submodules_and_repositories_inside(repo: Path, home: OrchHome, tmp_path: Path) -> None:
    for name in ("lib", "gone"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
        write(tmp_path / name, {f"{name}.py": "1", ".gitignore": "*.o\n"})
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-q", "-m", "x")
        git(repo, "submodule", "--quiet", "add", str(tmp_path / name), f"third/{name}")
    write(repo / "third/lib", {"new.py": "2", "x.o": "3"})
    (repo / "vendored").mkdir()
    git(repo / "vendored", "init", "-q")
    write(repo, {"vendored/v.py": "1"})
    git(repo, "submodule", "--quiet", "deinit", "-f", "third/gone")
    found = scan(repo, home)
    wanted = [".gitmodules", "third/lib/.gitignore", "third/lib/lib.py", "third/lib/new.py", "vendored/v.py"]
    assert paths(found) == wanted
    assert "git submodule update --init" in why(found, "third/gone")
    assert why(found, "third/lib/x.o") == "ignored by git"


def test_links_inside_travel_as_links_and_others_are_told(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1", "d/b.py": "2", "was/c.py": "3"})
    git(repo, "add", ".")
    shutil.rmtree(repo / "was")
    links = {"ok": "a.py", "d/up": "../a.py", "dir": "d", "out": "../x", "abs": "/etc/passwd", "d/far": "../../../etc"}
    for name, target in {**links, "was": "d"}.items():
        os.symlink(target, repo / name)
    found = scan(repo, home)
    kept = {e.path: e.value for e in found.entries if e.kind == "l"}
    assert kept == {"ok": "a.py", "d/up": "../a.py", "dir": "d", "was": "d"}
    assert "absolute" in why(found, "abs") and "out of" in why(found, "out") and "out of" in why(found, "d/far")
    assert "was/c.py" not in paths(found)  # what git knows below `was` lies behind a link now


def test_keys_that_git_does_not_track_stay_at_home(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1", ".env": "TOKEN=1", "keys/id_ed25519": "k", "kept/.env": "X=1"})
    git(repo, "add", "kept/.env")
    found = scan(repo, home)
    assert paths(found) == ["a.py", "kept/.env"]
    assert why(found, ".env") == why(found, "keys/id_ed25519") == PRIVATE_WHY
    assert any(".env does not travel" in n for n in notes(found))


def test_without_git_the_usual_rubbish_stays(tmp_path: Path, home: OrchHome) -> None:
    folder = tmp_path / "plain"
    write(
        folder,
        {
            "a.py": "1", "__pycache__/a.pyc": "x", "b.pyc": "x", "node_modules/m/i.js": "x", "env/pyvenv.cfg": "x",
            "env/lib/x.py": "x", "d/.mypy_cache/x": "x", "d/e.txt": "2", ".hidden": "3",
        },
    )  # fmt: skip
    os.symlink("d", folder / "link")
    found = scan(folder, home)
    assert paths(found) == [".hidden", "a.py", "d/e.txt", "link"]
    assert why(found, "env") == "a virtual environment"


def test_orchs_own_home_in_the_project_stays(repo: Path) -> None:
    home = OrchHome(repo / ".orch")
    write(repo, {"a.py": "1", ".orch/secrets.yaml": "X: y"})
    assert paths(scan(repo, home)) == ["a.py"]
    assert paths(scan(repo, home)) == ["a.py"]  # its cache lies there now


def test_what_is_no_file_is_told(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1"})
    folder = repo.parent / "plain"
    write(folder, {"a.py": "1"})
    os.mkfifo(folder / "pipe")
    with (folder / "big.bin").open("wb") as f:
        f.truncate((100 << 20) + 1)
    found = scan(folder, home)
    assert paths(found) == ["a.py"]
    assert "neither" in why(found, "pipe") and "100 MiB" in why(found, "big.bin")
    assert notes(found) == [f"{p} does not travel: {w}" for p, w in found.left_out]


def test_more_than_code_is_refused(repo: Path, home: OrchHome, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo, {f"data/{i}.bin": bytes(100) for i in range(20)})
    monkeypatch.setattr(snapshotscan, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(LocalError, match="more than code") as e:
        scan(repo, home)
    assert e.value.fix is not None and e.value.fix.startswith("echo data >> .orchignore")
    write(repo, {".orchignore": "data\n"})
    assert paths(scan(repo, home)) == [".orchignore"]
    monkeypatch.setattr(snapshotscan, "MAX_FILES", 10)
    with pytest.raises(LocalError, match="more than code"):
        scan(repo, home)


def test_a_home_directory_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = tmp_path / "me"
    me.mkdir()
    monkeypatch.setenv("HOME", str(me))
    write(me, {".ssh/config": "x", "proj/a.py": "1"})
    for folder in (me, Path("/")):
        with pytest.raises(LocalError) as e:
            scan(folder, OrchHome(tmp_path / "home"))
        assert e.value.code == "E-CODE-022"
    git(me, "init", "-q")  # dotfiles: the project alone travels
    found = scan(me / "proj", OrchHome(tmp_path / "home"))
    assert (paths(found), found.root, found.cwd) == (["a.py"], me / "proj", "")


def test_a_repository_that_git_cannot_read_is_not_guessed_at(repo: Path, home: OrchHome) -> None:
    write(repo, {"a.py": "1"})
    (repo / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(LocalError) as e:
        scan(repo, home)
    assert e.value.code == "E-CODE-023"


def test_the_repositorys_own_programs_are_not_run(repo: Path, home: OrchHome) -> None:
    write(repo, {"trap.sh": "#!/bin/sh\ntouch sprung\n"})
    (repo / "trap.sh").chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(repo / "trap.sh"))
    assert paths(scan(repo, home)) == ["trap.sh"] and not (repo / "sprung").exists()


PATTERNS = [
    "*.log", "/top.txt", "data/", "data", "a/b", "a/*/c", "**/deep", "a/**/z", "x?z", "[ab].py", "[!ab].py", "a/**",
    "sp ace", "d/*.txt", "#no", "*", "/d", "weird*/", "\\#h",
]  # fmt: skip
PATHS = [
    "x.log", "d/x.log", "top.txt", "d/top.txt", "data/f", "d/data/f", "data.txt", "a/b/f", "d/a/b/f", "a/q/c", "deep",
    "a/q/deep", "a/z", "a/1/2/z", "xyz", "x/z", "a.py", "d/b.py", "c.py", "sp ace", "we[ird", "d/n.txt", "d/e/n.txt",
    "#h", "#no", "weird1/f",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_orchignore_reads_a_pattern_as_git_does(pattern: str, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {".gitignore": f"{pattern}\n", ".orchignore": f"{pattern}\n"})
    asked = "".join(f"{p}\0" for p in PATHS)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"], cwd=tmp_path, input=asked, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    ours = orchignore.load(tmp_path)
    assert [p for p in PATHS if ours(p)] == [p for p in done.stdout.split("\0") if p]


def test_orchignore_takes_no_exceptions_and_no_rubbish(repo: Path, home: OrchHome) -> None:
    write(repo, {".orchignore": "# c\n\n!keep\n"})
    with pytest.raises(SpecError, match="exceptions"):
        scan(repo, home)
    write(repo, {".orchignore": b"\xff\xfe"})
    with pytest.raises(SpecError, match="UTF-8"):
        scan(repo, home)


def test_hashes_are_remembered_but_not_of_files_that_may_still_change(
    repo: Path, home: OrchHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repo, {f"{i}.py": str(i) for i in range(5)})
    assert [scan(repo, home).hashed, scan(repo, home).hashed] == [5, 5]  # all of them a moment old
    monkeypatch.setattr("pods.snapshotcache.RACY_NS", -1)
    assert [scan(repo, home).hashed, scan(repo, home).hashed] == [5, 0]
    before = scan(repo, home).id
    st = (repo / "3.py").stat()
    write(repo, {"3.py": "x"})  # same size, same mtime
    os.utime(repo / "3.py", ns=(st.st_atime_ns, st.st_mtime_ns))
    after = scan(repo, home)
    assert after.hashed == 1 and after.id != before


@pytest.mark.parametrize("content", [b"", b"{", b'{"files": 3}', b'{"files": {"a.py": [1]}}', b"\xff" * 100])
def test_a_torn_cache_is_no_cache(repo: Path, home: OrchHome, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pods.snapshotcache.RACY_NS", -1)
    write(repo, {"a.py": "1"})
    first = scan(repo, home)
    for path in (home.cache / "code").iterdir():
        path.write_bytes(content)
    assert scan(repo, home) == first


def test_notes_name_the_words_of_a_command_that_stay_at_home(repo: Path, home: OrchHome) -> None:
    write(repo, {"sub/a.py": "1", ".gitignore": "secret_train.py\ndata/\n", "sub/secret_train.py": "2", "data/x": "3"})
    found = scan(repo / "sub", home)
    assert notes(found, ["python", "a.py", "--lr", "3e-4", "--out=runs/x"]) == []
    assert notes(found, ["python", "secret_train.py"]) == ["secret_train.py does not travel: ignored by git"]
    assert notes(found, ["python", "a.py", "--data=../data/x"]) == ["../data/x does not travel: ignored by git"]
    assert "outside" in notes(found, ["python", "../../other.py"])[0]
    assert "path on this machine" in notes(found, ["python", f"{repo}/sub/a.py"])[0]
    assert notes(found, ["/usr/bin/python", "-c", "", "a\0b"]) == []
