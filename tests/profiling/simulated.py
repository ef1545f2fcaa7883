"""Records that ranks would have made of a simulated step."""

from __future__ import annotations

from hcmegatron.profiling.rank_step import Ran, RankRecord, RankStep, Sent, Waited
from schedules.timeline import Simulation, rank_timelines


def records(simulation: Simulation, clocks=None, unit=0.02, start=100.0):
    """Of every rank, `unit` seconds for a unit of the costs, whose clock is `clocks[rank]` seconds ahead."""
    clocks = clocks or [0.0] * simulation.schedule.ranks
    found = []
    for rank, (timeline, own) in enumerate(zip(simulation.timeline, rank_timelines(simulation), strict=True)):

        def at(time, rank=rank):
            return start + unit * time + clocks[rank]

        actions = []
        for position, timed in enumerate(timeline):
            parts = timed.action.parts
            if len(parts) == 1:
                actions.append(Ran(position, str(parts[0]), at(timed.start), at(timed.end)))
                continue
            lockstep = not simulation.costs.early
            split = timed.start + simulation.costs.stages[0].F if lockstep else timed.forward_end
            actions.append(Ran(position, str(parts[0]), at(timed.start), at(split)))
            begins = split if lockstep else timed.backward_start
            actions.append(Ran(position, str(parts[1]), at(begins), at(timed.end)))
        sends = tuple(
            Sent(t.message.send_text, t.message.source_rank, rank_of(t), at(t.produced), 8)
            for t in simulation.transfers
            if t.message.source_rank == rank
        )
        waited = {wait.travel.what: wait for wait in own.waits}
        waits = []
        for message, _, _, _ in (t for t in simulation.transfers if rank_of(t) == rank):
            wait = waited.get(message.send_text)
            use = used(timeline, message)
            since, until = (wait.start, wait.end) if wait else (use, use)
            waits.append(Waited(message.send_text, message.source_rank, rank, at(since), at(until)))
        end = at(timeline[-1].end)
        step = RankStep(7, at(0.0), (at(0.0), end), end, end, tuple(actions), sends, tuple(waits))
        pipeline = tuple(range(simulation.schedule.ranks))
        found.append(RankRecord(rank, pipeline, "here", -clocks[rank], 1e-5, (step,)))
    return found


def rank_of(transfer):
    return transfer.message.target_rank


def used(timeline, message):
    """When a message is taken up."""
    for timed in timeline:
        for part in (part for part in timed.action.parts if part.kind != "W"):
            payload = "F" if part.kind == "F" else "B"
            if (payload, part.stage, part.microbatch) == (
                message.payload,
                message.target,
                message.microbatch,
            ):
                return timed.start if payload == "F" else timed.backward_start
    raise AssertionError(message)
