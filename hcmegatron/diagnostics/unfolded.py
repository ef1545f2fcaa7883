"""The unfolded connection matrix of HC (2409.19606, 4.5), averaged over tokens, whole and stream by stream.

connections/connection_matrix.py has the same for one set of coefficients; this one keeps a row at a time, so that many
tokens of a deep network fit in memory.
"""

from __future__ import annotations

from torch import Tensor


def unfolded(pre: Tensor, post: Tensor, res: Tensor, last: Tensor) -> Tensor:
    """[n, S+2, S+2]: how much of output j is in input k by way of stream i, averaged over tokens; their sum over i is
    C0: the input of sub-layer k is sum_{j<k} C0[k, j] T_j.

    Sub-layers count from 1. T_0 is the embedding, which enters every stream with weight 1, and row S+1 is the
    contraction. FC's fractions are taken together: entry [k, j] is the mean over the fractions of x_k of how much of
    output j is in one.

    Args:
        pre, post, res: [S, T, m, n], [S, T, n], [S, T, n, n]; m is 1, or n where the streams are fractions.
        last: [T, n], or broadcast to it: what the contraction multiplies streams by before it adds them.
    """
    S, T, n = post.shape
    C0 = post.new_zeros(n, S + 2, S + 2)
    held = post.new_zeros(T, n, S + 2)  # held[t, i, j]: how much of T_j is in stream i
    held[..., 0] = 1
    for k in range(S):
        C0[:, k + 1] = (pre[k].mean(-2).unsqueeze(-1) * held).mean(0)
        held = res[k] @ held
        held[..., k + 1] = post[k]
    C0[:, S + 1] = (last.unsqueeze(-1) * held).mean(0)
    return C0
