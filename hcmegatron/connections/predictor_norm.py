"""The norm in front of HC's and FC's dynamic predictors, and mHC's root mean square."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hcmegatron.kernels import torch_rms
from hcmegatron.kernels.options import RmsEps

NormKind = Literal["layernorm", "rmsnorm", "layernorm_plain", "rmsnorm_plain"]


def normalise(x: Tensor, kind: NormKind, weight: Tensor | None, eps: float) -> Tensor:
    """LayerNorm or RMSNorm over the last dimension, with weight [C] unless the kind is plain; no bias.

    As exact at one end of the precision's range as at the other. Zeros stay zeros without an epsilon too.
    """
    centred = _centred(x, kind)
    square = centred.square().mean(-1, keepdim=True)
    shift = torch_rms.scaling(square.detach().squeeze(-1).sqrt(), x, eps**0.5)
    if shift is None:
        x = centred * torch.rsqrt(square + eps)
    else:
        shift = shift.unsqueeze(-1)
        centred = _centred(x * shift, kind)
        square = centred.square().mean(-1, keepdim=True) + eps * shift * shift
        zero = square == 0
        x = centred * torch.where(zero, 0.0, torch.rsqrt(torch.where(zero, 1.0, square)))
    return x if weight is None else x * weight


def _centred(x: Tensor, kind: NormKind) -> Tensor:
    return x - x.mean(-1, keepdim=True) if kind.startswith("layernorm") else x


def inverse_rms(Hv: Tensor, kind: RmsEps, eps: float) -> tuple[Tensor, Tensor]:
    """1 / r of mHC's Eq. 15, r = ||Hv||_2 / sqrt(nC). Hv [..., nC] -> [..., 1].

    kind: `none` (the paper), `inside` sqrt(mean square + eps), `added` r + eps. A token of zeros has no
    direction: without an epsilon, or with one of 0, its 1 / r is defined as 0, so that the projection is 0
    instead of NaN. `off`: r is 1.

    Returns:
        1 / r of tokens multiplied by powers of two, which keep their squares within the precision's range, and
        these powers [..., 1].
    """
    if kind == "off":
        one = torch.ones_like(Hv[..., :1])
        return one, one
    floor = {"none": 0.0, "inside": eps**0.5, "added": eps}[kind]
    shift = torch_rms.to_one(Hv.detach().abs().amax(-1, keepdim=True).clamp(min=floor))
    square = (Hv * shift).square().mean(-1, keepdim=True)
    if kind == "inside":
        square = square + eps * shift * shift
    r = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
    if kind == "added":
        r = r + eps * shift
    return torch.where(r == 0, 0.0, 1.0 / torch.where(r == 0, 1.0, r)), shift
