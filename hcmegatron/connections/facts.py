"""Widths, parameter counts, FLOPs and weight-decay rules of every kind of connection. Imports no torch.

`conn` is config.schema.Connection or anything with its fields. C is the hidden size, n the streams of HC and
mHC, m = conn.n the fractions of FC.
"""

from __future__ import annotations

from typing import Any

HYPER = ("shc", "dhc")
FRAC = ("sfc", "dfc")
DYNAMIC = ("dhc", "dfc", "mhc")
KINDS = ("residual", *HYPER, *FRAC, "mhc")

_DECAYED = {"W_m", "W_r", "W_b", "W_alpha", "W_beta", "s_a", "s_b", "phi", "phi_head"}
_NOT_DECAYED = {
    *("A_m", "A_r", "Y", "A", "B", "norm_weight"),
    *("alpha_pre", "alpha_post", "alpha_res", "b_pre", "b_post", "b_res", "alpha_head", "b_head"),
}


def check(conn: Any, C: int) -> None:
    """Refuse a connection that cannot be built at hidden size C.

    Raises ValueError naming the field, its value and the remedy: unknown kind, n < 1, fractions that do not
    divide C. A field that the chosen kind does not read is as good as absent, whatever it holds:
    `config.idle` says which those are, and warns.
    """
    if conn.kind not in KINDS:
        raise ValueError(f"connection.kind={conn.kind!r}: choose one of {', '.join(KINDS)}")
    if conn.n < 1:
        raise ValueError(f"connection.n={conn.n}: needs at least one stream or fraction")
    if conn.kind in FRAC and C % conn.n:
        raise ValueError(f"connection.n={conn.n}: fractions must divide model.hidden_size={C} ({conn.kind})")
    if conn.kind == "mhc" and conn.sinkhorn_iterations < 1:
        raise ValueError(
            f"connection.sinkhorn_iterations={conn.sinkhorn_iterations}: needs at least 1 (paper: 20)"
        )
    if conn.pre_eps < 0:
        raise ValueError(
            f"connection.pre_eps={conn.pre_eps}: must not be negative (paper: 0, DeepSeek-V4: 1e-6)"
        )


def streams(conn: Any) -> int:
    """Width factor of the stream between sub-layers and between pipeline stages, in units of C."""
    return conn.n if conn.kind in (*HYPER, "mhc") else 1


def contraction(conn: Any) -> str:
    """How the streams become one: `sum`, `mean` or `head`. A kind that has no streams has nothing to contract."""
    return conn.contract if conn.kind in (*HYPER, "mhc") else "sum"


def norm_parameters(conn: Any, width: int) -> int:
    """|norm| of a dynamic predictor over `width` channels. Norms carry a weight and no bias, as the papers
    count."""
    return 0 if conn.norm.endswith("_plain") else width


def parameters(conn: Any, C: int) -> int:
    """Exact number of parameters of one sub-layer's connection (HC: 2409.19606 B.1; FC: 2503.14125; mHC:
    2512.24880)."""
    n = conn.n
    match conn.kind:
        case "residual":
            return 0
        case "shc":
            return n * (n + 2)
        case "dhc":
            return norm_parameters(conn, C) + C * (n + 2) + n * (n + 2) + 2
        case "sfc":
            return n * (2 * n + 1)
        case "dfc":
            return norm_parameters(conn, C // n) + C // n * (2 * n + 1) + n * (2 * n + 1) + 2
        case "mhc":
            return _mhc_parameters(conn, C)
    raise ValueError(f"connection.kind={conn.kind!r}: choose one of {', '.join(KINDS)}")


def _mhc_parameters(conn: Any, C: int) -> int:
    """Sum over pre (n), post (n), res (n^2) of: columns of phi, biases, one alpha; disabled ones have
    none."""
    n = conn.n
    columns = n * conn.use_pre + n * conn.use_post + n * n * conn.use_res
    return n * C * columns + columns + conn.use_pre + conn.use_post + conn.use_res


def contract_parameters(conn: Any, C: int) -> int:
    """Parameters of the contraction, once per network: a learned head has phi_head [nC, n], b_head [n],
    alpha_head."""
    n = streams(conn)
    return n * C * n + n + 1 if contraction(conn) == "head" else 0


def flops(conn: Any, C: int) -> int:
    """Forward FLOPs per token of one connection, a multiply-add counted as two.

    Counted: reading, mixing, writing, and the products that predict coefficients. Not counted, as in the
    papers' 2 x parameters for a model: norms, activations and the Sinkhorn iterations (about 4 n^2 per
    iteration, no C).
    """
    n = conn.n
    move = 2 * n * (n + 2) * C
    match conn.kind:
        case "residual":
            return C
        case "shc":
            return move
        case "dhc":
            return 2 * move
        case "sfc":
            return 2 * (2 * n + 1) * C
        case "dfc":
            return 4 * (2 * n + 1) * C
        case "mhc":
            columns = n * conn.use_pre + n * conn.use_post + n * n * conn.use_res
            return move + 2 * n * C * columns
    raise ValueError(f"connection.kind={conn.kind!r}: choose one of {', '.join(KINDS)}")


def paper_flops(conn: Any, C: int) -> int | None:
    """The same by the HC paper's printed formula, None where no paper prints one that can be evaluated.

    The static rows of HC follow 2 n (n + 2) C exactly. The dynamic rows that the HC and FC papers print
    cannot be reproduced by a count of the operations, and mHC prints none.
    """
    return 2 * conn.n * (conn.n + 2) * C if conn.kind == "shc" else None


def contract_flops(conn: Any, C: int) -> int:
    """Forward FLOPs per token of the contraction, once per network."""
    n = streams(conn)
    return (n - 1) * C if contraction(conn) != "head" else 2 * n * C * n + 2 * n * C


def saved_bytes(conn: Any, C: int, itemsize: int) -> int:
    """Bytes a token that backward holds of one connection without recomputation, x and y not counted.

    The streams in their own precision (`itemsize` bytes an element), the coefficients, and what plain torch
    copies for the reads of HC and FC: the streams once where static; where dynamic, normalised streams before
    and after the norm's weight, and a copy in fp32 for each of two uses if the streams are narrower. mHC's
    read and write keep no copies.
    """
    n, w, compute = conn.n, streams(conn), max(itemsize, 4)
    state = w * C
    match conn.kind:
        case "residual":
            return 0
        case "shc" | "sfc":
            return state * (itemsize + compute)
        case "dhc" | "dfc":
            copies = 1 + (not conn.norm.endswith("_plain")) + 2 * (itemsize < compute)
            predicted, read = (n * (n + 2), n) if conn.kind == "dhc" else (n * (2 * n + 1), n * n)
            return state * (itemsize + copies * compute) + compute * (n + predicted + read + n + n * n)
        case "mhc":
            return state * itemsize + compute * (2 * n * n + 4 * n + 1)
    raise ValueError(f"connection.kind={conn.kind!r}: choose one of {', '.join(KINDS)}")


def weight_decay(conn: Any, parameter_name: str) -> bool:
    """Whether a connection's or contraction's parameter takes weight decay. Every parameter has its own
    answer.

    HC and FC as the papers say: static parts none, dynamic parts (projections and their scales) yes. mHC
    prints nothing; chosen here: the projection phi yes, gates and biases no, because decay would pull the
    biases, which hold the network near the identity, towards a uniform mixture. Norm weights none. Raises
    ValueError for a name that no connection has.
    """
    name = parameter_name.rsplit(".", 1)[-1]
    if name in _DECAYED:
        return True
    if name in _NOT_DECAYED:
        return False
    raise ValueError(f"{parameter_name!r} is not a parameter of a connection (kind {conn.kind})")
