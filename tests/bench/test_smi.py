"""nvidia-smi's words as it prints them: what is told is read, what is not is None, old drivers are asked anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from workloads.bench import smi

UUID = "GPU-8f1c3f4e-7f1e-2b60-5a11-9d0c6f6a2b31"
OTHER = "GPU-11111111-7f1e-2b60-5a11-9d0c6f6a2b31"
H200 = (
    f"{UUID}, NVIDIA H200, 580.159.04, 00000000:3B:00.0, 1, 5, 16, 16, 345, 1980, 3201, 3201, 0x0000000000000001, "
    "76.21, 700.00, 700.00, 27, 31, Enabled, 0, 0, 0, [N/A], 0, 143771, Disabled"
)
HOT = (
    f"{UUID}, NVIDIA GeForce RTX 4090, 550.54.14, 00000000:01:00.0, 4, 4, 8, 16, 1410, 3105, 10251, 10501, "
    "0x0000000000000024, 449.80, 450.00, 450.00, 84, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], 21034, 24564, [N/A]"
)


def test_a_healthy_card_at_rest() -> None:
    (state,) = smi.parse_states(H200, smi.FIELDS)
    assert (state.uuid, state.name, state.driver, state.bus) == (UUID, "NVIDIA H200", "580.159.04", "00000000:3B:00.0")
    assert (state.pcie_gen, state.pcie_gen_max, state.pcie_width, state.pcie_width_max) == (1, 5, 16, 16)
    assert (state.sm_mhz, state.sm_max_mhz, state.mem_mhz, state.mem_max_mhz) == (345, 1980, 3201, 3201)
    assert state.reasons == ("idle",) and (state.power_w, state.power_limit_w) == (76.21, 700.0)
    assert (state.ecc, state.ecc_uncorrected, state.repair_pending, state.mig) == (True, 0, None, False)
    assert "repair_pending" not in state.as_dict() and state.as_dict()["reasons"] == ["idle"]


def test_a_card_without_ecc_that_is_hot() -> None:
    (state,) = smi.parse_states(HOT, smi.FIELDS)
    assert state.reasons == ("power cap", "heat (software)") and (state.temperature_c, state.memory_c) == (84, None)
    assert (state.ecc, state.ecc_corrected, state.mig, state.pcie_width) == (None, None, None, 8)


@pytest.mark.parametrize("line", ["", "No devices were found", H200[:80], H200 + ", 1", H200.replace("GPU-", "gpu ")])
def test_what_is_no_gpu_is_none(line: str) -> None:
    assert smi.parse_states(line, smi.FIELDS) == []


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000048", ("hardware slowdown", "heat (hardware)")),
        ("0x0000000000000400", ("reason 0x400",)),
        ("[N/A]", None),
        ("4", None),
    ],
)
def test_reasons(mask: str, words: tuple[str, ...] | None) -> None:
    assert smi.reasons_of(mask) == words


def driver(refuses: Sequence[str], asked: list[str]) -> smi.Run:
    """An nvidia-smi that knows all fields but some, as version 525 and 580 answer; and the other queries."""

    def run(argv: Sequence[str]) -> tuple[int, str]:
        asked.append(" ".join(argv))
        if argv[0] == "dmesg":
            return 0, "[ 12.3] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"
        if "remapped" in argv[1]:
            return 0, f"{UUID}, Yes, No\n"
        if "compute-apps" in argv[1]:
            return 0, f"{UUID}, 4194303, 1200, python\n{UUID}, 4194302, 512, /usr/bin/other\n"
        names = argv[1].removeprefix("--query-gpu=").split(",")
        bad = next((n for n in names if n in refuses), None)
        if bad is not None:
            return 2, f'Field "{bad}" is not a valid field to query.\n\n'
        known = dict(zip(smi.FIELDS, H200.split(", "), strict=True))
        known["clocks_throttle_reasons.active"] = known["clocks_event_reasons.active"]
        return 0, ", ".join(known[n] for n in names) + "\n"

    return run


def test_an_old_driver_is_asked_by_the_old_name_and_without_what_it_does_not_have() -> None:
    asked: list[str] = []
    answer = smi.ask(driver(["clocks_event_reasons.active", "temperature.memory"], asked), thorough=False)
    state = answer.gpus[UUID]
    assert answer.error is None and state.reasons == ("idle",) and state.memory_c is None and state.sm_mhz == 345
    assert len(asked) == 3 and "temperature.memory" not in asked[-1]


def test_repairs_neighbours_and_faults() -> None:
    state = smi.ask(driver([], [])).gpus[UUID]
    assert (state.repair_pending, state.repair_failed, state.xids) == (True, False, (79,))
    assert state.others == ("/usr/bin/other (pid 4194302, 512 MiB)",)  # of two unknown pids one is this process


def test_no_nvidia_smi_is_said() -> None:
    answer = smi.ask(lambda argv: (-1, "FileNotFoundError: nvidia-smi"))
    assert answer.gpus == {} and answer.error == "FileNotFoundError: nvidia-smi"
    assert smi.of_uuid(answer, UUID) is None
    refused = smi.ask(lambda argv: (2, 'Field "uuid" is not a valid field to query.'))
    assert refused.gpus == {} and "uuid" in str(refused.error)


def test_this_process_is_not_its_own_neighbour() -> None:
    text = f"{UUID}, 77, 100, python\n{UUID}, 78, 200, python\n{OTHER}, 99, 5, x\nrubbish\n"
    assert smi.parse_others(text, 77, lambda pid: True) == {
        UUID: ["python (pid 78, 200 MiB)"], OTHER: ["x (pid 99, 5 MiB)"],
    }  # fmt: skip


def test_faults_of_another_card_are_not_ours() -> None:
    text = (
        "NVRM: Xid (PCI:0000:5e:00): 31, pid=9\nNVRM: Xid (PCI:0000:3b:00): 79, x\nNVRM: Xid (PCI:0000:3b:00): 79, x\n"
    )
    assert smi.xids_of(text, "00000000:3B:00.0") == (79,) and smi.xids_of(text, None) == (31, 79)
