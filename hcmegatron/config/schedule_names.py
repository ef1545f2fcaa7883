"""What parallel.schedule can be: Megatron's own runtime, the reference, and the schedules that schedules/runtime
executes. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from schedules.descriptor import ScheduleDescriptor
from schedules.generators import SCHEDULES as OURS

# Megatron's own are ours of the same kind in what they place and hold. Its interleaved one takes groups of one
# micro-batch a rank.
MEGATRONS: dict[str, ScheduleDescriptor] = {
    schedule.name: schedule
    for schedule in (
        replace(OURS["1f1b"], name="megatron_1f1b"),
        replace(
            OURS["interleaved"],
            name="megatron_interleaved",
            microbatches_multiple=lambda P: P,
            microbatches_why="they take turns in groups of one a rank",
        ),
    )
}
SCHEDULES: dict[str, ScheduleDescriptor] = MEGATRONS | OURS


def nearest_schedule(
    *, splits: bool | None = None, pairs: bool | None = None, chosen: bool | None = None
) -> str:
    """The schedules of that sort, in words."""
    found = [
        name
        for name, schedule in SCHEDULES.items()
        if splits in (None, schedule.splits)
        and pairs in (None, schedule.pairs)
        and chosen in (None, schedule.chosen)
    ]
    return " or ".join(found)
