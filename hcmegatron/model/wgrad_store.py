"""A chunk's store of weight gradients left for later, and where a weight's gradient goes when it is computed.

Where the data-parallel wrapper (training/data_parallel.py) sums gradients in the weight's precision or a higher one,
the matmul adds to its buffer itself: a gradient of its own would be written, read and added, and rounded to the
weight's precision. Elsewhere autograd gets the gradient, in W too, so that hooks on the weight fire after W and not in
I.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

# Computes a weight's gradient: adds it to the tensor given and returns None, or returns it.
WeightGradient = Callable[[Tensor | None], Tensor | None]


class DeferredWgrads:
    """The weight gradients of one I, and the tensors that they keep alive."""

    def __init__(self) -> None:
        self._closures: list[Callable[[], None]] = []
        self.tensors: list[Tensor] = []

    def add(self, weight: Tensor, gradient: WeightGradient, *needs: Tensor) -> None:
        """Leave `gradient` of the leaf `weight` for later; `needs` are the tensors that it holds."""
        assert weight.is_leaf, "a weight gradient can only be left for a leaf"
        self.defer(partial(_add_later, weight, gradient), *needs)

    def defer(self, work: Callable[[], None], *needs: Tensor) -> None:
        """Leave `work` for later, which computes and accumulates gradients; `needs` are the tensors that it holds."""
        self._closures.append(work)
        self.tensors += needs

    def run(self) -> None:
        """Compute and accumulate the gradients in the order they were left in; let go of the tensors."""
        self.tensors.clear()
        self._closures.reverse()
        while self._closures:
            self._closures.pop()()


class WeightGradStore:
    """A chunk's store of weight gradients left for later: one entry per I, first in, first out."""

    def __init__(self) -> None:
        self._entries: deque[DeferredWgrads] = deque()
        self.open: DeferredWgrads | None = None  # where a backward in progress leaves its weight gradients

    @contextmanager
    def deferring(self, queued: bool = True) -> Iterator[DeferredWgrads]:
        """Backward inside leaves weight gradients in one new entry.

        Args:
            queued: put the entry in the queue that pop_and_run serves; otherwise the caller runs it.

        Raises:
            RuntimeError: inside another `deferring` of the same store.
        """
        if self.open is not None:
            raise RuntimeError(
                "deferring() inside deferring() of the same store: end the one before beginning the next"
            )
        self.open = DeferredWgrads()
        try:
            yield self.open
            if queued:
                self._entries.append(self.open)
        finally:
            self.open = None

    def pop_and_run(self) -> None:
        """W: compute the weight gradients of the oldest I that is still waiting.

        Raises:
            RuntimeError: nothing is waiting.
        """
        if not self._entries:
            raise RuntimeError("no weight gradients are waiting: W was asked for without an I before it")
        self._entries.popleft().run()

    def __len__(self) -> int:
        """Entries waiting."""
        return len(self._entries)

    def bytes(self) -> int:
        """Memory that waiting entries keep alive, each storage counted once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for entry in self._entries
            for tensor in entry.tensors
        }
        return sum(storages.values())


class Separable:
    """A module of this project that leaves its weight gradients in `store` while that is open."""

    store: WeightGradStore | None = None


def mark_separable(weight: Tensor) -> Tensor:
    """The same weight, marked: the data-parallel wrapper expects its gradient later than autograd's hook."""
    weight.separable = True
    return weight


def gradient_for_autograd(weight: Tensor, gradient: WeightGradient) -> Tensor | None:
    """What backward returns for the weight: its gradient, or None where that is in its buffer already."""
    added = getattr(weight, "gradient_added", None)
    if added is None or weight.main_grad.dtype.itemsize < weight.dtype.itemsize:
        return gradient(None)
    gradient(weight.main_grad)
    added()
    return None


def _add_later(weight: Tensor, gradient: WeightGradient) -> None:
    with torch.no_grad():
        value = gradient_for_autograd(weight, gradient)
    if value is not None:
        torch.autograd.backward((weight,), (value,))
