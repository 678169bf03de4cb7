"""Gradients of a compiled model over two ranks: the same as uncompiled, and on their way before backward is over."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.train.harness import launch_ranks, make_run


@pytest.mark.long
def test_compiled_by_blocks_gradients_travel_while_backward_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with launch_ranks(run, argv=[sys.executable, "-m", "tests.train.overlap"], env={"GLOO_SOCKET_IFNAME": "lo"}) as two:
        assert two.wait() == [0, 0], two.log(0) + two.log(1)
    for rank in (0, 1):
        told = json.loads(two.log(rank).splitlines()[-1])
        print(told)
        assert told["model"]["graphs"] == 1 and told["blocks"]["graphs"] == 2  # a block and the loss
        for form in ("model", "blocks"):
            assert told[form]["apart"] <= 1e-5 and told[form]["gradients"] > 8
        for form in ("off", "blocks"):
            events = told[form]["events"]
            ends = [n for n, what in enumerate(events) if what.startswith("block ")]
            # the second micro batch alone sends; backward meets the last block first
            assert [events[n] for n in ends] == 2 * [f"block {n}" for n in reversed(range(4))], events
            sent = [n for n, what in enumerate(events) if what == "bucket"]
            early = [n for n in sent if n < ends[-1]]
            assert sent[0] > ends[3] and len(sent) >= 4 and len(early) >= len(sent) // 2, events
