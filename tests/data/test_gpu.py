"""Batches on their way to a GPU: pinned in the prefetch thread, copied while the host goes on, never overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.corpora import feeds, spec, write_jsonl
from workloads.data.prefetch import Prefetcher
from workloads.data.stream import FeedState

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_copies_out_of_pinned_memory_arrive_whole_although_the_host_runs_ahead(tmp_path: Path) -> None:
    data = spec("jsonl", write_jsonl(tmp_path), pack="documents")
    loader, plain, state = Prefetcher(feeds(data)[0].batch, FeedState(), gpu=0), feeds(data)[0], FeedState()
    arrived, expected = [], []
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy / 64  # the copies queue up behind it, and the host does not wait
        batch = loader.next()
        x_BT = torch.from_numpy(batch.x_BT)
        assert x_BT.is_pinned()
        arrived.append(x_BT.to("cuda", non_blocking=True).long())
        del batch, x_BT
        straight = plain.batch(state)
        state = straight.state
        expected.append(straight.x_BT.astype(np.int64))
    loader.close()
    assert all(np.array_equal(a.cpu().numpy(), b) for a, b in zip(arrived, expected, strict=True))
