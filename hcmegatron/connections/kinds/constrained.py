"""What mHC (2512.24880) and the kinds that make its residual matrix in another way have in common: all but that matrix.

Gates and the matrix are predicted from the flattened streams over their root mean square: the columns of phi in the
order pre | post | res, each part with its alpha and b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Parameter, Parameters, setting
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.shared_settings import Rooted, Trained

_OPEN = 0.999  # of a gate that can still be trained: of one stream alone, whose read is normed anyway

ResShape = Callable[[int], tuple[int, ...]]  # of b_res, for n streams


@dataclass
class ConstrainedSettings(Rooted, Trained, Streams):
    """mHC, mHC-lite and KromHC."""

    use_pre: bool = setting(True)  # the paper's ablation: false fixes pre = 1/n
    use_post: bool = setting(True)  # false fixes post = 1
    use_res: bool = setting(True)  # false fixes res = I
    # each sub-layer reads with the pre of the one before it, and the last one's contracts (DeepSeek-V4.1)
    single_pass: bool = setting(False)


def constrained(
    res: ResShape, *, of_res: tuple[str, ...] = (), paper_overhead: float | None = None, **own: Any
) -> ConnectionDescriptor:
    """The descriptor of such a kind.

    Args:
        res: shape of the logits' bias b_res.
        of_res: settings that only the residual matrix reads.
        paper_overhead: of four streams.
        **own: the descriptor's name, title, settings and module, and its problem if it has one.
    """

    def columns(conn: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of what is predicted; disabled parts own no parameters."""
        shapes = {"pre": (conn.n,), "post": (conn.n,), "res": res(conn.n)}
        used = {"pre": conn.use_pre, "post": conn.use_post, "res": conn.use_res}
        return {name: shape for name, shape in shapes.items() if used[name]}

    def width(conn: Any) -> int:
        """Columns of phi."""
        return sum(map(math.prod, columns(conn).values()))

    def parameters(conn: Any, C: int) -> Parameters:
        phi = {"phi": Parameter((conn.n * C, width(conn)), "projection", "matrix")} if columns(conn) else {}
        of_parts = {
            f"{letter}_{name}": parameter
            for name, shape in columns(conn).items()
            for letter, parameter in (("alpha", Parameter((1,), "gate")), ("b", Parameter(shape, "static")))
        }
        return phi | of_parts

    def ineffective(conn: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        if not columns(conn):
            reason = "connection.use_pre, use_post and use_res are false"
            found |= dict.fromkeys(("lr_multiplier", "alpha_init", "rms_eps"), reason)
        if not conn.use_pre:
            found |= dict.fromkeys(("pre_eps", "single_pass"), "connection.use_pre is false")
        elif conn.single_pass:
            found["contract"] = "connection.single_pass is true"
        if not conn.use_res:
            found |= dict.fromkeys(of_res, "connection.use_res is false")
        return found

    def saved_bytes(conn: Any, C: int, itemsize: int) -> int:
        """The streams, t and 1 / r, pre for the read, post and res for the write: those two keep no copies of H."""
        n = conn.n
        kept: int = n * C * itemsize + max(itemsize, 4) * (width(conn) + 1 + 2 * n + n * n * conn.use_res)
        return kept

    def flops(conn: Any, C: int) -> int:
        """Without a matrix the carry is the identity, and no product."""
        n = conn.n
        counted: int = 2 * n * (n * conn.use_res + 2) * C + 2 * n * C * width(conn)
        return counted

    def values_as_residual(conn: Any, k: int) -> dict[str, Any]:
        return gates_as_residual(conn.n, k, conn.pre_eps, use_pre=conn.use_pre, use_post=conn.use_post)

    return ConnectionDescriptor(
        parameters=parameters,
        flops=flops,
        saved_bytes=saved_bytes,
        streams=lambda conn: conn.n,
        single_pass=lambda conn: conn.single_pass and conn.use_pre,
        folds=True,
        starts="near",
        as_residual=values_as_residual,
        doubly_stochastic=lambda conn: conn.use_res,
        activations=_activations,
        ineffective=ineffective,
        paper_overhead=lambda conn: paper_overhead if conn.n == 4 else None,
        **own,
    )


def _activations(conn: Any, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    """Of the gates sigmoid(l) and 2 sigmoid(l), where sigmoid(l) = (1 + tanh(l / 2)) / 2."""
    found = {"pre": 2 * (pre - conn.pre_eps) - 1} if conn.use_pre else {}
    return found | ({"post": post - 1} if conn.use_post else {})


def gates_as_residual(
    n: int,
    k: int,
    pre_eps: float = 0.0,
    post_eps: float = 0.0,
    *,
    use_pre: bool = True,
    use_post: bool = True,
) -> dict[str, Any]:
    """Biases of sub-layer k's gates with which a network of equal streams is the residual one (descriptor.as_residual).

    post = 1 and sum_i pre_i = 1, more of it from stream k mod n: equal streams stay equal for any res whose rows sum to
    1, and later reads give them different gradients. Without pre the mean is read, which a doubly stochastic res
    leaves alone, and the streams are told apart by post, whose mean is 1.

    Raises:
        ValueError: an epsilon alone is as much as a gate has to be.
    """
    shares = [math.exp(i == k % n) / (n - 1 + math.e) for i in range(n)]
    values: dict[str, Any] = {}
    if use_pre and not pre_eps < min(shares):
        raise ValueError(
            f"connection.pre_eps = {pre_eps} is not below {min(shares):.3g}, what pre begins with"
        )
    if use_post and not post_eps < 1:
        raise ValueError(f"connection.post_eps = {post_eps} is not below 1, what post begins with")
    if use_pre:
        pre = [min(share - pre_eps, _OPEN) for share in shares]
        values["b_pre"] = [math.log(p / (1 - p)) for p in pre]
    if use_post:
        post = [1.0 if use_pre else 1 + (share - 1 / n) / 4 for share in shares]
        values["b_post"] = [math.log((p - post_eps) / (2 - p + post_eps)) for p in post]
    return values
