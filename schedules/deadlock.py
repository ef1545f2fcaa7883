"""Running a schedule's steps without time, to see whether every rank reaches its end.

The runtime assumed here is a strict one: each rank keeps a fixed number of receives posted per channel, for
the messages that it uses next; a send completes only when its receive is posted (rendezvous); and
a rank starts no action before its earlier sends are complete. What passes cannot hang in a runtime that posts
more, buffers, or waits for less.
"""

from collections import defaultdict, deque
from collections.abc import Sequence

from schedules.schedule import Message, ScheduleStep


def find_deadlock(
    steps: Sequence[Sequence[ScheduleStep]], posted: int = 1
) -> list[tuple[int, Message | None]]:
    """Per rank, how many steps it could start and the message that stops it there; None if it reached its
    end.

    Expects every message to be sent and received once, in the same order on its channel.
    """
    sent_by: dict[Message, int] = {}  # position of the step
    used_by: dict[Message, int] = {}
    behind: dict[Message, Message] = {}  # ``posted`` before it on its channel: the one whose buffer it gets
    queues: dict[tuple[int, int], deque[Message]] = defaultdict(lambda: deque(maxlen=posted))
    for rank_steps in steps:
        for position, step in enumerate(rank_steps):
            for message in step.sends:
                sent_by[message] = position
            for message in step.receives:
                used_by[message] = position
                queue = queues[message.channel]
                if len(queue) == posted:
                    behind[message] = queue[0]
                queue.append(message)
    started = [0] * len(steps)

    def blocker(rank: int) -> Message | None:
        at = started[rank]
        for message in steps[rank][at - 1].sends if at else ():
            first = behind.get(message)
            if first is not None and started[message.target_rank] <= used_by[first]:
                return message
        for message in steps[rank][at].receives if at < len(steps[rank]) else ():
            if started[message.source_rank] <= sent_by[message]:
                return message
        return None

    peers = [
        {
            peer
            for step in rank_steps
            for m in step.receives + step.sends
            for peer in (m.source_rank, m.target_rank)
        }
        for rank_steps in steps
    ]
    ready = set(range(len(steps)))
    while ready:
        rank = ready.pop()
        before = started[rank]
        while started[rank] < len(steps[rank]) and blocker(rank) is None:
            started[rank] += 1
        if started[rank] > before:
            ready |= peers[rank] - {rank}
    return [(at, blocker(rank)) for rank, at in enumerate(started)]
