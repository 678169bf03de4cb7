"""A call answered by PyTorch's scaled_dot_product_attention: what is chosen where it was measured to be faster.

It takes one length for all rows, known to the host, and gives no LSE: `why_not` says what keeps it from a call. Called
by `api.py`, on the word of `dispatch`.

Letters: B rows, H query heads, K key/value heads, S queries, N keys, D and E head sizes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FIRST = {"sdpa-flash": SDPBackend.FLASH_ATTENTION, "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION}


def why_not(
    queries: int,
    keys: int,
    *,
    causal: bool,
    lse: bool,
    same_lengths: bool,
    blocks: bool = False,
    apart: bool = False,
) -> str:
    """What of a call SDPA cannot do, "" when it can. `same_lengths`: every row has `keys` keys and the host knows it;
    `blocks`: block sizes are given; `apart`: new tokens are not put behind the old ones.

    SDPA's own causal mask begins at the top left, ours ends at the bottom right: they are one where S = N, and where
    S = 1 none is needed.
    """
    if not same_lengths:
        return "its lengths are on the device or differ from row to row, and SDPA takes one for all from the host"
    if lse:
        return "SDPA returns no LSE"
    if blocks:
        return "block_m and block_n are of our kernels"
    if apart:
        return "with update_cache=False the new tokens do not lie behind the cached ones"
    if queries < 1 or keys < 1:
        return "there is nothing to attend to"
    if causal and queries not in (1, keys):
        return f"SDPA's causal mask does not fit {queries} queries at the end of {keys} keys"
    return ""


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None, backend: str) -> Tensor:
    """q [B, H, S, D] over all of k [B, K, N, D], v [B, K, N, E]: out [B, H, S, E].

    `backend`: "sdpa-flash" or "sdpa-cudnn" is tried first, where it does not take these inputs PyTorch's others are;
    "sdpa": PyTorch's own order.
    """
    with _order(backend):
        return scaled_dot_product_attention(
            q, k, v, is_causal=causal and q.shape[2] > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )


def _order(backend: str) -> AbstractContextManager[object]:
    if backend not in FIRST:
        return nullcontext()
    return sdpa_kernel(list(dict.fromkeys([FIRST[backend], *OTHERS])), set_priority=True)
