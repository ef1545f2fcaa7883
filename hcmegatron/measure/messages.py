"""Seconds of messages and collectives of a run's own sizes, and what a message takes from a rank's computation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from hcmegatron.measure.stages import Times, timed
from hcmegatron.platform.distributed import device
from schedules.actions import Kind
from schedules.placement import Placement
from schedules.runtime.torch_distributed import channels
from schedules.runtime.transport import Lent, Pending, Transport
from schedules.schedule import Message

REPEATS = 12
OF_A_ROUND = 3
WORK = 4  # hops' time, while which a rank computes beside its messages: none is waited for


class Hop:
    """Messages between this pipeline rank and a neighbour, over channels that a step uses; ranks 0 and 1, 2 and 3 and
    so on are pairs, which exchange at the same time. A last rank without a partner does nothing. Messages are received
    as in a step: into the transport's own buffers. Collective.
    """

    def __init__(self, transport: Transport, where: Placement, rank: int, message: Tensor) -> None:
        self.transport, self.message = transport, message
        self._buffers, self._shape = transport.buffers(message.dtype, message.device), tuple(message.shape)
        self._numbers = count()
        self._first = rank % 2 == 0
        self._out = self._in = None
        pair = {rank, rank + 1} if self._first else {rank - 1, rank}
        for source, target in channels(where):
            ranks = where.rank_of[source], where.rank_of[target]
            if set(ranks) == pair:
                at = Kind.F if where.next(source) == target else Kind.B, source, target, ranks
                if ranks[0] == rank and self._out is None:
                    self._out = at
                elif ranks[1] == rank and self._in is None:
                    self._in = at
        seconds = torch.tensor(max(self._trips(REPEATS), default=0.0), device=device())
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        self._work = work_for(WORK * float(seconds))

    def round(self) -> Times:
        """Seconds of a message one way, nothing computed meanwhile; and of some computation without and with messages
        beside it, one sent and one received."""
        if not self._out:
            return {}
        found: Times = {"hop": self._trips(OF_A_ROUND), "alone": [], "beside": []}
        for _ in range(OF_A_ROUND):
            found["alone"].append(timed(self._work))
            found["beside"].append(timed(self._beside))
        return found

    def _trips(self, repeats: int) -> list[float]:
        return [timed(self._there_and_back) / 2 for _ in range(repeats)] if self._out else []

    def _send(self, number: int) -> Pending:
        payload, source, target, ranks = self._out
        return self.transport.send(Message(payload, source, target, number, *ranks), self.message)

    def _receive(self, number: int) -> Callable[[], None]:
        """Posts it; what is returned waits for the message and gives its buffer back."""
        payload, source, target, ranks = self._in
        buffer = self._buffers.take(self._shape)
        coming = self.transport.receive(Message(payload, source, target, number, *ranks), buffer)

        def arrived() -> None:
            coming.wait()
            self._buffers.give_back(cast(Lent, coming).tensor if self.transport.lends else buffer)

        return arrived

    def _there_and_back(self) -> None:
        number = next(self._numbers)
        arrived = self._receive(number)
        if not self._first:
            arrived()
        self._send(number).wait()
        if self._first:
            arrived()

    def _beside(self) -> None:
        number = next(self._numbers)
        arrived = self._receive(number)
        going = self._send(number)
        self._work()
        arrived()
        going.wait()


def work_for(seconds: float) -> Callable[[], None]:
    """A computation of about so many seconds, as a stage's: matmuls. The same number of them on every rank."""
    a = torch.randn(256, 256, device=device())
    one = min(timed(lambda: a @ a) for _ in range(5))
    repeats = torch.tensor(max(1.0, seconds / one), device=device())
    dist.all_reduce(repeats, dist.ReduceOp.MAX)

    def work() -> None:
        for _ in range(int(repeats)):
            a @ a

    return work


def collectives(sizes: dict[str, int]) -> dict[str, tuple[int, list[float]]]:
    """By name the bytes and seconds of collectives over all ranks, and of a copy, which needs no other rank.

    Args:
        sizes: by name (all-reduce, all-gather, all-to-all, copy) the bytes of a rank's part.
    """
    ranks, found = dist.get_world_size(), {}
    for name, size in sizes.items():
        largest = torch.tensor(size, device=device())  # stages differ
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        size = int(largest)
        own = torch.zeros(max(ranks, size // 4 // ranks * ranks), device=device())
        result = torch.empty_like(own)
        parts = [torch.empty_like(own) for _ in range(ranks)] if name == "all-gather" else []
        run: dict[str, Callable[[], object]] = {
            "all-reduce": lambda a=own: dist.all_reduce(a),
            "all-gather": lambda a=own, b=parts: dist.all_gather(b, a),
            "all-to-all": lambda a=own, b=result: dist.all_to_all_single(b, a),
            "copy": lambda a=own, b=result: b.copy_(a),
        }
        if name == "copy" or ranks > 1:
            run[name]()
            found[name] = own.nbytes, [timed(run[name]) for _ in range(REPEATS)]
    return found
