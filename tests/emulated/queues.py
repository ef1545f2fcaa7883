"""A GPU's hardware queues: whether what the hosts of several ranks enqueued runs to its end.

Every stream has one of the device's queues, handed out in turn as streams first appear. The head of a queue waits for
its event, or, if its stream is busy communicating, for that to end, and everything behind it in the queue waits with
it, of whatever stream. A send, a receive or a collective starts at once and keeps its stream busy until its other ends
are there. A model: it has not been compared with a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tests.emulated.streams import Item

_COMMUNICATES = ("send", "receive", "collective")


class _Rank:
    """Where one rank's host and queues are."""

    def __init__(self, log: Sequence[Item], queues: int) -> None:
        self.log, self.position = log, 0
        self.queues: list[deque[Item]] = [deque() for _ in range(queues)]
        self.queue_of = {"compute": 0}
        self.events: set[int] = set()
        self.busy: dict[str, Item] = {}  # streams that communicate

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
    return sum(rank.left for rank in _run(logs, queues))


def held_up(logs: Sequence[Sequence[Item]], queues: int) -> list[str]:
    """Of a hang, in words, every message and collective that is begun and holds its stream; nothing if all is well."""
    ranks = _run(logs, queues)
    return [
        f"rank {number}: {item.kind} {item.number} of {_name(item)} holds stream {stream}; "
        + _missing(ranks, number, item)
        for number, rank in enumerate(ranks)
        for stream, item in rank.busy.items()
    ]


def _missing(ranks: Sequence[_Rank], own: int, item: Item) -> str:
    """Where the other end of a message waits, or the other ends of a collective."""
    where = []
    for number, rank in enumerate(ranks):
        if number == own:
            continue
        for index, queue in enumerate(rank.queues):
            if any(_matches(item, other) for other in queue):
                head = queue[0]
                where.append(f"rank {number}'s is in queue {index} behind a {head.kind} on {head.stream}")
        if any(_matches(item, other) for other in rank.log[rank.position :]):
            where.append(f"rank {number}'s host has not come to it")
    return " and ".join(where) or "there is no other end"


def _matches(item: Item, other: Item) -> bool:
    return other.kind in _COMMUNICATES and other.channel == item.channel and other.number == item.number


def _name(item: Item) -> str:
    return f"group {item.channel[0]}" if item.kind == "collective" else str(item.channel)


def _run(logs: Sequence[Sequence[Item]], queues: int) -> list[_Rank]:
    """The ranks when nothing moves any more."""
    ranks = [_Rank(log, queues) for log in logs]
    arrived: dict[tuple, list[tuple[_Rank, str]]] = {}  # of messages and collectives, the ends that are there
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
                    elif item.kind in _COMMUNICATES:
                        ends = arrived.setdefault((item.channel, item.number), [])
                        ends.append((rank, item.stream))
                        rank.busy[item.stream] = item
                        if len(ends) == (item.channel[1] if item.kind == "collective" else 2):
                            for other, stream in ends:
                                other.busy.pop(stream)
                            del arrived[item.channel, item.number]
    return ranks
