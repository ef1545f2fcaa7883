"""Receive buffers, used over and over."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class _Buffer(NamedTuple):
    """``tensor`` is the beginning of ``flat``, whose storage is at ``address``, in the shape last asked for."""

    address: int
    flat: Tensor
    tensor: Tensor


class BufferPool:
    """Hands out tensors of any shape and takes them back. Their number grows to the most that are in use at
    once and stays; a buffer that is too small for what is asked is replaced by a larger one.

    On CUDA a buffer may be given back as soon as the work on it is enqueued on the current stream: a receive
    posted from that stream waits for it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._free: list[_Buffer] = []
        self._used: dict[int, _Buffer] = {}  # by address

    @property
    def in_use(self) -> int:
        return len(self._used)

    @property
    def size(self) -> int:
        """The number of buffers that exist."""
        return len(self._used) + len(self._free)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A contiguous tensor of the shape (a tuple), with arbitrary contents."""
        # Between two actions nothing is in the processor's caches, and every operation on a tensor is dear: so
        # one that has the shape already is handed out as it is.
        for index, buffer in enumerate(self._free):
            if buffer.tensor.shape == shape:
                del self._free[index]
                break
        else:
            buffer = self._reshaped(shape)
        self._used[buffer.address] = buffer
        return buffer.tensor

    def give_back(self, buffer: Tensor) -> None:
        self._free.append(self._used.pop(buffer.untyped_storage().data_ptr()))

    def own(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it if it lies in a buffer in use, which will be used again."""
        return tensor.clone() if tensor.untyped_storage().data_ptr() in self._used else tensor

    def _reshaped(self, shape: tuple[int, ...]) -> _Buffer:
        """The smallest free buffer that is large enough, or a new one."""
        elements = math.prod(shape)
        fitting = [i for i, free in enumerate(self._free) if free.flat.numel() >= elements]
        if fitting:
            flat = self._free.pop(min(fitting, key=lambda i: self._free[i].flat.numel())).flat
        else:
            if self._free:
                self._free.pop()
            flat = torch.empty(max(elements, 1), dtype=self.dtype, device=self.device)
        return _Buffer(flat.data_ptr(), flat, flat[:elements].view(shape))
