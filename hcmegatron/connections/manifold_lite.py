"""mHC-lite (2601.05732): mHC with res = sum_p softmax(alpha_res t_res + b_res)_p P_p over all n! permutations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hcmegatron.connections.manifold import Manifold
from hcmegatron.connections.permutations import permutation_mixture

OTHERS = -8.0  # logit of whatever is not the identity, at initialisation: the authors' code


class ManifoldLite(Manifold):
    """mHC's connection with its residual matrix made of permutations: doubly stochastic to rounding, no iteration.

    b_res [n!] is 0 for the identity and -8 for the others, as in the authors' code: res has 0.994 on the diagonal at
    n = 4. All else, the initial pre and post included, is mHC's.
    """

    @staticmethod
    def res_options(conn: Any) -> dict[str, Any]:
        return {"res_map": "permutations"}

    @staticmethod
    def initial_b_res(n: int, like: dict[str, Any]) -> Tensor:
        b = torch.full((math.factorial(n),), OTHERS, **like)
        b[0] = 0
        return b

    def residual(self, L: Tensor) -> Tensor:
        return permutation_mixture(L, self.n)
