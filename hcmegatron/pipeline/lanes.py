"""The lanes that nodes run on: CUDA streams with events between them; on CPU one node after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hcmegatron.model.nodes import Lane
from hcmegatron.pipeline.node_times import NodeTimes
from schedules.runtime.gpu import GPU


class StreamOrder:
    """The order of one micro-batch's F or B over CUDA streams: each node waits for the one before.

    Attributes:
        lane, done: of the last one; None on CPU, and before the first.
    """

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.done: torch.cuda.Event | None = None


class Lanes:
    """One stream for communication and one for merges, both of high priority; computation stays on the caller's.

    Priority does not preempt what runs already: it decides whose blocks are placed first when both wait. Collectives
    that the caller waits for run on the current stream in recent torch, so that the priority of Megatron's groups is
    not theirs: the communication lane has it itself.

    Attributes:
        times: gets the times of the nodes that run on them; None: nobody asks.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams: dict[Lane, torch.cuda.Stream] = {}
        self.times: NodeTimes | None = None
        if device.type == "cuda":
            self._streams = {
                Lane.COMMUNICATION: GPU.stream(priority=-1),
                Lane.HIGH_PRIORITY: GPU.stream(priority=-1),
            }

    @contextmanager
    def on(self, lane: Lane, order: StreamOrder, needs: Iterable[Tensor | None] = ()) -> Iterator[None]:
        """What is enqueued inside runs on the lane, after the order's last node.

        Args:
            needs: tensors made on other lanes that it uses. Their memory is not reused before it has.
        """
        if not self._streams:
            yield
            return
        stream = self._streams.get(lane) or GPU.current_stream()
        if order.lane is not lane:
            if order.done is not None:
                stream.wait_event(order.done)
            elif lane in self._streams:
                stream.wait_stream(GPU.current_stream())
            for tensor in needs:
                if tensor is not None:
                    tensor.record_stream(stream)
        with GPU.on(stream):
            yield
        order.lane, order.done = lane, stream.record_event()
