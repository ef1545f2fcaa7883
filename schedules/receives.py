"""How early a receive has to be posted, where it costs something while it waits, as it does on a GPU.

There a posted receive is a kernel that spins on multiprocessors of its own until its message comes. It begins when
what was enqueued before it is over: posted before an action, when the action before that one ends. The message then
takes its hop, for which both ends have to be there.
"""

from __future__ import annotations

from schedules.actions import Kind
from schedules.timeline import Simulation

ROUNDING = 1e-9  # of the makespan


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
