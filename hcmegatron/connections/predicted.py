"""What the dynamic parts of HC and FC share: coefficients predicted from their normalised streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hcmegatron.kernels.torch_hyper import Norm


def norm_weight(own: Any, dtype: torch.dtype) -> Tensor | None:
    """The weight of the predictor's norm in this precision; None where it has none."""
    return None if own.norm_weight is None else own.norm_weight.to(dtype)


def predicted_read(
    own: Any, H: Tensor, static: Iterable[Tensor], W: Iterable[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mix, carry and post of streams H, x and H again (torch_hyper.read).

    own: the connection, with its kernels, its norm, eps and tanh, and scales s_a and s_b. static and W are as
    torch_hyper.read's, of any dtype; everything is computed in `dtype`.
    """
    groups = (static, W, (own.s_a, own.s_b))
    # a call of `to` that changes nothing takes as long as a small kernel
    static, W, scales = ([t if t.dtype == dtype else t.to(dtype) for t in group] for group in groups)
    norm = Norm(own.norm.startswith("layernorm"), own.eps, own.tanh)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = own.kernels.hyper_read(
        H, static, W, scales, norm_weight(own, dtype), norm
    )
    return found
