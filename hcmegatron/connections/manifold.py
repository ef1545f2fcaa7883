"""Manifold-Constrained Hyper-Connections (mHC, 2512.24880): coefficients from the flattened streams, res
doubly stochastic.

With Hv = H flattened to nC (stream-major) and r its root mean square (Eq. 15): t = (Hv phi) / r, pre =
sigmoid(alpha_pre t_pre + b_pre), post = 2 sigmoid(alpha_post t_post + b_post), res = Sinkhorn(alpha_res t_res
+ b_res); then x = sum_i pre[i] H_i and H'_o = sum_i res[o,i] H_i + post[o] y.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.connections.connection import (
    Coefficients,
    Connection,
    Projection,
    compute_dtype,
    per_token,
    write_streams,
)
from hcmegatron.connections.mixing import aggregate
from hcmegatron.connections.predictor_norm import inverse_rms
from hcmegatron.connections.sinkhorn import sinkhorn
from hcmegatron.kernels.options import Orientation, ReadOptions, RmsEps, SinkhornEps
from hcmegatron.kernels.select import Kernels


def project(H: Tensor, phi: Tensor, rms_eps: RmsEps, eps: float) -> Tensor:
    """t = (Hv phi) / r (Eq. 14-15). H [..., n, C], phi [nC, columns] -> [..., columns] in phi's dtype."""
    Hv = H.flatten(-2).to(phi.dtype)
    inv_r, shift = inverse_rms(Hv, rms_eps, eps)
    return ((Hv * shift) @ phi) * inv_r


def residual_matrix(L: Tensor, iterations: int, eps: SinkhornEps, orientation: Orientation) -> Tensor:
    """res[o,i] from logits L [..., n, n].

    `paper`: columns normalised first, rows last. `deepseek_v4`: the stored matrix is normalised rows first
    and applied transposed, which is the paper's map of the transposed logits. `column_last` (Megatron-Core
    main of August 2026, Liger): rows first, columns last, applied as it is: another map.
    """
    if orientation == "paper":
        return sinkhorn(L, iterations, eps)
    res = sinkhorn(L.transpose(-1, -2), iterations, eps)
    return res if orientation == "deepseek_v4" else res.transpose(-1, -2)


class Manifold(Connection):
    """mHC's connection of sub-layer k = `index`.

    The paper prints the initialisation of alpha (0.01) only. Chosen here, as a function of k alone: phi = 0,
    b_res = 5 I (res has 0.98 on the diagonal at n=4), b_pre = -ln n + u and b_post = u / 4 with u = e_(k mod
    n) - 1/n. So sub-layer k reads a little more from stream k mod n and writes a little more to it: the
    network starts close to pre-norm (post within 0.9 and 1.1 at n=4, res near I; T's own norm takes out the
    scale of x), and streams differ from the first sub-layer on instead of being separated by rounding noise.
    Disabled forms (the paper's ablation: pre = 1/n, post = 1, res = I) own no parameters.
    """

    phi: nn.Parameter
    alpha_pre: nn.Parameter
    alpha_post: nn.Parameter
    alpha_res: nn.Parameter
    b_pre: nn.Parameter
    b_post: nn.Parameter
    b_res: nn.Parameter

    def __init__(
        self,
        conn: Any,  # ManifoldSettings, or those of a kind that makes res in another way
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
        n = conn.n
        like = {"dtype": dtype, "device": device}
        self.n, self.conn = n, conn
        self.single_pass = self.reads_with_previous(conn)
        self.options = self.read_options(conn, norm_eps)
        self.sizes = self.options.sizes
        self.predicted = [name for name, size in zip(("pre", "post", "res"), self.sizes, strict=True) if size]
        biases = self.initial_biases(conn, (torch.arange(n, device=device) == index % n).to(dtype))
        if any(self.sizes):
            self.phi = nn.Parameter(torch.zeros(n * hidden_size, sum(self.sizes), **like))
        for name in self.predicted:
            self.register_parameter(f"alpha_{name}", nn.Parameter(torch.full((1,), conn.alpha_init, **like)))
            self.register_parameter(f"b_{name}", nn.Parameter(biases[name]))

    def read_options(self, conn: Any, norm_eps: float) -> ReadOptions:
        """What the settings say of the read."""
        return ReadOptions(
            n=conn.n,
            use_pre=conn.use_pre,
            use_post=conn.use_post,
            use_res=conn.use_res,
            rms_eps=conn.rms_eps,
            eps=norm_eps,
            pre_eps=conn.pre_eps,
            **self.res_options(conn),
        )

    def initial_biases(self, conn: Any, stream: Tensor) -> dict[str, Tensor]:
        """b_pre, b_post and b_res at initialisation; stream [n] is e_(k mod n)."""
        n, u = conn.n, stream - 1 / conn.n
        b_res = self.initial_b_res(n, {"dtype": stream.dtype, "device": stream.device})
        return {"pre": u - math.log(n), "post": u / 4, "res": b_res}

    @staticmethod
    def reads_with_previous(conn: Any) -> bool:
        """Whether x is read with the pre of the sub-layer before."""
        return bool(conn.single_pass and conn.use_pre)

    # What another kind with mHC's gates makes differently: res, out of the logits L that are predicted for it.

    @staticmethod
    def res_options(conn: Any) -> dict[str, Any]:
        """Those of ReadOptions that say how res is made."""
        return {
            "iterations": conn.sinkhorn_iterations,
            "sinkhorn_eps": conn.sinkhorn_eps,
            "sinkhorn_backward": conn.sinkhorn_backward if conn.use_res else "iterations",
            "orientation": conn.res_orientation,
        }

    @staticmethod
    def initial_b_res(n: int, like: dict[str, Any]) -> Tensor:
        """The bias of the logits of res, in the shape that the descriptor lists."""
        return 5 * torch.eye(n, **like)

    def residual(self, L: Tensor) -> Tensor:
        """res [..., n, n] of logits L [..., columns]."""
        conn, n = self.conn, self.n
        L = L.unflatten(-1, (n, n))
        return residual_matrix(L, conn.sinkhorn_iterations, conn.sinkhorn_eps, conn.res_orientation)

    def coefficients(self, H: Tensor) -> Coefficients:
        """H [s,b,n,C] -> pre [s,b,n], post [s,b,n], res [s,b,n,n]; disabled ones without the leading
        dimensions."""
        options, n, dtype = self.options, self.n, compute_dtype(H)
        pre = H.new_full((n,), 1 / n, dtype=dtype)
        post = H.new_ones(n, dtype=dtype)
        res = torch.eye(n, dtype=dtype, device=H.device)
        if not any(self.sizes):
            return pre, post, res
        t_pre, t_post, t_res = torch.split(
            project(H, self.phi.to(dtype), options.rms_eps, options.eps), list(self.sizes), -1
        )
        if options.use_pre:
            pre = torch.sigmoid(self.alpha_pre.to(dtype) * t_pre + self.b_pre.to(dtype)) + options.pre_eps
        if options.use_post:
            post = 2 * torch.sigmoid(self.alpha_post.to(dtype) * t_post + self.b_post.to(dtype))
            post = post + options.post_eps
        if options.use_res:
            res = self.residual(self.alpha_res.to(dtype) * t_res + self.b_res.flatten().to(dtype))
        return pre, post, res

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """H [s,b,n,C] -> x [s,b,C], (pre, post, res, H); the kernels' fused form of `coefficients`."""
        if not any(self.sizes):
            coefficients = self.coefficients(H)
            return aggregate(H, coefficients[0]), coefficients
        dtype = compute_dtype(H)
        alphas = [getattr(self, f"alpha_{name}").to(dtype) for name in self.predicted]
        biases = [getattr(self, f"b_{name}").flatten().to(dtype) for name in self.predicted]
        given: dict[str, Any] = {} if projection is None else {"projection": projection}
        if self.single_pass:
            given["mix"] = (self.first_mix(H) if mix is None else mix).flatten(0, 1)
        flat = self.kernels.read(H.flatten(0, 1), self.phi.to(dtype), alphas, biases, self.options, **given)
        x, *rest = (t.unflatten(0, H.shape[:2]) for t in flat)
        return x, tuple(rest)

    def first_mix(self, H: Tensor) -> Tensor:
        """What a single-pass network's first sub-layer reads with, [s,b,n]: stream 0 alone."""
        mix = H.new_zeros(H.shape[:-1], dtype=compute_dtype(H))
        mix[..., 0] = 1
        return mix

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """H'_o = sum_i res[o,i] H_i + post[o] dropout(y + bias)."""
        _, post, res, *streams = coefficients
        H = streams[0] if streams else H
        dropout = dropout if self.training else 0.0
        carry = res if self.options.use_res else None
        return write_streams(self.kernels, H, y.unsqueeze(-2), post, carry, bias, dropout)

    def write_and_project(
        self,
        following: Connection,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Projection | None]:
        """As Connection's, in one pass where the kernels fold and the following connection projects."""
        fold = self.kernels.write_and_project
        if fold is None or not isinstance(following, Manifold) or not any(following.sizes):
            return self.write(H, y, coefficients, bias, dropout), None
        _, post, res, *streams = coefficients
        carry = res if self.options.use_res else None
        flat = per_token(streams[0] if streams else H, y.unsqueeze(-2), post, carry)
        out, projection = fold(*flat, following.phi, bias, dropout if self.training else 0.0)
        return out.view(H.shape), projection
