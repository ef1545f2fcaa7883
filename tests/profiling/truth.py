"""What was exposed and hidden, from what an emulation noted of itself: not by the profile's way."""

from __future__ import annotations

from collections import defaultdict

from schedules.schedule import Schedule, lower


def exposed_and_hidden(schedule: Schedule, truths, lockstep=False):
    """By rank, seconds. A stage's k-th sleep is its rank's k-th plain action; messages between two ranks arrive in the
    order in which they are sent."""
    steps = lower(schedule)
    in_flight = defaultdict(list)
    for source, truth in enumerate(truths):
        order = defaultdict(list)
        for step in steps[source]:
            for message in step.sends:
                order[message.target_rank].append(message)
        taken = defaultdict(int)
        for target, left, arrived in truth.sent:
            message = order[target][taken[target]]
            taken[target] += 1
            in_flight[message.payload, message.target, message.microbatch] = left, arrived
    found = []
    for rank, truth in enumerate(truths):
        slept = sorted(truth.slept)
        exposed = travelled = 0.0
        place = 0
        for step in steps[rank]:
            needs = {
                (m.payload, m.target, m.microbatch): in_flight[m.payload, m.target, m.microbatch]
                for m in step.receives
            }
            travelled += sum(arrived - left for left, arrived in needs.values())
            waits = [[] for _ in step.action.parts]
            for index, part in enumerate(step.action.parts):
                payload = "F" if part.kind == "F" else "B"
                if flight := needs.get((payload, part.stage, part.microbatch)):
                    waits[0 if lockstep else index].append(flight)
            for own in waits:
                at = slept[place - 1][1] if place else min(min(t.slept)[0] for t in truths)
                start = slept[place][0]
                for left, arrived in own:
                    until = min(max(at, arrived), start)
                    exposed += max(0.0, min(until, arrived) - max(at, left))
                    at = until
                place += 1
        found.append((exposed, travelled - exposed))
    return found
