"""Random number state of one rank as JSON (never a pickle): Python, numpy, torch on the CPU and on this rank's GPU.

Called by the checkpoint writer and reader. torch and numpy are imported inside functions.
"""

from __future__ import annotations

import random
from typing import Any


def capture() -> dict[str, Any]:
    import numpy as np
    import torch

    version, internal, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    on_gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0  # else a CPU rank would wake the GPU
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys, dtype=np.uint32).tobytes().hex(), int(pos), int(has_gauss), float(cached)],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": [bytes(torch.cuda.get_rng_state().tolist()).hex()] if on_gpu else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError on a state that is none."""
    import numpy as np
    import torch

    def tensor(text: str) -> torch.Tensor:
        return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), dtype=np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(tensor(state["torch"]))
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(tensor(state["cuda"][0]))
