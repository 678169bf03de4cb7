"""Asking a pod for its facts: one script over the transport, its sections to the parsers.

`collect` needs no Python there. Called by `orch pods check`, by the plan of a launch and by a bootstrap.
"""

from __future__ import annotations

import dataclasses
import secrets
import time

from pods.facts import parse
from pods.facts.gpus import (
    NVIDIA_SMI_TIMEOUT_S,
    parse_compute_apps,
    parse_gpu_lines,
    parse_mig_list,
    parse_module_version,
    parse_nvidia_smi,
    parse_owners,
    parse_smi_header,
    parse_xids,
)
from pods.facts.kinds import Gpu, Interpreter, PodFacts
from pods.facts.script import SCRIPT
from pods.facts.sections import Section, Sections, split_sections
from pods.transport.base import Result, Transport
from workloads.contract.errors import RemoteError

TIMEOUT_S = 30.0
OLDEST_PYTHON = (3, 11)
MIB = 1 << 20
ALWAYS = ("id", "uname", "about", "memory", "cgroup", "tools", "pythons", "disks", "nvidia", "mounts", "end")
_NOTHING = Section("")


def collect(
    transport: Transport,
    *,
    root: str | None = None,
    python: str | None = None,
    timeout_s: float = TIMEOUT_S,
    gpu_timeout_s: float = NVIDIA_SMI_TIMEOUT_S,
) -> PodFacts:
    """Facts of the machine behind `transport`. `root` and `python` are those of the inventory.

    Raises what the transport raises, and RemoteError E-FACT-001 when what came back is no answer.
    """
    nonce = secrets.token_hex(12)
    connect_ms = _connect(transport)
    asked = time.time()
    began = time.monotonic()
    argv = ["/bin/sh", "-c", SCRIPT, "sh", nonce, f"{gpu_timeout_s:g}", root or "", python or ""]
    result = transport.run(argv, timeout_s=timeout_s)
    took_s = time.monotonic() - began
    sections = split_sections(result.stdout, nonce)
    if "about" not in sections:
        told = (result.stderr + result.stdout).strip().splitlines()
        raise RemoteError(
            "E-FACT-001", f"pod {transport.name} does not answer as a machine with a POSIX shell does",
            value=told[0] if told else f"exit code {result.exit_code}",
            expected="a Linux machine where `/bin/sh` can be run over SSH",
        )  # fmt: skip
    facts = facts_of(sections, nonce=nonce, asked=asked, took_s=took_s, python=python)
    return dataclasses.replace(facts, connect_ms=connect_ms)


def _connect(transport: Transport) -> float | None:
    """Milliseconds to a connection, for a transport that has one: apart from the question, so that clocks compare."""
    connect = getattr(transport, "connect", None)
    if connect is None:
        return None
    began = time.monotonic()
    connect()
    return (time.monotonic() - began) * 1000


def facts_of(
    sections: Sections, *, nonce: str, asked: float = 0.0, took_s: float = 0.0, python: str | None = None
) -> PodFacts:
    """Pure: the sections of one answer as facts. `asked` is this machine's clock before, `took_s` how long it took."""

    def text(name: str) -> str:
        return sections.get(name, _NOTHING).text

    about = {k: v[0] for k, v in parse.parse_pairs(text("about")).items()}
    uid, user = parse.parse_id(text("id"))
    system, _, named = text("uname").partition("\n")
    machine = [*named.split(), "", "", ""]
    facts = PodFacts(
        hostname=parse.printable(machine[0]) or "", boot_id=parse.printable(about.get("boot_id"), 40) or "",
        cpus=1, ram_mib=0, ram_available_mib=0, shm_mib=0, home_free_mib=0, python="", python_version="",
        user=user, uid=uid, home_dir=parse.printable(about.get("home"), 1000),
        orch_home=parse.printable(about.get("orch_home"), 1000),
        system=parse.printable(system, 40), kernel=parse.printable(machine[1], 100),
        arch=parse.printable(machine[2], 20),
        distribution=parse.printable(about.get("os", "").strip("\"'"), 80), libc=parse.parse_libc(text("libc")),
        uptime_s=parse.parse_uptime(about.get("uptime")), pid1=parse.printable(about.get("pid1"), 20),
        container=parse.container_of(
            parse.parse_pairs(text("about")).get("mark", []), parse.parse_pairs(text("cgroup")).get("of", [])
        ),
        ptrace_scope=int(about["ptrace"]) if about.get("ptrace") in ("0", "1", "2", "3") else None,
        unasked=_unasked(sections),
    )  # fmt: skip
    facts = _with_resources(facts, sections, about)
    facts = _with_programs(facts, text("pythons"), text("tools"), python)
    facts = _with_gpus(facts, sections, nonce)
    return _with_clock(facts, text("begin"), text("end"), asked, took_s)


def _unasked(sections: Sections) -> tuple[str, ...]:
    late = [name for name, section in sections.items() if section.late]
    return tuple(dict.fromkeys([*late, *(name for name in ALWAYS if name not in sections)]))


def _with_resources(facts: PodFacts, sections: Sections, about: dict[str, str]) -> PodFacts:
    quota, limit, left = parse.parse_cgroups(sections.get("cgroup", _NOTHING).text)
    ram_mib, available_mib = parse.parse_meminfo(sections.get("memory", _NOTHING).text)
    limit_mib = None if limit is None or limit // MIB >= ram_mib > 0 else limit // MIB
    affinity = parse.parse_cpu_list(about.get("cpus", ""))
    limits = parse.parse_limits(sections.get("limits", _NOTHING).text)
    disks, writable = parse.parse_disks(
        sections.get("disks", _NOTHING).text, sections.get("mounts", _NOTHING).text
    )  # fmt: skip
    by_name = {d.what: d for d in disks}
    shm, root = by_name.get("shm"), by_name.get("root")
    return dataclasses.replace(
        facts, cpu_affinity=affinity, cpu_quota=quota,
        cpus=max(1, int(min((x for x in (affinity, quota) if x), default=1))),
        ram_mib=min(ram_mib, limit_mib) if limit_mib is not None else ram_mib,
        ram_available_mib=min(available_mib, left // MIB) if left is not None else available_mib,
        ram_limit_mib=limit_mib, cpu_model=parse.printable(about.get("cpu_model"), 100), disks=disks,
        root_writable=writable,
        shm_size_mib=shm.size_mib if shm else None, shm_mib=(shm.free_mib if shm else None) or 0,
        home_free_mib=(root.free_mib if root else None) or 0,
        nofile=limits.get("Max open files"), nproc=limits.get("Max processes"), memlock=limits.get("Max locked memory"),
    )  # fmt: skip


def _with_programs(facts: PodFacts, pythons: str, tools: str, python: str | None) -> PodFacts:
    found = parse.parse_pythons(pythons)
    paths = [p for p in (parse.printable(line, 1000) for line in tools.splitlines()) if p and p.startswith("/")]
    chosen = _chosen(found, python, facts.home_dir)
    return dataclasses.replace(
        facts, pythons=found, python=chosen.path, python_version=chosen.version,
        uv=next((p for p in paths if p.endswith("/uv")), None),
        tools=tuple(dict.fromkeys(p.rsplit("/", 1)[1] for p in paths)),
    )  # fmt: skip


def _chosen(found: tuple[Interpreter, ...], python: str | None, home: str | None) -> Interpreter:
    """The interpreter that the inventory names (without version when it gave none); else the first new enough."""
    if python:
        path = f"{home}{python[1:]}" if home and python.startswith("~/") else python
        same = (i for i in found if i.path == path or ("/" not in path and i.path.rsplit("/", 1)[1] == path))
        return next(same, Interpreter(path, ""))
    new = (i for i in found if parse.version_key(i.version) >= OLDEST_PYTHON)
    return next(new, found[0] if found else Interpreter("", ""))


def _with_gpus(facts: PodFacts, sections: Sections, nonce: str) -> PodFacts:
    about = parse.parse_pairs(sections.get("nvidia", _NOTHING).text)
    gpus, error = _gpus(sections)
    migs = parse_mig_list(sections.get("migs", _NOTHING).text)
    gpus = tuple(dataclasses.replace(g, mig_devices=migs[g.uuid]) if g.uuid in migs else g for g in gpus)
    driver, cuda = parse_smi_header(sections.get("smiq", _NOTHING).text)
    module = parse_module_version("\n".join(about.get("module", [])))
    apps = sections.get("apps")
    owners = parse_owners(sections.get("owners", _NOTHING).text)
    xids = sections.get("xids")
    return dataclasses.replace(
        facts, gpus=gpus, gpu_error=error, driver=driver or next((g.driver for g in gpus if g.driver), None) or module,
        cuda=cuda, smi=parse.printable((about.get("smi") or [""])[0]), gpu_devices=len(set(about.get("dev", []))),
        gpu_known=len(set(about.get("proc", []))),
        gpu_processes=parse_compute_apps(apps.text, owners) if apps and apps.status == "0" else None,
        xids=parse_xids(xids.text, nonce) if xids and not xids.late else None,
    )  # fmt: skip


def _gpus(sections: Sections) -> tuple[tuple[Gpu, ...], str | None]:
    for name in ("gpus5", "gpus"):  # the short question is asked when the long one was not understood
        section = sections.get(name)
        if section is None:
            continue
        if section.late:
            return (), "nvidia-smi does not answer"
        if section.status is None:
            return (), "the answer of nvidia-smi did not come whole"
        if section.status == "0":
            return parse_gpu_lines(section.text) if section.text.strip() else ((), "nvidia-smi printed nothing")
        code = int(section.status) if section.status.isdigit() else 1
        return parse_nvidia_smi(Result((), code, section.text, ""))
    about = sections.get("nvidia")
    return (), None if about and "\nsmi" in f"\n{about.text}" else "the answer about GPUs did not come"


def _with_clock(facts: PodFacts, begin: str, end: str, asked: float, took_s: float) -> PodFacts:
    first, last = parse.parse_date(begin), parse.parse_date(end)
    offset = parse.clock_offset(asked, asked + took_s, first, last)
    if offset is None or first is None or last is None:
        return facts
    return dataclasses.replace(
        facts, clock_offset_s=offset[0], clock_uncertainty_s=offset[1],
        round_trip_ms=max(took_s - (last[0] - first[0]), 0.0) * 1000,
    )  # fmt: skip
