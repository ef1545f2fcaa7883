"""The schedules, by name: a descriptor each. The one list of them.

A new schedule is a generator with its descriptor in a file of this folder, and a line in SCHEDULES. `generate`,
configuration (choices, sizes, what it goes together with), the trainer's placement, the command and the tests ask the
descriptor; nobody tests for a name.
"""

from collections.abc import Callable

from schedules.descriptor import ScheduleDescriptor
from schedules.generators.dualpipe import DUALPIPE
from schedules.generators.dualpipev import DUALPIPEV
from schedules.generators.gpipe import GPIPE
from schedules.generators.interleaved import INTERLEAVED
from schedules.generators.one_f_one_b import ONE_F_ONE_B
from schedules.generators.zb_h1 import ZB_H1
from schedules.generators.zb_v import ZB_V
from schedules.schedule import Schedule

SCHEDULES: dict[str, ScheduleDescriptor] = {
    schedule.name: schedule
    for schedule in (
        GPIPE,
        ONE_F_ONE_B,
        INTERLEAVED,
        ZB_H1,
        ZB_V,
        DUALPIPE,
        DUALPIPEV,
    )
}
# Every generator takes (ranks, microbatches); ValueError for sizes it cannot take.
GENERATORS: dict[str, Callable[[int, int], Schedule]] = {
    name: schedule.generate for name, schedule in SCHEDULES.items()
}


def generate(name: str, ranks: int, microbatches: int) -> Schedule:
    """The named schedule ("interleaved" with two chunks per rank).

    ``zb-h1`` is read as ``zb_h1``. ValueError for an unknown name or sizes that the schedule cannot take.
    """
    schedule = SCHEDULES.get(name.replace("-", "_"))
    if schedule is None:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    return schedule.schedule(ranks, microbatches)
