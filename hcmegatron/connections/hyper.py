"""Hyper-Connections (HC, 2409.19606): static SHC and dynamic DHC over n streams.

x = sum_i A_m[i] H_i and H'_j = sum_i A_r[i,j] H_i + B[j] y; dynamic adds, per token and stream, a scaled tanh
of a projection of the normalised stream to each of A_m[i], A_r[i,:] and B[i]. Weights are shared by the
streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.connections.connection import (
    Coefficients,
    Connection,
    Projection,
    compute_dtype,
)
from hcmegatron.connections.predicted import norm_weight, predicted_read
from hcmegatron.connections.predictor_norm import normalise
from hcmegatron.kernels.select import Kernels


def dynamic_coefficients(
    Hn: Tensor,
    A_m: Tensor,
    A_r: Tensor,
    B: Tensor,
    W_m: Tensor,
    W_r: Tensor,
    W_b: Tensor,
    s_a: Tensor,
    s_b: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
) -> tuple[Tensor, Tensor, Tensor]:
    """A_m [..., n], A_r [..., n, n], B [..., n] of every token (HC, Eq. 10-13) from normalised streams Hn
    [..., n, C].

    Static A_m [n], A_r [n,n], B [n]; projections W_m [C], W_r [C,n], W_b [C]; scales s_a (A_m and A_r), s_b.
    """
    n = A_m.shape[0]
    p = activation(Hn @ torch.cat([W_m.unsqueeze(-1), W_r, W_b.unsqueeze(-1)], -1))
    return A_m + s_a * p[..., 0], A_r + s_a * p[..., 1 : n + 1], B + s_b * p[..., n + 1]


class Hyper(Connection):
    """SHC, or DHC where `dynamic`, with the papers' initialisation: A_m = e_(k mod n), A_r = I, B = 1, W = 0, s =
    0.01.

    At initialisation all streams are equal and the network is the pre-norm one; reading stream k mod n is
    what lets their gradients, and then the streams, differ.
    """

    dynamic = False

    def __init__(
        self,
        conn: Any,  # HyperSettings, or DynamicHyperSettings
        hidden_size: int,
        index: int,
        *,
        norm_eps: float,
        kernels: Kernels,
        dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        n, C = conn.n, hidden_size
        like = {"dtype": dtype, "device": device}
        self.n, self.eps = n, norm_eps
        self.A_m = nn.Parameter((torch.arange(n, device=device) == index % n).to(dtype))
        self.A_r = nn.Parameter(torch.eye(n, **like))
        self.B = nn.Parameter(torch.ones(n, **like))
        if self.dynamic:
            self.norm, self.tanh = conn.norm, conn.tanh
            self.activation = torch.tanh if conn.tanh else (lambda p: p)
            self.W_m = nn.Parameter(torch.zeros(C, **like))
            self.W_r = nn.Parameter(torch.zeros(C, n, **like))
            self.W_b = nn.Parameter(torch.zeros(C, **like))
            self.s_a = nn.Parameter(torch.full((1,), conn.alpha_init, **like))
            self.s_b = nn.Parameter(torch.full((1,), conn.alpha_init, **like))
            plain = conn.norm.endswith("_plain")
            self.norm_weight = None if plain else nn.Parameter(torch.ones(C, **like))

    def coefficients(self, H: Tensor) -> Coefficients:
        """H [s,b,n,C] -> (pre, post, res); res is A_r transposed, because stream j collects A_r's column
        j."""
        dtype = compute_dtype(H)
        A_m, A_r, B = self.A_m.to(dtype), self.A_r.to(dtype), self.B.to(dtype)
        if self.dynamic:
            Hn = normalise(H.to(dtype), self.norm, norm_weight(self, dtype), self.eps)
            W_m, W_r, W_b, s_a, s_b = (
                w.to(dtype) for w in (self.W_m, self.W_r, self.W_b, self.s_a, self.s_b)
            )
            A_m, A_r, B = dynamic_coefficients(Hn, A_m, A_r, B, W_m, W_r, W_b, s_a, s_b, self.activation)
        return A_m, B, A_r.transpose(-1, -2)

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """H [s,b,n,C] -> x [s,b,C], (A_m, B, A_r^T, H); the fused form of `coefficients`."""
        dtype = compute_dtype(H)
        if self.dynamic:
            static, W = (self.A_m, self.A_r, self.B), (self.W_m, self.W_r, self.W_b)
            by, res, post, x, H = predicted_read(self, H, static, W, dtype)
            return x, (by, post, res, H)
        A_m, A_r, B = self.A_m.to(dtype), self.A_r.to(dtype), self.B.to(dtype)
        x, H = self.kernels.static_read(H, A_m)
        return x, (A_m, B, A_r.mT, H)

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """H'_j = sum_i A_r[i,j] H_i + B[j] dropout(y + bias)."""
        _, post, res, *streams = coefficients
        dropout = dropout if self.training else 0.0
        H = streams[0] if streams else H
        out: Tensor = self.kernels.hyper_write(H, y, post, res, bias, dropout)
        return out


class DynamicHyper(Hyper):
    """DHC: HC with its dynamic part."""

    dynamic = True
