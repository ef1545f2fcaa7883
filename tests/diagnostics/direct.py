"""The figures of an observation by plain loops over tokens and sub-layers, from what was read in fp64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hcmegatron.config.schema import Config


def arrays(config: Config, direct: dict[str, Any]) -> dict[str, Any]:
    """As docs/diagnostics.md has them."""
    S = 2 * config.model.layers
    kind = config.connection.kind
    n = 1 if kind == "residual" else config.connection.n
    H = [np.concatenate(direct["H"][k]) for k in range(S + 1)]
    H = [h.reshape(len(h), n, -1) for h in H]
    x = [np.concatenate(direct["x"][k]) for k in range(S)]
    T = len(x[0])
    pre, post, res = (
        np.stack([_coefficient(direct["read"][k], which, n, T) for k in range(S)]) for which in range(3)
    )
    found: dict[str, Any] = {
        "sublayers": [f"layer {k // 2 + 1} {('attention', 'mlp')[k % 2]}" for k in range(S)],
        "residual_map": res.mean(1),
        "residual_diagonal": np.array([[res[k, :, i, i].mean() for i in range(n)] for k in range(S)]),
        "residual_entropy": [np.mean([_entropy(m) for m in res[k]]) for k in range(S)],
        "pre": pre.mean(1),
        "post": post.mean(1),
        "pre_std": pre.std(1),
        "post_std": post.std(1),
        "residual_std": res.std(1),
        "stream_norm": np.array([np.sqrt((h**2).sum(-1)).mean(0) for h in H]),
        "stream_similarity": np.array(
            [[[_cos(h[:, i], h[:, j]) for j in range(n)] for i in range(n)] for h in H]
        ),
    }
    cosines = [
        [a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for a, b in zip(x[k], x[k + 1], strict=True)]
        for k in range(S - 1)
    ]
    found["layer_similarity"] = [np.percentile(values, [5, 50, 95]) for values in cosines]
    gains: dict[str, list] = {}
    maps = []
    for k in range(S):
        single, whole, product = [], [], []
        for t in range(T):
            composite = np.eye(n)
            for later in range(k, S):
                composite = res[later, t] @ composite
            single.append(_gains(res[k, t]))
            whole.append(_gains(composite))
            product.append(composite)
        maps.append(np.mean(product, 0))
        for name, values in (("gain", single), ("composite", whole)):
            for way, value in zip(("forward", "backward"), np.mean(values, 0), strict=True):
                gains.setdefault(f"{name}_{way}", []).append(value)
    found |= gains | {"composite_map": maps}
    last = np.concatenate(direct["mix"]) if direct["mix"] else [None] * T
    by_stream = np.mean([_unfolded(config, pre[:, t], post[:, t], res[:, t], last[t]) for t in range(T)], 0)
    found |= {"connection_matrix": by_stream.sum(0), "connection_matrix_streams": by_stream}
    found |= _saturation(config, direct, pre, post, res)
    found |= _gradients(direct["gradients"], S)
    losses = direct["losses"]
    rise = {name: loss - losses["whole"] for name, loss in losses.items()}
    found["ablation_sublayer"] = [rise[f"sublayer {k}"] for k in range(S)]
    if n > 1:
        found["ablation_stream"] = [rise[f"stream {i}"] for i in range(n)]
    if direct["routed"]:
        counts = {layer: np.concatenate(maps).sum(0) for layer, maps in direct["routed"].items()}
        found["moe_layers"] = [layer + 1 for layer in counts]
        found["expert_load"] = [count / count.sum() for count in counts.values()]
        found["router_bias"] = direct["biases"]
    return found


def _coefficient(read: list, which: int, n: int, T: int) -> np.ndarray:
    """[T, ...] of one sub-layer: pre, post or res; those of the residual connection where there are none."""
    if which >= len(read[0]):
        return np.broadcast_to(
            [np.ones(n), np.ones(n), np.eye(n)][which], (T, n, n)[: 3 if which == 2 else 2]
        )
    values = [one[which] for one in read]
    static = values[0].ndim == (
        2 if which == 2 or (values[0].shape[-2:] == (n, n) and values[0].ndim == 2) else 1
    )
    if static:
        return np.broadcast_to(values[0], (T, *values[0].shape))
    return np.concatenate([value[:, 0] for value in values])


def _entropy(matrix: np.ndarray) -> float:
    rows = []
    for row in np.abs(matrix):
        p = row / row.sum()
        rows.append(-sum(value * math.log(value) for value in p if value > 0))
    return float(np.mean(rows))


def _cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a * b).sum(-1) / np.sqrt((a**2).sum(-1)) / np.sqrt((b**2).sum(-1))))


def _gains(matrix: np.ndarray) -> tuple[float, float]:
    n = len(matrix)
    rows = [abs(sum(matrix[o, i] for i in range(n))) for o in range(n)]
    columns = [abs(sum(matrix[o, i] for o in range(n))) for i in range(n)]
    return max(rows), max(columns)


def _unfolded(
    config: Config, pre: np.ndarray, post: np.ndarray, res: np.ndarray, mix: np.ndarray | None
) -> np.ndarray:
    """[n, S+2, S+2] of one token: one unit of T_j put in at a time, and followed through the network.

    Of fractions, a unit is one of every fraction, and what is read is the mean over the fractions of x.
    """
    S, n = post.shape
    found = np.zeros((n, S + 2, S + 2))
    for j in range(S + 1):
        held = np.ones(n) if j == 0 else post[j - 1].copy()
        for k in range(j + 1, S + 1):
            weights = pre[k - 1] if pre[k - 1].ndim == 1 else pre[k - 1].mean(0)
            found[:, k, j] = weights * held
            held = res[k - 1] @ held
        if mix is not None:  # a single-pass connection's contraction
            last = mix * held
        else:
            last = held / n if pre.ndim == 3 or config.connection.contract == "mean" else held
        found[:, S + 1, j] = last
    return found


def _saturation(
    config: Config, direct: dict, pre: np.ndarray, post: np.ndarray, res: np.ndarray
) -> dict[str, Any]:
    kind, S = config.connection.kind, len(post)
    own = direct["own"]
    found: dict[str, Any] = {}
    sizes: list[np.ndarray] = []
    if kind in ("mhc", "mhc_lite", "krom", "ihc"):
        first = config.connection.single_pass if kind == "mhc" else False  # its pre is given
        without = {0} if first else range(S) if kind == "ihc" else ()  # which begins as a row of the identity
        sizes = [
            np.concatenate([*([] if k in without else [2 * pre[k] - 1]), post[k] - 1], 1) for k in range(S)
        ]
    elif kind == "gr":
        sizes = [post[k] - 1 for k in range(S)]
    if kind in ("mhc", "mhc_lite", "krom"):
        error, spread = [], []
        for k in range(S):
            each = [max(abs(m.sum(0) - 1).max(), abs(m.sum(1) - 1).max()) for m in res[k]]
            error.append(np.mean(each))
            centred = [_centred(np.log(m)) for m in res[k]]
            spread.append(np.mean([m.max() - m.min() for m in centred]))
        found |= {"doubly_stochastic_error": error, "residual_logit_range": spread}
    if kind in ("dhc", "dfc"):
        names = ("A_m", "B", "A_r") if kind == "dhc" else ("Y", "B", "A")
        for k in range(S):
            parts = [
                (value[k] - own[k][name].T) / own[k][scale]
                for value, name, scale in zip((pre, post, res), names, ("s_a", "s_b", "s_a"), strict=True)
            ]
            sizes.append(np.concatenate([part.reshape(len(part), -1) for part in parts], 1))
    if not sizes:
        return {}
    found["gate_saturation"] = [np.mean(np.abs(size) > 0.98) for size in sizes]
    found["logit_max"] = [math.atanh(min(np.abs(size).max(), 1 - 1e-7)) for size in sizes]
    return found


def _centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(0, keepdims=True) - matrix.mean(1, keepdims=True) + matrix.mean()


def _gradients(gradients: dict[str, np.ndarray], S: int) -> dict[str, Any]:
    whole, connection, by_name = np.zeros(S), np.zeros(S), {}
    for name, gradient in gradients.items():
        parts = name.split(".")
        if parts[:2] != ["decoder", "layers"]:
            continue
        attention = parts[3] in ("attention_connection", "self_attention", "input_layernorm")
        k = 2 * int(parts[2]) + (not attention)
        square = (gradient**2).sum()
        whole[k] += square
        if parts[3].endswith("_connection"):
            connection[k] += square
            by_name.setdefault(f"gradient_norm_{parts[4]}", np.zeros(S))[k] += square
    found = {"sublayer_gradient_norm": np.sqrt(whole)}
    if by_name:
        found["gradient_norm"] = np.sqrt(connection)
    return found | {name: np.sqrt(value) for name, value in by_name.items()}
