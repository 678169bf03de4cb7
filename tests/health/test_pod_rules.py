"""Every rule about a pod: crossed, just not crossed, not known, cleared, told with its figures. Simulated time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.health.facts import GpuFacts, PodFacts
from orchestrator.health.podrules import FATAL_XIDS
from tests.health.bedside import Bedside, cleared, rungs, said, sharp, spec_of, why
from workloads.contract.health import Rule, Rung

NOTE, DUMP, HALT = Rung.NOTE, Rung.DUMP, Rung.HALT
GIB, MIB = 1 << 30, 1 << 20
GOOD = PodFacts(
    "p", 1.0, disk_free_bytes=500 * GIB, disk_total_bytes=1000 * GIB, writable=True, shm_free_bytes=60 * MIB,
    shm_total_bytes=64 * MIB, mem_used_bytes=10 * GIB, mem_limit_bytes=100 * GIB,
    gpus=(GpuFacts("GPU-1", True, 1000.0, 80000.0, 4),), wall_minus_mono_s=1.8e9,
)  # fmt: skip


def bed_of(**changes: Any) -> Bedside:
    """A gang of one that has run for a minute with good facts, and then with these."""
    spec = changes.pop("spec", None)
    bed = Bedside(pod=GOOD) if spec is None else Bedside(pod=GOOD, spec=spec)
    assert bed.run(60) == []
    bed.pod = replace(GOOD, **changes)
    return bed


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus": (replace(GOOD.gpus[0], **changes),)}


@pytest.mark.parametrize(
    ("rule", "crossed", "not_crossed", "words"),
    [
        (Rule.DISK_LOW, {"disk_free_bytes": 9 * GIB}, {"disk_free_bytes": 11 * GIB}, "9.00 GiB of 1000 GiB are free"),
        (Rule.DISK_LOW, {"writable": False}, {"writable": None}, "takes no line"),
        (Rule.SHM_LOW, {"shm_free_bytes": 6 * MIB}, {"shm_free_bytes": 7 * MIB}, "9% of /dev/shm (64 MiB) is free"),
        (Rule.HOST_MEMORY, {"mem_used_bytes": 96 * GIB}, {"mem_used_bytes": 94 * GIB}, "96.0 of 100.0 GiB"),
        (Rule.GPU_MEMORY, gpu(mem_used_mib=72001.0), gpu(mem_used_mib=71999.0), "(limit 72000 MiB)"),
        (Rule.ECC, gpu(ecc_uncorrected=5), gpu(ecc_uncorrected=4), "grew by 1 in this attempt, to 5 (limit 0)"),
        (Rule.CLOCK_STEP, {"wall_minus_mono_s": 1.8e9 - 600}, {"wall_minus_mono_s": 1.8e9 + 1}, "jumped by -600.0 s"),
    ],
)
def test_a_figure_is_noted_once_and_cleared(
    rule: Rule, crossed: dict[str, Any], not_crossed: dict[str, Any], words: str
) -> None:
    assert bed_of(**not_crossed).run(120) == []
    bed = bed_of(**crossed)
    news = bed.run(50)
    assert said(news) == {rule: [NOTE]} and words in why(news, rule) and "pod p" in why(news, rule)
    bed.pod = bed.pod if rule is Rule.CLOCK_STEP else GOOD
    assert cleared(bed.run(130)) == [rule]


def test_five_percent_of_a_small_disk() -> None:
    assert bed_of(disk_total_bytes=40 * GIB, disk_free_bytes=3 * GIB).run(60) == []
    assert said(bed_of(disk_total_bytes=40 * GIB, disk_free_bytes=GIB).run(60)) == {Rule.DISK_LOW: [NOTE]}


def test_a_pod_that_does_not_answer_is_noted_and_never_more() -> None:
    bed = bed_of()
    news = []
    for age in range(2, 2000, 2):
        bed.pod = replace(GOOD, age_s=float(age))
        news += bed.run(2, look_s=2.0)
    assert said(news) == {Rule.POD_SILENT: [NOTE]}
    assert "pod p has not answered for 6" in why(news, Rule.POD_SILENT)
    bed.pod = GOOD
    assert cleared(bed.run(10)) == [Rule.POD_SILENT]


def test_a_pod_of_which_nothing_is_said_any_more_is_silent() -> None:
    bed = bed_of()
    bed.pod = None
    assert said(bed.run(70)) == {Rule.POD_SILENT: [NOTE]}


def test_an_observer_that_slept_does_not_call_a_pod_silent() -> None:
    bed = bed_of()
    bed.sleep(4000)
    bed.pod = replace(GOOD, age_s=4000.0)
    assert bed.run(5) == []


def test_a_gpu_that_is_gone_halts_and_one_that_could_not_be_asked_does_not() -> None:
    assert bed_of(**gpu(present=None)).run(300) == []
    bed = bed_of(**gpu(present=False))
    assert bed.run(9) == []
    news = bed.run(20)
    assert said(news) == {Rule.GPU_MISSING: [NOTE, DUMP, HALT]}
    assert "GPU GPU-1, one of 1 leased by this run, has not been there for 10 s (limit 10 s)" in why(
        news, Rule.GPU_MISSING
    )


def test_a_gpu_that_comes_back_at_once_is_no_news() -> None:
    bed = bed_of(**gpu(present=False))
    bed.run(5)
    bed.pod = GOOD
    assert bed.run(60) == []


def test_facts_that_are_old_say_nothing() -> None:
    bed = bed_of(**gpu(present=False, xids=(79,)), writable=False, disk_free_bytes=0, age_s=40.0)
    assert bed.run(50) == []


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 74, 94, 999])
def test_an_xid_that_is_not_the_end_of_a_gpu_is_noted(code: int) -> None:
    news = bed_of(**gpu(xids=(code,))).run(300)
    assert said(news) == {Rule.XID: [NOTE]} and f"XID {code} of GPU GPU-1" in why(news, Rule.XID)


@pytest.mark.parametrize("code", FATAL_XIDS)
def test_an_xid_that_is_the_end_of_a_gpu_halts(code: int) -> None:
    news = bed_of(**gpu(xids=(13, code))).run(20)
    assert rungs(news, Rule.XID) == [NOTE, NOTE, DUMP, HALT] and len(sharp(news)) == 1


def test_a_second_xid_is_told_too_and_a_flood_of_them_is_bounded() -> None:
    bed = bed_of(**gpu(xids=(13,)))
    bed.run(10)
    bed.pod = replace(GOOD, **gpu(xids=(13, 31, 13)))
    assert "XID 31" in why(bed.run(10), Rule.XID)
    bed.pod = replace(GOOD, **gpu(xids=tuple(range(1000, 9000))))
    assert len(bed.run(10)) <= 20


def test_a_limit_of_the_guard_is_the_one_that_is_told() -> None:
    spec = spec_of(guard={"gpu_limit_gb": 40})
    news = bed_of(spec=spec, **gpu(mem_used_mib=41000.0)).run(5)
    assert "41000 of 80000 MiB are used on GPU GPU-1 (limit 40960 MiB)" in why(news, Rule.GPU_MEMORY)


def test_ecc_ends_a_run_only_where_the_job_says_so() -> None:
    spec = spec_of(rules={"ecc": {"ladder": ["note", "dump", "halt"]}})
    assert said(bed_of(spec=spec, **gpu(ecc_uncorrected=9)).run(20)) == {Rule.ECC: [NOTE, DUMP, HALT]}
