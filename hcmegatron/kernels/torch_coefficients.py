"""From mHC's projection to its coefficients and back, by hand, for torch; tokens last.

t [K, T] = (Hv phi) / r; logits = scale * t + bias with scale and bias [K] (the alphas and b's spread over the
columns).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hcmegatron.kernels import torch_permutations, torch_sinkhorn, torch_sinkhorn_implicit
from hcmegatron.kernels.options import ReadOptions


class Sinkhorn(Protocol):
    """torch_sinkhorn, or what has its functions."""

    forward: Callable[[Tensor, int, str], Tensor]
    backward: Callable[[Tensor, Tensor, int, str], Tensor]


def _split(columns: Tensor, options: ReadOptions) -> tuple[Tensor, Tensor, Tensor]:
    return columns.split(options.sizes, 0)


def _oriented(L: Tensor, options: ReadOptions) -> Tensor:
    """Res logits [n*n, T] as [n, n, T] with the dimension that is normalised first in front."""
    L = L.view(options.n, options.n, -1)
    return L if options.orientation == "paper" else L.transpose(0, 1)


def forward(
    t: Tensor, scale: Tensor, bias: Tensor, options: ReadOptions, sinkhorn: Sinkhorn = torch_sinkhorn
) -> tuple[Tensor, Tensor, Tensor]:
    """pre [n, T], post [n, T], res [n, n, T] (out, in). Disabled ones are 1/n, 1 and I. sinkhorn: its functions."""
    n, T = options.n, t.shape[1]
    logits = torch.addcmul(bias.unsqueeze(1), scale.unsqueeze(1), t)
    l_pre, l_post, l_res = _split(logits, options)
    pre = torch.sigmoid(l_pre).add_(options.pre_eps) if options.use_pre else t.new_full((n, T), 1 / n)
    post = torch.sigmoid(l_post).mul_(2).add_(options.post_eps) if options.use_post else t.new_ones(n, T)
    if not options.use_res:
        return pre, post, torch.eye(n, dtype=t.dtype, device=t.device).unsqueeze(-1).expand(n, n, T)
    if options.res_map != "sinkhorn":
        return pre, post, torch_permutations.forward(l_res, options)
    M = sinkhorn.forward(_oriented(l_res, options), options.iterations, options.sinkhorn_eps)
    return pre, post, M.transpose(0, 1) if options.orientation == "column_last" else M


def backward(
    t: Tensor,
    scale: Tensor,
    bias: Tensor,
    dpre: Tensor | None,
    dpost: Tensor | None,
    dres: Tensor | None,
    res: Tensor | None,
    options: ReadOptions,
    sinkhorn: Sinkhorn = torch_sinkhorn,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of t [K, T], scale [K] and bias [K].

    dpre, dpost [n, T], dres [n, n, T]; None is zero. res [n, n, T], the forward's, where `options.implicit`.
    """
    logits = torch.addcmul(bias.unsqueeze(1), scale.unsqueeze(1), t)
    l_pre, l_post, l_res = _split(logits, options)
    dlogits = torch.zeros_like(logits)
    d_pre, d_post, d_res = _split(dlogits, options)
    if options.use_pre and dpre is not None:
        p = torch.sigmoid(l_pre)
        torch.mul(dpre, p - p.square(), out=d_pre)
    if options.use_post and dpost is not None:
        p = torch.sigmoid(l_post)
        torch.mul(dpost, (p - p.square()).mul_(2), out=d_post)
    if options.use_res and dres is not None:
        _res_backward(l_res, dres, res, d_res, options, sinkhorn)
    dt = dlogits * scale.unsqueeze(1)
    return dt, (dlogits * t).sum(1), dlogits.sum(1)


def _res_backward(
    logits: Tensor,
    dres: Tensor,
    res: Tensor | None,
    out: Tensor,
    options: ReadOptions,
    sinkhorn: Sinkhorn,
) -> None:
    """Into `out` [columns, T]: the gradient of res's logits [columns, T]."""
    if options.res_map != "sinkhorn":
        out.copy_(torch_permutations.backward(logits, dres, options))
        return
    turned = options.orientation == "column_last"
    dM = dres.transpose(0, 1) if turned else dres
    if options.implicit:
        M = res.transpose(0, 1) if turned else res
        dL = torch_sinkhorn_implicit.backward(M, dM)
    else:
        dL = sinkhorn.backward(_oriented(logits, options), dM, options.iterations, options.sinkhorn_eps)
    _oriented(out, options).copy_(dL)
