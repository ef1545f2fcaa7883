"""The two ends of the stream: expand, where the embedding enters the stack, and contract, before the final
norm."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hcmegatron.connections.connection import compute_dtype
from hcmegatron.connections.kinds.heads import LearnedHead
from hcmegatron.connections.manifold import project
from hcmegatron.connections.mixing import aggregate


def expand(h: Tensor, streams: int) -> Tensor:
    """h [s,b,C] -> w = `streams` copies [s,b,w,C], contiguous (HC, mHC); a view where w is 1 (residual, FC).

    Raises:
        ValueError: fewer than one stream.
    """
    if streams < 1:
        raise ValueError(f"streams={streams}: must be at least 1")
    if streams == 1:
        return h.unsqueeze(-2)
    return h.unsqueeze(-2).expand(*h.shape[:-1], streams, h.shape[-1]).contiguous()


def contract(H: Tensor, how: Literal["sum", "mean"] = "sum") -> Tensor:
    """Streams [s,b,w,C] -> h [s,b,C]: their sum (the papers') or mean, in fp32 and rounded once.

    The contraction that is learned has parameters, and is a module: build.contraction("head", ...).
    """
    if how not in ("sum", "mean"):
        raise ValueError(f"how={how!r}: choose sum or mean; a learned one is contraction('head', ...)")
    return (Sum() if how == "sum" else Mean()).forward(H)


class Sum(nn.Module):
    """Streams [s,b,w,C] -> h [s,b,C], summed in fp32 and rounded once; a view where w is 1."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, H: Tensor) -> Tensor:
        """[s,b,w,C] -> [s,b,C]."""
        if H.shape[-2] == 1:
            return H.flatten(-2)
        return self.scaled(H.sum(-2, dtype=compute_dtype(H)), H.shape[-2]).to(H.dtype)

    def scaled(self, h: Tensor, n: int) -> Tensor:
        """The sum over n streams as it is."""
        return h


class Mean(Sum):
    """The same, divided by the number of streams."""

    def scaled(self, h: Tensor, n: int) -> Tensor:
        """The sum over n streams as their mean."""
        return h / n


class LastMix(nn.Module):
    """x of single-pass kinds, once more: the streams by the pre that the last sub-layer predicted."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, H: Tensor, pre: Tensor) -> Tensor:
        """[s,b,n,C], [s,b,n] -> [s,b,C]."""
        return aggregate(H, pre)


class ContractHead(nn.Module):
    """DeepSeek-V4's learned contraction: weights sigmoid(alpha_head (Hv phi_head) / r + b_head) + pre_eps,
    per token.

    Initialised like mHC's pre: phi_head = 0 and b_head = -ln n, all weights 1 / (n + 1).
    """

    def __init__(
        self,
        conn: LearnedHead,
        n: int,
        hidden_size: int,
        *,
        norm_eps: float,
        dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        like = {"dtype": dtype, "device": device}
        self.rms_eps, self.eps, self.pre_eps = conn.rms_eps, norm_eps, conn.pre_eps
        self.phi_head = nn.Parameter(torch.zeros(n * hidden_size, n, **like))
        self.alpha_head = nn.Parameter(torch.full((1,), conn.alpha_init, **like))
        self.b_head = nn.Parameter(torch.full((n,), -math.log(n), **like))

    def forward(self, H: Tensor) -> Tensor:
        """[s,b,n,C] -> [s,b,C]."""
        dtype = compute_dtype(H)
        t = project(H, self.phi_head.to(dtype), self.rms_eps, self.eps)
        return aggregate(
            H, torch.sigmoid(self.alpha_head.to(dtype) * t + self.b_head.to(dtype)) + self.pre_eps
        )
