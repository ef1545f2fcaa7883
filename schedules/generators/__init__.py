"""The schedules, by name. Every generator takes (ranks, microbatches); ValueError for sizes it cannot
take."""

from collections.abc import Callable

from schedules.generators.dualpipe import dualpipe
from schedules.generators.dualpipev import dualpipev
from schedules.generators.gpipe import gpipe
from schedules.generators.interleaved import interleaved
from schedules.generators.one_f_one_b import one_f_one_b
from schedules.generators.zb_h1 import zb_h1
from schedules.generators.zb_v import zb_v
from schedules.plan import Schedule

GENERATORS: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


def generate(name: str, ranks: int, microbatches: int) -> Schedule:
    """The named schedule ("interleaved" with two chunks per rank).

    ``zb-h1`` is read as ``zb_h1``. ValueError for an unknown name or sizes that the schedule cannot take.
    """
    generator = GENERATORS.get(name.replace("-", "_"))
    if generator is None:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(GENERATORS)}")
    return generator(ranks, microbatches)
