"""The bench of the kernels: its statistics, its rows, and that it times nothing that is absent, broken or wrong.

Plans that follow the references stand in for the kernels, and plans with one fault each; the CPU mode runs end to end.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.bench import __main__ as bench
from kernels.bench import dense, fa3, goals, peers, probe, quantized, rows, timing
from kernels.decoupled.reference import decoupled_decode_reference
from kernels.kv_decode.reference import attention_reference, attention_with_kv_cache_reference

CPU = torch.device("cpu")
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_COMMIT", COMMIT)
    monkeypatch.delenv(fa3.ENV, raising=False)


class ByDefinition:
    """A plan of either family that does what the references say; the others below have one fault each."""

    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        if len(given) == 3:
            q_sem, q_geo, cache = given
            exact = cache.dequantized(torch.float32)
            answer = decoupled_decode_reference(q_sem, q_geo, *exact, cache.lengths, null=null, dtype=torch.float32)
            assert isinstance(answer, Tensor)
            return out.copy_(answer)
        q, k_new, v_new, k_cache, v_cache, lengths = given
        if k_new is None:
            return out.copy_(attention_reference(q, k_cache, v_cache, kv_lens=lengths))
        attention_with_kv_cache_reference(q, k_new, v_new, (k_cache, v_cache), lengths, out=out)
        return out

    def check(self) -> None:
        pass

    def why(self) -> str:
        return "by definition"


class Off(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        super().run(*given, out=out, null=null)
        out[0, 0, ..., 0] += 0.01
        return out


class Raises(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        raise RuntimeError("too many resources")


class Silent(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        return out


class Drifts(ByDefinition):
    def __init__(self) -> None:
        self.runs = 0

    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        self.runs += 1
        super().run(*given, out=out, null=null)
        return out.add_(1e-7 * self.runs)


class OnlyOnce(ByDefinition):
    """As a kernel whose counter is not reset: every later launch ends at once, and looks fast."""

    def __init__(self) -> None:
        self.done: set[int] = set()

    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        if out.data_ptr() in self.done:
            return out
        self.done.add(out.data_ptr())
        return super().run(*given, out=out, null=null)


class AppendsNothing(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        copies = [t if t is None else t.clone() for t in given]
        return super().run(*copies, out=out, null=null)


class WritesPastTheEnd(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        super().run(*given, out=out, null=null)
        given[3][:, :, -1] = 0.0
        return out


class CountsItself(ByDefinition):
    def run(self, *given: Any, out: Tensor, null: Any = None) -> Tensor:
        super().run(*given, out=out, null=null)
        given[5].add_(1)
        return out


def use(monkeypatch: pytest.MonkeyPatch, plan: Callable[[], ByDefinition]) -> None:
    for suite in (dense, quantized):
        monkeypatch.setattr(suite, "make_plan", lambda case, device_or_cache: plan())


def bench_rows(tmp_path: Path, *argv: str) -> tuple[int, list[dict[str, Any]]]:
    path = tmp_path / "rows" / "kernels.jsonl"
    code = bench.main([*argv, "--device", "cpu", "--quick", "--jsonl", str(path)])
    return code, [json.loads(line) for line in path.read_text().splitlines()]


def test_percentiles_lie_between_their_neighbours() -> None:
    values = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert [timing.percentile(values, share) for share in (0, 0.1, 0.5, 0.9, 1)] == [1, pytest.approx(1.4), 3, 4.6, 5]
    assert timing.summary(values, 7, "graph", "hot") == timing.Timing(3, pytest.approx(1.4), 4.6, 7, "graph", "hot")
    with pytest.raises(ValueError, match="at least one"):
        timing.percentile([], 0.5)


@pytest.mark.parametrize(
    ("size", "l2", "most", "copies"),
    [(4 << 20, 60 << 20, 1 << 34, 60), (1 << 30, 60 << 20, 1 << 34, 2), (1 << 30, 60 << 20, 1 << 30, 1), (9, 0, 99, 2)],
)
def test_copies_pass_the_l2_four_times_within_memory(size: int, l2: int, most: int, copies: int) -> None:
    assert timing.rotation(size, l2, most_bytes=most) == copies


def test_a_graph_is_whole_rounds_of_the_copies() -> None:
    assert timing.launches_for(1.0, 60) == 600
    assert timing.launches_for(100.0, 11) == 33
    assert timing.launches_for(1e6, 2) == 2
    assert timing.launches_for(0.0, 7) % 7 == 0


def test_goals_are_those_of_the_design() -> None:
    assert goals.dense(16, 8, 8, 64, 2048, 14.7) == goals.Goal(21.0, 18.5)
    assert goals.dense(1, 32, 8, 128, 32768, 29.4) == goals.Goal(38.0, 35.0)
    assert goals.dense(16, 8, 8, 64, 8192, 58.7).must_us == pytest.approx(69.06, abs=0.01)
    assert goals.dense(1, 32, 8, 128, 131072, 117) == goals.dense(16, 8, 8, 64, 1024, 7.3) == goals.Goal()
    fast = goals.quantized("q4q8q4", 16, 8192, 20.2, 69.1)
    assert fast.must_us == pytest.approx(44.89, abs=0.01)
    assert fast.strong_us == pytest.approx(32.58, abs=0.01)
    assert goals.quantized("q4q8q4", 16, 8192, 20.2, 40.0).must_us == pytest.approx(40 / 1.3)  # FA3 asks for more
    assert goals.quantized("q4q8q4", 16, 2048, 5.1, None) == goals.Goal(14.0, 9.9)
    assert goals.quantized("fp16", 16, 8192, 58.7, 69.1) == goals.Goal()
    assert [goals.Goal(10, 8).met(us) for us in (8, 9, 10, 10.1, None)] == ["strong", "must", "must", "missed", "-"]
    assert goals.null_token(100.0) == goals.Goal(pytest.approx(103), pytest.approx(101))


def test_the_old_target_is_reported_as_what_it_is() -> None:
    assert goals.old_target(12.0, 14.7) == "below the fp16 limit"
    assert [goals.old_target(us, 7.3) for us in (9.9, 10.1, None)] == ["met", "missed", "-"]


def test_bytes_are_those_that_must_be_read() -> None:
    assert dense.Case(16, 8, 8, 64, 2048).cache_bytes == 67_108_864
    assert dense.Case(16, 64, 4, 128, 65536).cache_bytes == 2_147_483_648
    plain = quantized.Case(16, 8, 8, 32, 32, 64, 2048)
    assert plain.cache_bytes == 16 * 8 * 2048 * 88
    assert replace(plain, kinds="fp16").cache_bytes == 16 * 8 * 2048 * 256
    assert replace(plain, tail=128).cache_bytes == 16 * 8 * (1920 * 88 + 128 * 256)


FIELDS = """v suite case shape dtype us limit_us ratio err tol verdict must_us strong_us met peers peer_notes bytes
read_tbs p10_us p90_us launches how l2 why device driver torch triton commit command date machine"""


def sample(**changes: Any) -> rows.Measured:
    taken = timing.Timing(20.123456, 20.0, 20.5, 120, "graph", "rotated")
    shape = dense.Case(16, 8, 8, 64, 2048).shape
    m = rows.Measured("B16 H8/8 D64 S2048 fp16", shape, "fp16", 67_108_864, 14.684, "ok", taken)
    m = replace(m, err=2.4e-4, tol=5.1e-4, goal=goals.Goal(21.0, 18.5), peers={"sdpa-cudnn": 21.2, "fa3": 23.2})
    return replace(m, **{"extra": {"why": "6 splits"}, **changes})


def where() -> rows.Facts:
    device = "NVIDIA H200"
    return rows.Facts(device, "580.159", "2.11.0", "3.6.0", COMMIT, "make gpu", "2026-11-21", f"1 x {device}")


def test_a_row_keeps_its_fields() -> None:
    row = rows.row_of("kv-decode", sample(), where(), 4.57)
    assert list(row) == FIELDS.split()
    assert row == json.loads(json.dumps(row))
    chosen = {k: row[k] for k in ("v", "us", "ratio", "met", "peers", "l2", "launches")}
    fast = {"sdpa-cudnn": 21.2, "fa3": 23.2}
    assert chosen == {
        "v": 1, "us": 20.12, "ratio": 0.7297, "met": "must", "peers": fast, "l2": "rotated", "launches": 120
    }  # fmt: skip


def test_a_row_without_a_time_is_json_too() -> None:
    wrong = sample(timing=None, verdict="wrong", err=math.inf)
    row = rows.row_of("kv-decode", wrong, where(), 4.57)
    assert (row["us"], row["ratio"], row["err"], row["met"]) == (None, None, None, "-")
    assert "Infinity" not in json.dumps(row)
    assert "WRONG" in rows.table([row])


def test_the_table_fits_a_terminal() -> None:
    long = quantized.Case(16, 8, 8, 32, 32, 64, 131072, tail=128).name
    made = [rows.row_of("x", sample(case=long, peers={"fa3-planned": 1234.5}), where(), 4.57)]
    assert max(map(len, rows.table(made).splitlines())) <= 110


def test_the_commit_is_named_or_the_bench_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rows.commit() == COMMIT
    monkeypatch.delenv("KERNELS_COMMIT")
    assert len(rows.commit()) == 40  # git's
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    assert bench.main(["bandwidth", "--device", "cpu"]) == 2
    assert "KERNELS_COMMIT" in capsys.readouterr().err


def test_the_cpu_mode_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, ByDefinition)
    code, made = bench_rows(tmp_path, "all")
    assert code == 0, capsys.readouterr().out
    assert {r["suite"] for r in made} == {"bandwidth", "kv-decode", "decoupled"}
    assert len({(r["suite"], r["case"]) for r in made}) == len(made)
    for r in made:
        assert r["verdict"] == "ok" and r["device"] == "cpu" and r["how"] == "wall" and r["commit"] == COMMIT
        assert r["us"] > 0 and r["command"].startswith("python -m kernels.bench all")
        if r["suite"] != "bandwidth":
            assert r["err"] <= r["tol"] and set(r["peers"]) == {"sdpa"} and r["why"] == "by definition"
    null = next(r for r in made if r["shape"].get("null"))
    assert null["null_adds"] is not None and null["must_us"] > null["strong_us"]
    out = capsys.readouterr().out
    assert f"{len(made)} rows in" in out


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.long)])
def test_the_kernels_themselves_run_in_the_bench(
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: torch.device,
) -> None:
    if backend == "triton" and device.type != "cpu":
        pytest.skip("the CPU mode on a machine with a GPU has no interpreter")
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    if backend == "reference":
        monkeypatch.setattr(quantized, "runs_triton", lambda tensor: False)
    code, made = bench_rows(tmp_path, "all")
    assert code == 0, capsys.readouterr().out
    for r in made:
        if r["suite"] != "bandwidth":
            assert r["repeats"] and ("reference" in r["why"]) == (backend == "reference")


@pytest.mark.parametrize(
    "plan", [Off, pytest.param(Silent, marks=pytest.mark.long), Drifts, pytest.param(OnlyOnce, marks=pytest.mark.long)]
)
def test_a_wrong_kernel_is_not_timed(plan: type[ByDefinition], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plan)
    for suite in ("kv-decode", "decoupled"):
        code, made = bench_rows(tmp_path / suite, suite)
        wrong = [r for r in made if r["verdict"] == "wrong" and r["us"] is None]
        assert code == 1
        assert len(wrong) == len(made) or (plan is Drifts and wrong)


@pytest.mark.parametrize("plan", [AppendsNothing, WritesPastTheEnd, CountsItself])
def test_a_cache_left_wrong_is_a_wrong_kernel(plan: type[ByDefinition], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plan)
    measured = dense.measure(dense.CPU[0], probe.measure(CPU, quick=True), CPU, replays=2)
    assert (measured.verdict, measured.timing) == ("wrong", None)


def test_a_kernel_that_raises_hides_no_other_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Raises)
    code, made = bench_rows(tmp_path, "kv-decode")
    assert code == 1 and len(made) == len(dense.CPU)
    assert all(r["verdict"] == "failed" and "too many resources" in r["error"] for r in made)
    assert "too many resources" in capsys.readouterr().out


def step(dim: int = 32) -> peers.Step:
    copy = dense.make_copy(dense.Case(2, 4, 2, dim, 33, torch.float32), CPU, 0)
    return copy.filled(dense.Case(2, 4, 2, dim, 33, torch.float32))


def test_a_peer_that_fails_or_is_wrong_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: peers.Step) -> peers.Run:
        raise NotImplementedError("no kernel for this shape\nand more")

    def once(given: peers.Step) -> peers.Run:
        out, answers = peers.sdpa(given), [peers.sdpa(given)]
        return lambda: out.copy_(answers.pop()) if answers else out

    listed = [
        peers.Peer("absent", broken),
        peers.Peer("wrong", lambda given: lambda: peers.sdpa(given) + 0.1),
        peers.Peer("once", once),
        peers.Peer("right", lambda given: lambda: peers.sdpa(given)),
    ]
    monkeypatch.setattr(peers, "available", lambda device: (listed, {"elsewhere": "not installed"}))
    given = step()
    found = peers.time_peers([given], dense.reference(given), device=CPU, replays=2)
    assert list(found.us) == ["right"] and found.best is not None and found.best[0] == "right"
    assert found.notes["absent"] == "NotImplementedError: no kernel for this shape"
    assert found.notes["wrong"].startswith("WRONG") and found.notes["once"].startswith("WRONG")
    assert found.notes["elsewhere"] == "not installed"


def test_fa3_says_why_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    junk, packed = tmp_path / "junk.so", tmp_path / "packed.so.xz"
    junk.write_bytes(b"not a library")
    packed.write_bytes(lzma.compress(b"nor this"))
    for name, why in (("", "is not set"), ("/nowhere.so", "no such file"), (str(junk), "load"), (str(packed), "load")):
        monkeypatch.setenv(fa3.ENV, name)
        fa3.load.cache_clear()
        assert why in fa3.load()
    assert fa3.unpacked(packed).read_bytes() == b"nor this"
    fa3.load.cache_clear()


# As `strings` shows it in _vllm_fa3_C.abi3.so of vllm 0.22.1.
FA3_FWD = """fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out,
Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k,
int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos,
Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, Tensor? v_descale,
float softmax_scale, bool is_causal, int window_size_left, int window_size_right, float softcap,
bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin, Tensor? s_aux,
int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"""
FA3_PLAN = """get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads,
int num_heads_k, int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q,
Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size,
int max_seqlen_k_new, bool is_causal, int window_size_left, int window_size_right, bool has_softcap, int num_splits,
bool? pack_gqa, int sm_margin) -> Tensor"""


def test_fa3_is_called_as_its_schema_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own schema over a stand-in on the CPU: an argument too few, too many or of another kind fails here."""
    seen: list[dict[str, Any]] = []
    fields = [part.split()[-1] for part in FA3_FWD[4 : FA3_FWD.index(")")].split(",")]

    def fwd(*args: Any) -> list[Tensor]:
        given = dict(zip(fields, args, strict=True))
        seen.append(given)
        q, k, v = (given[name].transpose(1, 2) for name in ("q", "k", "v"))
        answer = peers.sdpa(peers.Step(q, k, v, given["softmax_scale"])).transpose(1, 2)
        return [given["out"].copy_(answer), answer.new_zeros(1)]

    library = torch.library.Library("_vllm_fa3_C", "DEF")
    try:
        library.define(" ".join(FA3_FWD.split()))
        library.define(" ".join(FA3_PLAN.split()))
        library.impl("fwd", fwd, "CPU")
        library.impl("get_scheduler_metadata", lambda *args: torch.ones(len(args), dtype=torch.int32), "CPU")
        given = step()
        for kind in ({"lengths": True, "planned": False}, {"lengths": True, "planned": True}, {"lengths": False}):
            run = peers._fa3(**{"planned": False, **kind})(given)
            assert peers.judge(run(), dense.reference(given), peers.sdpa(given)).ok
    finally:
        library._destroy()
    first, planned, plain = seen
    assert first["seqused_k"].tolist() == [33, 33] and first["max_seqlen_k"] == 33 and first["is_causal"]
    assert first["scheduler_metadata"] is None and planned["scheduler_metadata"].numel() == 23
    assert plain["seqused_k"] is None and first["k"].shape == (2, 33, 2, 32) and first["k"].stride(-1) == 1


def test_the_probe_reads_every_element(device: torch.device) -> None:
    pytest.importorskip("triton")
    from kernels.bench import triton_probe

    assert triton_probe.sums_right(device)


@pytest.mark.gpu
def test_peers_are_right_and_captured_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    case = dense.Case(2, 8, 2, 64, 129)
    steps = [dense.make_copy(case, cuda, seed).filled(case) for seed in range(3)]
    found = peers.time_peers(steps, dense.reference(steps[0]), device=cuda, replays=3)
    assert {"sdpa-flash", "sdpa-cudnn"} <= set(found.us), found.notes
    assert not [note for note in found.notes.values() if "WRONG" in note or "captured" in note]


@pytest.mark.gpu
def test_a_graph_times_what_events_time_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    x = torch.randn(4, 1 << 26, device=cuda)
    graph = timing.graph_time(lambda i: lambda: x[i].mul_(1.0), 4, device=cuda, replays=5)
    eager = timing._timed(lambda: [x[i].mul_(1.0) for i in range(4)], 4, 5, "events", "rotated")
    assert graph.how == "graph" and graph.us == pytest.approx(eager.us, rel=0.15)
