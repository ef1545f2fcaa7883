"""Matrices made whole on one rank each, and their updates brought back to where the pieces are (matrix_plan.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hcmegatron.planner.layers import Matrix
from hcmegatron.planner.newton_schulz import flops
from hcmegatron.platform.collective_failure import gathered
from hcmegatron.platform.distributed import device
from hcmegatron.training.matrix_plan import Box, Exchange, Place, gathering, returning, rounds

MOST = 2**26  # numbers of a round, a rank: 256 MiB in fp32 to send, and as many to receive


class Whole(NamedTuple):
    """A matrix and its precisions: of the model's weight, in which it is orthogonalised, and of what is updated."""

    matrix: Matrix
    dtype: torch.dtype
    updated: torch.dtype


class Piece(NamedTuple):
    """A box of a matrix, and where it is: from element `first` on of an optimizer's parameter, flattened."""

    box: Box
    whole: Whole
    weights: Tensor
    first: int

    def of(self, tensor: Tensor) -> Tensor:
        """The box's elements of a tensor like `weights`: a view [rows, columns]."""
        return tensor.detach().view(-1)[self.first : self.first + self.box.numbers].view(self.box.size)


class WholeMatrices:
    """The pieces of this rank, and the plan of all. Creating one and going through `updates` are collective.

    Args:
        pieces: that this rank's optimizer holds.
        group: the ranks that hold pieces of the same matrices: those of a pipeline stage.
    """

    def __init__(self, pieces: Sequence[Piece], group: dist.ProcessGroup) -> None:
        self.group, rank = group, group.rank()
        self.pieces = {piece.box: piece for piece in pieces}
        own = list(self.pieces), {piece.box.place: piece.whole for piece in pieces}
        everyones = gathered(own, group)
        held = [boxes for boxes, _ in everyones]
        self.wholes: dict[Place, Whole] = {}
        for _, wholes in everyones:
            self.wholes |= wholes
        precisions = {whole.updated for whole in self.wholes.values()}
        # one message for all: a narrower one loses nothing in it (connections are fp32 beside an fp64 network)
        self.dtype = max(precisions, key=lambda dtype: dtype.itemsize, default=torch.float32)
        self._check(held)
        costs = {place: float(flops(whole.matrix, 1)) for place, whole in self.wholes.items()}
        self.exchanges = [
            (gathering(each, rank, len(held)), returning(each, held, rank))
            for each in rounds(held, costs, MOST)
        ]

    def updates(
        self, given: Callable[[Piece], Tensor], direction: Callable[[Tensor, Matrix], Tensor]
    ) -> Iterator[tuple[Piece, Tensor]]:
        """Every piece with its part of what `direction` makes of a whole matrix.

        Args:
            given: a piece's part of that matrix.
        """
        for there, back in self.exchanges:
            values: dict[Place, Tensor] = {}
            for box, part in self._swapped(there, lambda box: given(self.pieces[box])):
                matrix = self.wholes[box.place].matrix
                if box.place not in values:
                    values[box.place] = part.new_empty(matrix.out, matrix.into)
                _inside(values[box.place], box).copy_(part)
            for place, value in values.items():
                whole = self.wholes[place]
                values[place] = direction(value.to(whole.dtype), whole.matrix).to(self.dtype)
            parts = self._swapped(back, lambda box, values=values: _inside(values[box.place], box))
            yield from ((self.pieces[box], part) for box, part in parts)

    def _swapped(self, exchange: Exchange, value: Callable[[Box], Tensor]) -> Iterator[tuple[Box, Tensor]]:
        """What is received, where every rank sends the `value` of its boxes."""
        out, into = (
            [sum(box.numbers for box in boxes) for boxes in side]
            for side in (exchange.sent, exchange.received)
        )
        flat = torch.empty(sum(out), dtype=self.dtype, device=device())
        sent = list(chain.from_iterable(exchange.sent))
        for box, place in zip(sent, flat.split([box.numbers for box in sent]), strict=True):
            place.view(box.size).copy_(value(box))
        if exchange.travels:
            arrived = torch.empty(sum(into), dtype=self.dtype, device=device())
            dist.all_to_all_single(arrived, flat, into, out, group=self.group)
            flat = arrived
        received = list(chain.from_iterable(exchange.received))
        for box, part in zip(received, flat.split([box.numbers for box in received]), strict=True):
            yield box, part.view(box.size)

    def _check(self, held: Sequence[Sequence[Box]]) -> None:
        """That all pieces together are all matrices."""
        numbers: Counter[Place] = Counter()
        for box in set(chain.from_iterable(held)):
            numbers[box.place] += box.numbers
        sizes = {place: whole.matrix.size for place, whole in self.wholes.items()}
        assert numbers == sizes, f"pieces that are not the whole: {dict(numbers.items() ^ sizes.items())}"


def _inside(whole: Tensor, box: Box) -> Tensor:
    """A box of a whole matrix, as a view."""
    return whole[tuple(slice(o, o + size) for o, size in zip(box.offset, box.size, strict=True))]
