"""How messages get from rank to rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from schedules.runtime.buffers import BufferPool
from schedules.schedule import Message


class Pending(Protocol):
    """A send or a receive under way."""

    def wait(self) -> object:
        """Of a receive: returns when the tensor may be read; on CUDA by work that the current stream gets
        from now on. Of a send: returns when the tensor is no longer needed. Raises if the peer is lost.
        What it returns, as torch's does, says nothing."""
        ...


class Lent(Pending, Protocol):
    """A receive whose message lies in the transport's own memory."""

    tensor: Tensor  # once it was waited for


class Transport(ABC):
    """Messages are told apart by channel (stage edge and direction) and micro-batch. Those of one channel are
    received in the order in which they are sent; nothing is assumed about the order between channels, so a
    message that nobody waits for yet holds up no other.

    ``receives_occupy_device``: a receive that is posted takes room on the device until its message comes. ``lends``:
    messages lie in memory of the transport's own, until they are given back to its ``buffers``. ``keeps``: what is sent
    is the transport's own affair, for as long as it needs it: the tensor may have a graph, or lie in memory that is
    given back.
    """

    receives_occupy_device = False
    lends = False
    keeps = False

    def buffers(self, dtype: torch.dtype, device: torch.device) -> BufferPool:
        """What the messages of a pipeline are received into."""
        return BufferPool(dtype, device)

    @abstractmethod
    def send(self, message: Message, tensor: Tensor) -> Pending:
        """Starts sending what the current stream has computed into ``tensor`` (contiguous). Does not wait
        for the receiver to want it, though it may for one whose connection is full of what it has not read yet. The
        tensor must not change until the result's ``wait`` has returned."""

    def is_over(self, sent: Pending) -> bool:
        """Whether it is known, without asking anybody, that a send's ``wait`` would return at once."""
        return False

    @abstractmethod
    def receive(self, message: Message, buffer: Tensor) -> Pending:
        """Starts receiving into ``buffer``, contiguous and of the size that was sent. Of a transport that ``lends`` it
        may be on the meta device, and only say what is expected: the message is the result's ``tensor``, then, once
        it was waited for."""

    def flush(self) -> None:  # noqa: B027, most hold nothing back
        """Word of receives may leave only with the next message, or when something is waited for. What has not left yet
        does now: for whoever goes on to wait for the others by other means."""

    def close(self) -> None:  # noqa: B027, most have nothing to end
        """Ends what the transport has made. Between steps, and on all of its ranks."""
