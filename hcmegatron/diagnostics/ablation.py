"""A network without one of its sub-layers, or without one of its streams: an execution that leaves it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hcmegatron.model.execution import Execution, Layer
from hcmegatron.model.nodes import ActivationPolicy, MicroBatch, State, SubLayer


@dataclass(frozen=True)
class LeftOut:
    """What is left out: the output of a sub-layer (its number in the network), which then writes zeros; or a stream, or
    fraction, of n, which is zero wherever it is read, carried or contracted."""

    sublayer: int | None = None
    stream: int | None = None
    n: int = 1


class Ablated(Execution):
    """Plain, without what is left out. For forwards without gradients."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out

    def run(self, layers: Iterable[Layer], state: State, micro_batch: MicroBatch) -> State:
        """As every execution's."""
        layers = list(layers)
        numbers = {
            id(around): 2 * (layer.layer_number - 1) + place
            for layer in layers
            for place, around in enumerate(layer.sublayers)
        }
        policy = _Without(self.left_out, numbers)
        streams, *mix = super().run(layers, state, replace(micro_batch, activation_policy=policy))
        return (policy.left(streams), *mix)


class _Without(ActivationPolicy):
    """Around the reads and writes of one micro-batch."""

    def __init__(self, left_out: LeftOut, numbers: dict[int, int]) -> None:
        self.left_out, self.numbers = left_out, numbers

    def left(self, streams: Tensor) -> Tensor:
        """[s, b, w, C] with the stream that is left out at zero."""
        if self.left_out.stream is None:
            return streams
        s, b, w, C = streams.shape
        kept = streams.reshape(s, b, self.left_out.n, -1).clone()
        kept[:, :, self.left_out.stream] = 0
        return kept.view(s, b, w, C)

    def read(
        self, sublayer: SubLayer, streams: Tensor, *projection: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of what is left; a projection of all streams is no longer theirs."""
        if self.left_out.stream is None:
            return sublayer.read(streams, *projection)
        mix = projection[:1] if sublayer.single_pass else ()
        return sublayer.read(self.left(streams), *mix)

    def write(
        self,
        sublayer: SubLayer,
        streams: Tensor,
        y: Tensor,
        coefficients: tuple[Tensor, ...],
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        """Into what is left, and zeros of the sub-layer that is left out."""
        if self.numbers[id(sublayer)] == self.left_out.sublayer:
            y, bias = torch.zeros_like(y), None
        return sublayer.write(self.left(streams), y, coefficients, bias, first_sample)
