"""The same over SSH, on pods of the lab: no registry there, no Python, links that are cut, small disks."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pods.access import open_pod
from pods.environment.ensure import about, ensure_environment
from pods.environment.home import carried_uv
from pods.environment.pythons import bring_to_bare
from pods.environment.spec import PYTHONS
from pods.environment.wheels import wheelhouse
from pods.inventory import load_inventory
from pods.pod import FarPod, NeedsPython, Pod
from pods.remote.envdir import look
from tests.environment.conftest import MINOR, PLATFORM, THREE, Bench, spec_of
from tests.environment.test_build import until
from tests.lab.disk import PodOptions
from tests.lab.fixtures import MakeLab
from tests.lab.lab import Lab
from workloads.contract.errors import OrchError, UnreachableError
from workloads.contract.rundir import OrchHome

pytestmark = [pytest.mark.lab, pytest.mark.long]
SPEC = spec_of(*THREE)


@pytest.fixture
def opened() -> Iterator[list[Pod]]:
    pods: list[Pod] = []
    yield pods
    for pod in pods:
        pod.close()


@pytest.fixture
def relocatable(tmp_path: Path) -> tuple[OrchHome, str]:
    """A cache with a build of Python that needs nothing of its old place (the system's own), and its version."""
    version = look("/usr/bin/python3")[0]
    minor = version.rpartition(".")[0]
    needs = subprocess.run(["ldd", "/usr/bin/python3"], capture_output=True, text=True, check=False).stdout
    if minor not in PYTHONS or "libpython" in needs:
        pytest.skip("the system's Python is not 3.11 or 3.12, or is in two places")
    kind = "gnu" if PLATFORM.libc == "glibc" else "musl"
    home = OrchHome(tmp_path / "builds")
    build = home.cache / "pythons" / f"cpython-{version}-linux-{PLATFORM.machine}-{kind}"
    (build / "bin").mkdir(parents=True)
    shutil.copy2("/usr/bin/python3", build / "bin" / f"python{minor}")
    (build / "bin" / "python3").symlink_to(f"python{minor}")
    ignore = shutil.ignore_patterns("__pycache__", "test", "config-*", "dist-packages")
    shutil.copytree(f"/usr/lib/python{minor}", build / "lib" / f"python{minor}", ignore=ignore)
    return home, minor


def far(lab: Lab, name: str, opened: list[Pod]) -> FarPod:
    pod = open_pod(lab.home, name, load_inventory(lab.home).pods[name])
    assert isinstance(pod, FarPod)
    opened.append(pod)
    return pod


def test_a_pod_with_neither_network_nor_python(
    make_lab: MakeLab,
    bench: Bench,
    relocatable: tuple[OrchHome, str],
    opened: list[Pod],
) -> None:
    """All that a run needs comes over the one connection."""
    lab = make_lab(1, PodOptions(python="none", hide=("tar", "rsync", "curl")))
    bare, (home, minor) = lab["pod-a"], relocatable
    spec = spec_of(*THREE, python=minor)
    with lab.inside():
        pod = far(lab, "pod-a", opened)
        with pytest.raises(NeedsPython):
            pod.connect()
        python = bring_to_bare(pod.transport, None, home, bench.said.append, minor=minor)
        assert about(pod).pythons[0].path == python
        result = ensure_environment(pod, about(pod), spec, bench.home, bench.said.append, offline=True)
        assert result.built
        assert [x.split("==")[0] for x in result.marker["freeze"]] == ["idna", "iniconfig", "packaging"]
        assert not ensure_environment(pod, about(pod), spec, bench.home, offline=True).built
    code = "import idna, iniconfig, packaging, ssl; print('whole')"
    assert bare.exec([result.python, "-I", "-c", code]).stdout.strip() == "whole"


@pytest.mark.parametrize("at", ["sending uv", "sending 3 wheels", "building", "making"])
def test_a_cut_link_at_every_step(
    make_lab: MakeLab,
    bench: Bench,
    opened: list[Pod],
    at: str,
) -> None:
    """What was asked for is refused within the bound or goes on after the cut; asked again it is whole."""
    lab = make_lab(1)
    with lab.inside():
        pod = far(lab, "pod-a", opened)
        cut = threading.Event()

        def say(text: str) -> None:
            bench.said.append(text)
            if text.startswith(at) and not cut.is_set():
                cut.set()

        def pull() -> None:
            cut.wait(60)
            with lab["pod-a"].cut():
                time.sleep(12)

        puller = threading.Thread(target=pull)
        puller.start()
        with suppress(UnreachableError):
            ensure_environment(pod, about(pod), SPEC, bench.home, say, offline=True)
        cut.set()
        puller.join()
        result = ensure_environment(far(lab, "pod-a", opened), about(bench.pod), SPEC, bench.home, offline=True)
    code = "import idna, iniconfig, packaging; print('whole')"
    assert lab["pod-a"].exec([result.python, "-I", "-c", code]).stdout.strip() == "whole"


def test_a_full_disk_is_told_and_mended(make_lab: MakeLab, bench: Bench, opened: list[Pod]) -> None:
    lab = make_lab(1, PodOptions(disk_mib=96))
    with lab.inside():
        pod = far(lab, "pod-a", opened)
        top = pod.home.path
        lab["pod-a"].exec(["sh", "-c", f"mkdir -p {top} && head -c 70000000 /dev/zero >{top}/ballast"])
        with pytest.raises(OrchError) as e:
            ensure_environment(pod, about(pod), SPEC, bench.home, offline=True)
        assert e.value.code in ("E-FILE-003", "E-ENV-032", "E-POD-012"), e.value.render()
        lab["pod-a"].exec(["rm", f"{top}/ballast"])
        assert ensure_environment(pod, about(pod), SPEC, bench.home, offline=True).built


def test_the_pod_is_started_anew_while_it_builds(
    make_lab: MakeLab,
    bench: Bench,
    opened: list[Pod],
) -> None:
    lab = make_lab(1)
    with lab.inside():
        pod = far(lab, "pod-a", opened)
        first = ensure_environment(pod, about(bench.pod), SPEC, bench.home, offline=True)
        lab["pod-a"].exec(["rm", str(Path(first.python).parents[1] / "orch-env.json")])
        wheels = wheelhouse(bench.home, SPEC, PLATFORM, bench.said.append)
        uv = f"{pod.home.path}/bin/uv-{carried_uv(bench.home, PLATFORM, bench.said.append)[1]}"
        pod.call("env.start", bench.order(SPEC, wheels, uv=uv))
        lab["pod-a"].reboot()
        again = far(lab, "pod-a", opened)
        until(lambda: again.call("env.look", {"hash": SPEC.hash}).fields["state"] in ("lost", "ready", "absent"))
        result = ensure_environment(again, about(bench.pod), SPEC, bench.home, offline=True)
    assert result.marker["hash"] == SPEC.hash


def test_the_commands(make_lab: MakeLab, bench: Bench) -> None:
    """`orch pods bootstrap --offline` on two pods at once, with Ray, as a person types it; then `gc`."""
    lab = make_lab(2)
    lab.home.cache.mkdir(exist_ok=True)
    file = lab.place / "requirements.txt"
    file.write_text("idna\n")
    carried_uv(lab.home, PLATFORM, bench.said.append)
    from pods.environment.spec import EnvSpec, load_requirements, with_orch

    spec = EnvSpec(with_orch(load_requirements(file)), MINOR, PLATFORM.machine, PLATFORM.libc)
    wheelhouse(lab.home, spec, PLATFORM, bench.said.append)  # here: the laptop of the lab has no registry either
    asked = ["pods", "bootstrap", "pod-a", "pod-b", "--offline", "--requirements", str(file), "--python-version", MINOR]
    ran = lab.orch(*asked, timeout_s=240)
    assert ran.code == 0, ran.err + ran.out
    assert "pod-a  built: " in ran.out and "pod-b  built: " in ran.out
    again = lab.orch(*asked, "--json", timeout_s=60)
    rows = json.loads(again.out)["pods"]
    assert {name: row["built"] for name, row in rows.items()} == {"pod-a": False, "pod-b": False}
    assert any(x.startswith("ray==") for x in rows["pod-a"]["packages"])
    gone = lab.orch("pods", "gc", "pod-a", "--older-than", "1h", "--dry-run")
    assert gone.code == 0 and "would free" in gone.out
    wrong = lab.orch("pods", "gc", "pod-a", "--older-than", "soon")
    assert wrong.code == 2 and "E-CLI-004" in wrong.err
