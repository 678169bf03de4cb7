"""RMSNorm (Zhang and Sennrich, 2019, arXiv:1910.07467) of activations that may be narrower than its gains.

Called by the decoder and its attention.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.RMSNorm):
    """In the dtype of `x`; where the gains are wider (bf16 activations, fp32 masters) the mean is taken in theirs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps).to(x.dtype)
