"""Gated residual (gr, 2608.30320): the read norms every stream and gates every number of it; nothing mixes the streams.

Rh_i = RMSNorm(R_i; gamma_i); G = sigmoid(SiLU(vec(Rh) W_d / n) W_u); x = mean_i G_i * Rh_i, which is T's input: it
replaces the pre-norm. s = 2 sigmoid(vec(Rh) W_w / n); R'_i = R_i + s_i y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.connections.connection import (
    Coefficients,
    Connection,
    Projection,
    compute_dtype,
    write_streams,
)
from hcmegatron.connections.kinds.gated import GatedSettings as Settings
from hcmegatron.connections.kinds.gated import rank
from hcmegatron.connections.predictor_norm import normalise
from hcmegatron.kernels.select import Kernels


def gated_read(
    R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., C], G [..., n, C] and s [..., n] of streams R [..., n, C], for autograd to follow.

    gamma [n,C], W_d [nC,r], W_u [r,nC], W_w [nC,n], all in R's dtype; eps is added to the mean square.
    """
    n = R.shape[-2]
    Rh = normalise(R, "rmsnorm", gamma, eps)
    v = Rh.flatten(-2)
    G = torch.sigmoid(nn.functional.silu(v @ W_d / n) @ W_u).unflatten(-1, Rh.shape[-2:])
    return (G * Rh).mean(-2), G, 2 * torch.sigmoid(v @ W_w / n)


class GatedResidual(Connection):
    """gr's connection of sub-layer k = `index`.

    Initial values are chosen here: W_u = W_w = 0, so that every gate is 1/2 and every factor s is 1;
    gamma_i = 2 (1 + u_i) with u = e_(k mod n) - 1/n, so that x = RMSNorm(R) of streams that are all equal: with the
    mean of the streams in the end the network is the pre-norm one. Sub-layer k reads more of stream k mod n, so that
    the streams' gradients differ, and from the first update on s and the streams. W_d is normal with deviation
    1 / sqrt(C), from a generator of its own seeded with k: were it 0 too, neither projection would have a gradient.
    (The published code's norms are 1 + w with w = 0, and all its projections are random.)

    Coefficients are (pre, s, I, R): pre [s,b,n] is the mean of stream i's gates over C, divided by n, for whoever looks
    at what is read; it carries no gradient.
    """

    def __init__(
        self,
        conn: Settings,
        hidden_size: int,
        index: int,
        *,
        norm_eps: float,
        kernels: Kernels,
        dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        n, C, r = conn.n, hidden_size, rank(conn, hidden_size)
        like = {"dtype": dtype, "device": device}
        self.kernels, self.eps = kernels, norm_eps
        u = (torch.arange(n, device=device) == index % n).to(dtype) - 1 / n
        W_d = torch.randn(n * C, r, generator=torch.Generator().manual_seed(index), device="cpu") / C**0.5
        self.gamma = nn.Parameter((2 + 2 * u).unsqueeze(1).repeat(1, C))
        self.W_d = nn.Parameter(W_d.to(**like))
        self.W_u = nn.Parameter(torch.zeros(r, n * C, **like))
        self.W_w = nn.Parameter(torch.zeros(n * C, n, **like))

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """R [s,b,n,C] -> x [s,b,C], normed, and (pre, s, I, R)."""
        dtype, lead = compute_dtype(H), H.shape[:2]
        weights = (weight.to(dtype) for weight in (self.gamma, self.W_d, self.W_u, self.W_w))
        x, s, pre, R = (
            t.unflatten(0, lead) for t in self.kernels.gated_read(H.flatten(0, 1), *weights, self.eps)
        )
        return x, (pre, s, torch.eye(H.shape[-2], dtype=dtype, device=H.device), R)

    def carry(self, H: Tensor, coefficients: Coefficients) -> Tensor:
        """R itself."""
        return H

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """R'_i = R_i + s_i dropout(y + bias)."""
        _, s, _, R = coefficients
        return write_streams(
            self.kernels, R, y.unsqueeze(-2), s, None, bias, dropout if self.training else 0.0
        )
