"""A GPU's hardware queues: whether what the hosts of several ranks enqueued runs to its end.

Every stream has one of the device's queues, handed out in turn as streams first appear. The head of a queue waits for
its event, or, if its stream is busy sending or receiving, for that to end, and everything behind it in the queue waits
with it, of whatever stream. A send or receive starts at once and keeps its stream busy until its other end is there. A
model: it has not been compared with a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tests.emulated.streams import Item


class _Rank:
    """Where one rank's host and queues are."""

    def __init__(self, log: Sequence[Item], queues: int) -> None:
        self.log, self.position = log, 0
        self.queues: list[deque[Item]] = [deque() for _ in range(queues)]
        self.queue_of = {"compute": 0}
        self.events: set[int] = set()
        self.busy: set[str] = set()

    def enqueue(self) -> bool:
        """The host goes on until it waits for an event; whether it moved."""
        before = self.position
        for item in self.log[before:]:
            if item.kind == "host":
                if item.number not in self.events:
                    break
            else:
                queue = self.queue_of.setdefault(item.stream, len(self.queue_of) % len(self.queues))
                self.queues[queue].append(item)
            self.position += 1
        return self.position > before

    def ready(self, item: Item) -> bool:
        return item.stream not in self.busy and (item.kind != "wait" or item.number in self.events)

    @property
    def left(self) -> int:
        return len(self.log) - self.position + sum(map(len, self.queues))


def left_over(logs: Sequence[Sequence[Item]], queues: int) -> int:
    """How many items never run where each rank's device has so many queues: 0 if all is well."""
    ranks = [_Rank(log, queues) for log in logs]
    halfway: dict[tuple, tuple[_Rank, str]] = {}  # of messages, the end that is there
    moved = True
    while moved:
        moved = False
        for rank in ranks:
            moved |= rank.enqueue()
            for queue in rank.queues:
                while queue and rank.ready(queue[0]):
                    item = queue.popleft()
                    moved = True
                    if item.kind == "record":
                        rank.events.add(item.number)
                    elif item.kind in ("send", "receive"):
                        message = item.channel, item.number
                        other = halfway.pop(message, None)
                        if other is None:
                            halfway[message] = rank, item.stream
                            rank.busy.add(item.stream)
                        else:
                            other[0].busy.discard(other[1])
    return sum(rank.left for rank in ranks)
