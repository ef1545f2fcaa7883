"""KromHC (2601.21579): mHC with res = U_1 (x) ... (x) U_K, each U_k a mixture of two streams, n = 2^K."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hcmegatron.connections.manifold import Manifold
from hcmegatron.connections.manifold_lite import OTHERS
from hcmegatron.connections.permutations import kronecker_mixture


class Krom(Manifold):
    """mHC's connection with a Kronecker product as residual matrix: 2 log2 n logits, doubly stochastic to rounding.

    One alpha_res serves all factors. b_res [K, 2] is 0 for the identity and -8 for the swap of every factor, as in the
    authors' code: res has 0.9993 on the diagonal at n = 4. All else, the initial pre and post included, is mHC's.
    """

    @staticmethod
    def res_options(conn: Any) -> dict[str, Any]:
        return {"res_map": "kronecker"}

    @staticmethod
    def initial_b_res(n: int, like: dict[str, Any]) -> Tensor:
        return torch.tensor([[0.0, OTHERS]], **like).repeat(n.bit_length() - 1, 1)

    def residual(self, L: Tensor) -> Tensor:
        return kronecker_mixture(L.unflatten(-1, (-1, 2)))
