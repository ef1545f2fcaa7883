"""Receive buffers, used over and over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class BufferPool:
    """Hands out tensors of any shape and takes them back. Their number grows to the most that are in use at
    once and stays; a buffer that is too small for what is asked is replaced by a larger one.

    On CUDA a buffer may be given back as soon as the work on it is enqueued on the current stream: a receive
    posted from that stream waits for it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._free: list[Tensor] = []
        self._used: dict[int, Tensor] = {}  # flat storage by address

    @property
    def in_use(self) -> int:
        return len(self._used)

    @property
    def size(self) -> int:
        """The number of buffers that exist."""
        return len(self._used) + len(self._free)

    def take(self, shape: Sequence[int]) -> Tensor:
        """A contiguous tensor of the shape, with arbitrary contents."""
        elements = math.prod(shape)
        fitting = [i for i, flat in enumerate(self._free) if flat.numel() >= elements]
        if fitting:
            flat = self._free.pop(min(fitting, key=lambda i: self._free[i].numel()))
        else:
            if self._free:
                self._free.pop()
            flat = torch.empty(max(elements, 1), dtype=self.dtype, device=self.device)
        self._used[flat.data_ptr()] = flat
        return flat[:elements].view(tuple(shape))

    def give_back(self, buffer: Tensor) -> None:
        self._free.append(self._used.pop(buffer.data_ptr()))

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in a buffer that is in use."""
        return tensor.untyped_storage().data_ptr() in self._used
