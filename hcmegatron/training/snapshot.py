"""What training is stopped for when it saves in the background: a copy of the state in host memory, and a thread.

A thread, and no process: Megatron's savers fork one from a process that has threads and CUDA, or hand tensors to one
that has to be started first, which takes seconds. Writing, fsync and summing let go of the interpreter, so that a
thread of the rank itself leaves the step all but what the work takes of the processors. It may not use the groups that
training uses, whose messages would come in another order; saving has a gloo group of its own (checkpoint.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from hcmegatron.training.shard_files import TensorShard

T = TypeVar("T")


class Snapshot:
    """Copies of a state's pieces, in buffers that are kept from save to save: page-locked where it is on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, pieces: list[TensorShard]) -> list[TensorShard]:
        """The pieces as they are now, over the copies of the last time. MemoryError where there is no room for them."""
        return [replace(piece, data=self._buffer(piece).copy_(piece.data)) for piece in pieces]

    def _buffer(self, piece: TensorShard) -> Tensor:
        place, data = (piece.key, piece.offset), piece.data
        if place not in self._buffers:
            try:
                self._buffers[place] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
            except RuntimeError as error:  # as which torch raises it; it ends the save, and not the run
                if not any(words in str(error) for words in ("allocate memory", "out of memory")):
                    raise
                raise MemoryError(
                    "no memory for the copy that saving keeps; checkpoint.asynchronous=false goes without"
                ) from error
        return self._buffers[place]


def at_once(work: Callable[[], T]) -> Future[T]:
    """Do it, and then go on."""
    future: Future[T] = Future()
    _settle(future, work)
    return future


def in_background(work: Callable[[], T]) -> Future[T]:
    """Do it in a thread of its own, which keeps no process from ending."""
    future: Future[T] = Future()
    threading.Thread(target=_settle, args=(future, work), name="checkpoint", daemon=True).start()
    return future


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # for whoever asks; torch's own for a checkpoint is no Exception
        future.set_exception(error)
