"""Identity-carry Hyper-Connections: mHC's gates (2512.24880, Eq. 14-18) around streams that nothing mixes.

With Hv = H flattened to nC (stream-major) and r its root mean square, or 1: t = (Hv phi) / r, pre = sigmoid(alpha_pre
t_pre + b_pre) + pre_eps, post = 2 sigmoid(alpha_post t_post + b_post) + post_eps; then x = sum_i pre[i] H_i and H'_i =
H_i + post[i] y. Streams exchange what they hold through the sub-layers alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hcmegatron.connections.connection import Coefficients
from hcmegatron.connections.kinds.identity import IdentitySettings as Settings
from hcmegatron.connections.manifold import Manifold
from hcmegatron.kernels.options import ReadOptions


class IdentityCarry(Manifold):
    """ihc's connection of sub-layer k: mHC's read, with the identity for its residual matrix and no parameters of one.

    Initial values are functions of k alone: phi = 0, alpha = `alpha_init` and, with `pre_init` one_hot (OLMo-core's),
    b_pre = 5 for stream k mod n and -5 for the others, b_post = 0. Then post is 1 and x is a multiple, 1 + (n - 2)
    sigmoid(-5), of streams that are all equal: with the mean of the streams in the end the network is the pre-norm one,
    up to the epsilon of T's own norm, which takes that factor out. What differs is what the streams' gradients are,
    and so, from the first update on, post and the streams. With `mhc`, b_pre and b_post are mHC's, and streams differ
    from the first sub-layer on. (Hy4 begins with b_pre = -ln(n - 1) for all streams and a random phi.)
    """

    def read_options(self, conn: Settings, norm_eps: float) -> ReadOptions:
        """mHC's without a residual matrix."""
        return ReadOptions(
            n=conn.n,
            use_res=False,
            rms_eps=conn.rms_eps if conn.rms_scaling else "off",
            eps=norm_eps,
            pre_eps=conn.pre_eps,
            post_eps=conn.post_eps,
        )

    def initial_biases(self, conn: Settings, stream: Tensor) -> dict[str, Tensor]:
        """One-hot, or mHC's."""
        if conn.pre_init == "mhc":
            return super().initial_biases(conn, stream)
        return {"pre": 10 * stream - 5, "post": torch.zeros_like(stream)}

    @staticmethod
    def reads_with_previous(conn: Settings) -> bool:
        """Never: an identity carry has no such form."""
        return False

    def carry(self, H: Tensor, coefficients: Coefficients) -> Tensor:
        """H itself."""
        return H
