"""From what was recorded of tokens to the figures of an observation. All of it is pure, in the record's fp64.

Averages are over the observed tokens, and are taken last: a gain is each token's own, a composite the product of each
token's own maps (as mHC's Fig. 3 has them), and the maps that are shown (its Fig. 8) are averaged as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hcmegatron.diagnostics import gains
from hcmegatron.diagnostics.columns import Columns
from hcmegatron.diagnostics.similarity import off_diagonal_mean, percentiles
from hcmegatron.diagnostics.unfolded import unfolded

Arrays = dict[str, np.ndarray]


def names(layers: int) -> list[str]:
    """Of the sub-layers, in depth order; layers count from 1, as in the log."""
    return [f"layer {layer} {part}" for layer in range(1, layers + 1) for part in ("attention", "mlp")]


def reduced(
    columns: Columns,
    record: Tensor,
    layer_similarity: Tensor,
    *,
    activates: bool,
    doubly_stochastic: bool,
    contraction: str,
) -> Arrays:
    """The arrays of docs/diagnostics.md that the connections give.

    Args:
        record: [S + 1, T, columns.width], of all ranks.
        layer_similarity: [S - 1, T].
        activates: whether something of the coefficients saturates.
        doubly_stochastic: whether the residual maps are meant to be.
        contraction: mean, last mix, or another one, in whose place the sum is.
    """
    of_tokens = columns.split(record)
    pre, post, res = (of_tokens[name][:-1] for name in ("pre", "post", "res"))
    found = {
        "residual_map": res.mean(1),
        "residual_diagonal": res.diagonal(dim1=-2, dim2=-1).mean(1),
        "residual_entropy": gains.row_entropy(res).mean(1),
        **{f"{name}_std": value.std(1, correction=0) for name, value in (("post", post), ("residual", res))},
        "pre_std": _of_vectors(pre.std(1, correction=0)),
        "pre": _of_vectors(pre.mean(1)),
        "post": post.mean(1),
    }
    composite = gains.composites(res)
    for name, maps in (("gain", res), ("composite", composite)):
        forward, backward = gains.amax_gains(maps)
        found |= {f"{name}_forward": forward.mean(1), f"{name}_backward": backward.mean(1)}
    found["composite_map"] = composite.mean(1)
    last = torch.full((1, columns.n), 1 / columns.n if contraction == "mean" else 1.0, dtype=pre.dtype)
    if contraction == "last mix":
        last = of_tokens["pre"][-1].squeeze(-2)
    by_stream = unfolded(pre, post, res, last)
    found |= {"connection_matrix": by_stream.sum(0), "connection_matrix_streams": by_stream}
    found |= {
        "stream_norm": of_tokens["norm"].mean(1),
        "stream_similarity": of_tokens["similarity"].mean(1),
        "layer_similarity": percentiles(layer_similarity),
    }
    if activates:
        found["gate_saturation"] = of_tokens["saturated"][:-1].mean(1)
        largest = of_tokens["activation"][:-1].amax(1)
        found["logit_max"] = largest.clamp(max=1 - 1e-7).atanh()  # where fp32 has rounded it to 1: 8.4
    if doubly_stochastic:
        found["doubly_stochastic_error"] = gains.doubly_stochastic_error(res).mean(1)
        found["residual_logit_range"] = gains.logit_range(res).mean(1)
    return {name: value.numpy() for name, value in found.items()}


def of_experts(counts: Tensor, biases: dict[int, Tensor]) -> Arrays:
    """Of layers with experts: which they are, the share of the tokens' choices that each expert got, router biases.

    Args:
        counts: [layers, experts]; 0 in dense layers.
        biases: by layer, [experts]; none where experts are balanced in another way.
    """
    layers = counts.sum(1).nonzero().flatten()
    if not len(layers):
        return {}
    found = {
        "moe_layers": (layers + 1).numpy(),
        "expert_load": (counts[layers] / counts[layers].sum(1, keepdim=True)).numpy(),
    }
    if biases:
        found["router_bias"] = np.stack([biases[int(layer)].numpy() for layer in layers])
    return found


def scalars(arrays: Arrays) -> dict[str, float]:
    """The figures of an observation that are one number: the worst over the depth, as their names say."""
    found = {
        f"{ours}_{way}_max": arrays[f"{name}_{way}"].max()
        for ours, name in (("single_gain", "gain"), ("composite_gain", "composite"))
        for way in ("forward", "backward")
    }
    last = arrays["stream_similarity"][-1]
    if len(last) > 1:
        found["stream_similarity_mean"] = off_diagonal_mean(
            torch.from_numpy(arrays["stream_similarity"])
        ).mean()
        found["stream_similarity_end"] = off_diagonal_mean(torch.from_numpy(last))
    found["layer_similarity_median"] = np.median(arrays["layer_similarity"][:, 1])
    for name, ours in (
        ("gate_saturation", "gate_saturation_max"),
        ("logit_max", "logit_max"),
        ("doubly_stochastic_error", "doubly_stochastic_error"),
        ("gradient_norm", "connection_gradient_norm_max"),
        ("sublayer_gradient_norm", "sublayer_gradient_norm_max"),
        ("ablation_sublayer", "ablation_sublayer_max"),
        ("ablation_stream", "ablation_stream_max"),
        ("expert_load", "expert_load_max"),
    ):
        if name in arrays:
            found[ours] = arrays[name].max()
    return {name: float(value) for name, value in found.items()}


def _of_vectors(pre: Tensor) -> Tensor:
    """[S, 1, n] without the middle, where x is one sum over the streams; FC's [S, m, m] as it is."""
    return pre.squeeze(1) if pre.shape[1] == 1 else pre
