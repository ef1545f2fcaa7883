"""What the dynamic parts of HC and FC share: coefficients predicted from their normalised streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hcmegatron.kernels import torch_hyper


def norm_weight(own: Any, dtype: torch.dtype) -> Tensor | None:
    """The weight of the predictor's norm in this precision; None where it has none."""
    return None if own.norm_weight is None else own.norm_weight.to(dtype)


def predicted_read(own: Any, H: Tensor, static: Tensor, W: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients [T,K,n] of streams H [T,n,C], x [T,m,C] by the first m of them, and H again (torch_hyper.read).

    own: the connection, with its norm, eps and tanh, and scales s_a and s_b, of which s_b is the last column's. static
    [K,n]; W [C,K].
    """
    dtype = static.dtype
    scale = torch.cat([own.s_a.expand(W.shape[1] - 1), own.s_b]).to(dtype)
    norm = torch_hyper.Norm(own.norm.startswith("layernorm"), own.eps, own.tanh)
    return torch_hyper.read(H, static, scale, norm_weight(own, dtype), W.to(dtype), norm, m)
