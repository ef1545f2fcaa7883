"""The throw-away kind's module: a read and its parameters. Carry and write are the contract's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hcmegatron.connections.connection import Coefficients, Connection, Projection, compute_dtype
from hcmegatron.connections.mixing import aggregate


class ThrowAway(Connection):
    """x = gamma RMSNorm(leak sum_i sigmoid(gate_i + W_i . H_i / C) H_i); H'_i = H_i + sigmoid(...) y."""

    def __init__(
        self,
        conn: Any,
        C: int,
        index: int,
        *,
        norm_eps: float,
        kernels: None,
        dtype: torch.dtype,
        device: Any = None,
    ) -> None:
        super().__init__()
        like = {"dtype": dtype, "device": device}
        self.leak, self.eps = conn.leak, norm_eps
        self.gate = nn.Parameter((torch.arange(conn.n, device=device) == index % conn.n).to(dtype))
        self.W = nn.Parameter(torch.zeros(conn.n, C, **like))
        self.gamma = nn.Parameter(torch.ones(C, **like))

    def read(self, H: Tensor, projection: Projection | None = None) -> tuple[Tensor, Coefficients]:
        """H [s,b,n,C] -> the normed input of T [s,b,C], (pre, post) [s,b,n]."""
        dtype = compute_dtype(H)
        gates = torch.sigmoid(self.gate.to(dtype) + (H.to(dtype) * self.W.to(dtype)).mean(-1))
        x = aggregate(H.to(dtype), self.leak * gates)
        normed = F.rms_norm(x, x.shape[-1:], self.gamma.to(dtype), self.eps)
        return normed.to(H.dtype), (self.leak * gates, gates)
