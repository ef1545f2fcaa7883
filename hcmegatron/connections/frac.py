"""Frac-Connections (FC, 2503.14125): static SFC and dynamic DFC over m contiguous fractions of the hidden
state.

With H = h reshaped to [m, C/m]: x = reshape(Y^T H), and H'_c = B[c] y_c + (A^T H)_c where y_c is fraction c
of y: a fraction receives only its own part. The stream stays C wide; callers pass it as [s, b, 1, C], viewed
here.
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
)
from hcmegatron.connections.predicted import norm_weight, predicted_read
from hcmegatron.connections.predictor_norm import normalise
from hcmegatron.kernels.select import Kernels


class Frac(Connection):
    """SFC, or DFC where `dynamic`, initialised at the pre-norm network exactly: Y = A = I, B = 1, W = 0, s =
    0.01."""

    dynamic = False

    def __init__(
        self,
        conn: Any,  # FracSettings, or DynamicFracSettings
        hidden_size: int,
        index: int = 0,  # a fraction's own start is the same in every sub-layer
        *,
        norm_eps: float,
        kernels: Kernels,
        dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        m, width = conn.n, hidden_size // conn.n
        like = {"dtype": dtype, "device": device}
        self.m, self.eps = m, norm_eps
        self.Y = nn.Parameter(torch.eye(m, **like))
        self.A = nn.Parameter(torch.eye(m, **like))
        self.B = nn.Parameter(torch.ones(m, **like))
        if self.dynamic:
            self.norm, self.tanh = conn.norm, conn.tanh
            self.activation = torch.tanh if conn.tanh else (lambda p: p)
            self.W_alpha = nn.Parameter(torch.zeros(width, 2 * m, **like))
            self.W_beta = nn.Parameter(torch.zeros(width, **like))
            self.s_a = nn.Parameter(torch.full((1,), conn.alpha_init, **like))
            self.s_b = nn.Parameter(torch.full((1,), conn.alpha_init, **like))
            plain = conn.norm.endswith("_plain")
            self.norm_weight = None if plain else nn.Parameter(torch.ones(width, **like))

    def fractions(self, h: Tensor) -> Tensor:
        """[..., C] -> its view [..., m, C/m]."""
        return torch.unflatten(h, -1, (self.m, -1))

    def coefficients(self, Hf: Tensor) -> Coefficients:
        """Fractions Hf [s,b,m,C/m] -> (Y^T, B, A^T), [m,m], [m], [m,m], with [s,b] in front where dynamic."""
        dtype = compute_dtype(Hf)
        Y, A, B = self.Y.to(dtype), self.A.to(dtype), self.B.to(dtype)
        if self.dynamic:
            Hn = normalise(Hf.to(dtype), self.norm, norm_weight(self, dtype), self.eps)
            W = torch.cat([self.W_alpha, self.W_beta.unsqueeze(-1)], -1).to(dtype)
            p = self.activation(Hn @ W)
            Y = Y + self.s_a.to(dtype) * p[..., : self.m]
            A = A + self.s_a.to(dtype) * p[..., self.m : -1]
            B = B + self.s_b.to(dtype) * p[..., -1]
        return Y.transpose(-1, -2), B, A.transpose(-1, -2)

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """H [s,b,1,C] -> x = reshape(Y^T H) [s,b,C], (Y^T, B, A^T, H); the fused form of `coefficients`."""
        dtype = compute_dtype(H)
        if self.dynamic:
            static, W = (self.Y, self.A, self.B), (self.W_alpha, self.W_beta)
            by, res, post, x, H = predicted_read(self, H, static, W, dtype)
            return x, (by, post, res, H)
        Y, A, B = self.Y.to(dtype), self.A.to(dtype), self.B.to(dtype)
        x, H = self.kernels.static_read(H, Y)
        return x, (Y.mT, B, A.mT, H)

    def carry(self, H: Tensor, coefficients: Coefficients) -> Tensor:
        """A^T H, back as [s,b,1,C]."""
        return super().carry(self.fractions(H.squeeze(-2)), coefficients).flatten(-2).unsqueeze(-2)

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """H'_c = sum_i A[i,c] H_i + B[c] dropout(y + bias)_c, back as [s,b,1,C]."""
        _, post, res, *streams = coefficients
        dropout = dropout if self.training else 0.0
        H = streams[0] if streams else H
        out: Tensor = self.kernels.hyper_write(H, y, post, res, bias, dropout)
        return out


class DynamicFrac(Frac):
    """DFC: FC with its dynamic part."""

    dynamic = True
