"""A step of this rank as the runtime, its stages and its lanes have recorded it."""

from __future__ import annotations

from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.profiling.rank_step import NodeRan, Ran, RankStep, Sent, Waited
from schedules.runtime.gpu import GPU
from schedules.runtime.record import Mark, Record


def rank_step(
    step: int,
    record: Record,
    times: NodeTimes,
    marks: tuple[Mark, Mark, Mark],
    began: float,
    reduced_bytes: int,
) -> RankStep:
    """In seconds on the host's monotonic clock. On a GPU this waits for the device.

    Args:
        marks: when the step began, when its gradients were finalised, when it ended.
        began: the first of them on the host's clock: on a GPU, which was idle then, all times are the device's, laid
            there.
    """
    events = record.events()
    if GPU.present():
        start = record.at(marks[0])

        def at(mark: Mark) -> float:
            return record.at(mark) - start + began

        shift = began - start
        waits = [(at(since), at(until)) for _, since, until in record.waits]
        spans = [(event.start + shift, event.end + shift) for event in events] + waits
        pipeline = min(since for since, _ in spans), max(until for _, until in spans)
    else:

        def at(mark: Mark) -> float:
            return mark

        shift, pipeline = 0.0, (record.start, record.end)
    return RankStep(
        step,
        at(marks[0]),
        pipeline,
        at(marks[1]),
        at(marks[2]),
        tuple(Ran(e.position, str(e.action), e.start + shift, e.end + shift) for e in events),
        tuple(
            Sent(m.send_text, m.source_rank, m.target_rank, at(when), size) for m, when, size in record.sends
        ),
        tuple(Waited(m.send_text, m.source_rank, m.target_rank, at(s), at(e)) for m, s, e in record.waits),
        tuple(NodeRan(n.phase, n.node, n.lane.value, at(n.start), at(n.end), n.bytes) for n in times.entries),
        reduced_bytes,
    )
