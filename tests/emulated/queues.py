"""A GPU's hardware queues: whether what the hosts of several ranks enqueued runs to its end.

Every stream has one of the device's queues, handed out in turn as streams first appear. The head of a queue waits for
its event, or, if its stream is busy communicating, for that to end, and everything behind it in the queue waits with
it, of whatever stream. A message or collective starts at once and keeps its stream busy until its other ends are there.
The host goes on until it waits for an event, or for the hosts that a communicator is made with. A model: it has not
been compared with a device.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence

from tests.emulated.streams import Item

COMMUNICATES = ("send", "receive", "collective")


class _Rank:
    """Where one rank's host and queues are."""

    def __init__(self, log: Sequence[Item], queues: int) -> None:
        self.log, self.position = log, 0
        self.queues: list[deque[Item]] = [deque() for _ in range(queues)]
        self.queue_of = {"compute": 0}
        own = {item.number for item in log if item.kind == "record"}
        # what was recorded before the log begins is over
        self.events = {item.number for item in log if item.kind in ("wait", "host")} - own
        self.busy: set[str] = set()

    def enqueue(self, arrived: dict[Hashable, set[int]], number: int) -> bool:
        """The host goes on until it waits; whether it moved."""
        before = self.position
        for item in self.log[before:]:
            if item.kind == "host":
                if item.number not in self.events:
                    break
            elif item.kind == "connect":
                arrived[item.channel].add(number)
                if len(arrived[item.channel]) < item.members:
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
    underway: dict[tuple, list[tuple[_Rank, str]]] = defaultdict(list)  # the ends that are there
    arrived: dict[Hashable, set[int]] = defaultdict(set)  # hosts, at communicators that are being made
    moved = True
    while moved:
        moved = False
        for number, rank in enumerate(ranks):
            moved |= rank.enqueue(arrived, number)
            for queue in rank.queues:
                while queue and rank.ready(queue[0]):
                    item = queue.popleft()
                    moved = True
                    if item.kind == "record":
                        rank.events.add(item.number)
                    elif item.kind in COMMUNICATES:
                        operation = item.kind == "collective", item.channel, item.number
                        ends = underway[operation]
                        ends.append((rank, item.stream))
                        rank.busy.add(item.stream)
                        if len(ends) == item.members:
                            for other, stream in underway.pop(operation):
                                other.busy.discard(stream)
    return sum(rank.left for rank in ranks)


def disagreements(logs: Sequence[Sequence[Item]]) -> list[str]:
    """Operations of a communicator that are not the same on all of its members, in words: its order is all that NCCL
    matches them by."""
    said: dict[tuple, list[tuple[int, Hashable]]] = defaultdict(list)
    members: dict[tuple, int] = {}
    for rank, log in enumerate(logs):
        for item in log:
            if item.kind in COMMUNICATES:
                operation = item.kind == "collective", item.channel, item.number
                said[operation].append((rank, item.what))
                members[operation] = item.members
    found = []
    for operation, own in said.items():
        _, channel, number = operation
        if len(own) != members[operation]:
            found.append(f"operation {number} of {channel}: on ranks {[rank for rank, _ in own]} alone")
        elif len({what for _, what in own}) > 1:
            found.append(f"operation {number} of {channel}: {own}")
    return found
