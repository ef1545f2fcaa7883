"""The connection matrix: what every sub-layer reads from every earlier one, with the streams multiplied
out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hcmegatron.connections.connection import Coefficients


def connection_matrix(coefficients: Sequence[Coefficients], *, mean: bool = False) -> Tensor:
    """C0 [..., K+2, K+2] of K sub-layers: the input of sub-layer k is sum_{j<k} C0[k,j] T_j.

    Sub-layers count from 1; T_0 is the embedding, entering every stream with weight 1, and row K+1 is the
    contraction, the sum of the streams (or their mean). C0[k,j] = B^j (A_r^(j+1) ... A_r^(k-1)) A_m^k (HC,
    2409.19606, 4.5). coefficients: what each `read` returned, in order, of a kind with streams: (pre [..., n], post
    [..., n], res [..., n, n]), without res where the carry is the identity. Pre-norm gives a strictly lower triangular
    matrix of ones.
    """
    lead = torch.broadcast_shapes(*(c[0].shape[:-1] for c in coefficients))
    K, n = len(coefficients), coefficients[0][0].shape[-1]
    C0 = coefficients[0][0].new_zeros(*lead, K + 2, K + 2)
    held = C0.new_zeros(*lead, n, K + 2)  # held[i, j]: how much of T_j is in stream i
    held[..., 0] = 1
    for k, (pre, post, *res) in enumerate(coefficients, start=1):
        C0[..., k, :] = (pre.unsqueeze(-2) @ held).squeeze(-2)
        held = res[0] @ held if res else held.clone()
        held[..., k] = post
    C0[..., K + 1, :] = held.mean(-2) if mean else held.sum(-2)
    return C0
