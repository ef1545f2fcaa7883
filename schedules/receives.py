"""How many receives have to be posted ahead, and how early, where one costs something while it waits, as on a GPU.

There a posted receive is a kernel that spins on multiprocessors of its own until its message comes. It begins when
what was enqueued before it is over: posted before an action, when the action before that one ends. The message then
takes its hop, for which both ends have to be there.
"""

from __future__ import annotations

from collections import defaultdict

from schedules.actions import Kind
from schedules.costs import Costs
from schedules.schedule import Schedule, input_of
from schedules.simulate import simulate
from schedules.timeline import Simulation

ROUNDING = 1e-9  # of the makespan


def receive_depths(schedule: Schedule) -> dict[tuple[int, int], int]:
    """Per channel, the number of receives that have to be posted ahead so that no message finds none: the
    most that are produced and not yet taken up, in a run with free links and F = I = W = 1, B = 2, FB = F
    then B. A message taken up at the very moment when the next is produced still counts.
    """
    simulation = simulate(schedule, Costs())
    used: dict[tuple[Kind, int, int], float] = {}
    for timed in (timed for own in simulation.timeline for timed in own):
        for part in timed.action.parts:
            start = timed.start if part.kind is Kind.F else timed.backward_start
            if (needed := input_of(schedule.placement, part)) is not None:
                used[needed[0], part.stage, part.microbatch] = start
    channels: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for message, produced, _, _ in sorted(simulation.transfers, key=lambda transfer: transfer.produced):
        taken = used[message.payload, message.target, message.microbatch]
        channels[message.channel].append((produced, taken))
    return {
        channel: max(
            sum(taken >= produced for _, taken in times[: k + 1]) for k, (produced, _) in enumerate(times)
        )
        for channel, times in channels.items()
    }


def receive_leads(simulation: Simulation) -> dict[tuple[int, int, int], int]:
    """By message (source and target stage id, micro-batch), the least number of actions, 1 or more, by which its
    receive has to come before the action that needs it so that nothing starts later than with receives that are always
    posted."""
    needed: dict[tuple[Kind, int, int], tuple[int, float]] = {}
    for own in simulation.timeline:
        for position, timed in enumerate(own):
            for part in timed.action.parts:
                forward = part.kind is Kind.F
                payload = Kind.F if forward else Kind.B
                start = timed.start if forward else timed.backward_start
                if part.kind is not Kind.W:
                    needed[payload, part.stage, part.microbatch] = position, start
    leads = {}
    room = ROUNDING * simulation.makespan
    for transfer in simulation.transfers:
        message = transfer.message
        position, start = needed[message.payload, message.target, message.microbatch]
        latest = start - (transfer.arrives - transfer.leaves) + room
        own = simulation.timeline[message.target_rank]
        lead = 1
        while position > lead and own[position - lead - 1].end > latest:
            lead += 1
        leads[*message.channel, message.microbatch] = lead
    return leads


def most_ahead(leads: dict[tuple[int, int, int], int]) -> dict[tuple[int, int], int]:
    """By channel, of all its messages."""
    most: dict[tuple[int, int], int] = {}
    for (source, target, _), lead in leads.items():
        most[source, target] = max(lead, most.get((source, target), lead))
    return most
