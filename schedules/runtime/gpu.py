"""The GPU, for all that this project itself asks of one: streams, events and communicators.

One object, so that an emulation can take the place of what a CPU cannot answer (`present`, `device`, `holds`,
`backend`, `channel_options`); what torch and Megatron ask of CUDA they ask in ways of their own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# A posted receive holds every block of its kernel, each nearly all registers of a multiprocessor, until its message
# comes. NCCL would take 16 to 32 for a large message over NVLink. How few still carry a message in the time that the
# schedule leaves it has not been measured on a device yet.
CHANNEL_BLOCKS = 4


class Gpu:
    """This process's."""

    backend = "nccl"  # of process groups

    def present(self) -> bool:
        """Starts nothing."""
        return torch.cuda.is_available()

    def device(self) -> torch.device:
        """The current one, of those that this process sees."""
        return torch.device("cuda", torch.cuda.current_device())

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is in the GPU's memory, which is reused without the host's waiting."""
        return tensor.is_cuda

    def stream(self, priority: int = 0) -> torch.cuda.Stream:
        """One of torch's; the lower the number, the sooner its blocks are placed."""
        return torch.cuda.Stream(priority=priority)

    def current_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream()

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[None]:
        """What is enqueued inside goes to the stream."""
        return torch.cuda.stream(stream)

    def mark(self) -> torch.cuda.Event:
        """A timed event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """The host waits for all that it has enqueued."""
        torch.cuda.synchronize()

    def channel_options(self, timeout: timedelta | None) -> dist.ProcessGroupNCCL.Options:
        """Of a communicator for the messages of one channel: of high priority, with few blocks. A new object for every
        group, for ``new_group`` writes into it.

        Args:
            timeout: how long a message may take; None: torch's default.
        """
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options.config.max_ctas = CHANNEL_BLOCKS
        if timeout is not None:
            options._timeout = timeout
        return options


GPU = Gpu()
