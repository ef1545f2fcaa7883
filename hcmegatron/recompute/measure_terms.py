"""A plan's terms as they are: what autograd holds of one sub-layer's connection and norms, found by running it.

Kinds of connections, norms, precisions and kernels keep different things, so the figures are taken from the modules
that will train, on a few tokens, and scaled: bytes are a constant plus a rate times tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hcmegatron.model.nodes import SubLayer
from hcmegatron.recompute.block_plan import Terms

FEW, MORE = 2, 6  # tokens of the two trials


def measure_terms(
    sublayer: SubLayer, n: int, C: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> Terms:
    """The terms of a micro-batch of `tokens` tokens (of this rank's share of the sequence), n streams of width C."""
    with torch.enable_grad():
        (few, _), (more, projection) = (
            _saved(sublayer, torch.ones(count, 1, n, C, dtype=dtype, device=device)) for count in (FEW, MORE)
        )
    rate = (more - few) / (MORE - FEW)
    output = C * dtype.itemsize * tokens
    return Terms(
        streams=n * output + projection * tokens // MORE,
        output=output,
        rebuilt=round(few + rate * (tokens - FEW)) - output,
    )


def _saved(sublayer: SubLayer, streams: Tensor) -> tuple[int, int]:
    """Bytes of the storages saved by `read` and `write`, and T's input; without parameters. Those of the projection
    that goes with the streams to the next sub-layer."""
    streams.requires_grad_()
    y = torch.zeros_like(streams[..., 0, :]).requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        x, coefficients = sublayer.read(streams)
        after, *projection = sublayer.write(streams, y, coefficients, first_sample=0)
    # the autograd graph holds the storages apart until they are counted
    return _distinct([x, *saved], besides=_parameters(x, after)), sum(t.nbytes for t in projection)


def _distinct(tensors: list[Tensor], besides: list[Tensor]) -> int:
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in besides}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for storage, size in sizes.items() if storage not in not_counted)


def _parameters(*roots: Tensor) -> list[Tensor]:
    """The parameters that the roots' graphs would accumulate gradients into."""
    leaves, seen, waiting = [], set(), [root.grad_fn for root in roots]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), nn.Parameter):
            leaves.append(leaf)
        waiting += [following for following, _ in node.next_functions]
    return leaves
