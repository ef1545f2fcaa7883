"""GPipe: all forwards, then all backwards (Huang et al., arXiv:1811.06965)."""

from schedules.actions import B, F
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import one_per_rank
from schedules.schedule import Schedule


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """Live chunks: M on every rank. ValueError unless ranks and micro-batches are at least 1."""
    GPIPE.check(ranks, microbatches)
    forwards = [[F(r, m) for m in range(microbatches)] for r in range(ranks)]
    backwards = [[B(r, m) for m in range(microbatches)] for r in range(ranks)]
    actions = tuple(tuple(f + b) for f, b in zip(forwards, backwards, strict=True))
    return Schedule("gpipe", one_per_rank(ranks), microbatches, actions, (microbatches,) * ranks)


GPIPE = ScheduleDescriptor("gpipe", gpipe, one_per_rank)
