"""1F1B: after a warm-up, one forward and one backward in turn (Narayanan et al., arXiv:2006.09503)."""

from schedules.actions import Action, B, F
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import one_per_rank
from schedules.schedule import Schedule


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Live chunks: min(P-r, M) on rank r. ValueError unless ranks and micro-batches are at least 1."""
    ONE_F_ONE_B.check(ranks, microbatches)
    live = tuple(min(ranks - r, microbatches) for r in range(ranks))
    actions = tuple(_rank(r, live[r] - 1, microbatches) for r in range(ranks))
    return Schedule("1f1b", one_per_rank(ranks), microbatches, actions, live)


def _rank(stage: int, warmup: int, microbatches: int) -> tuple[Action, ...]:
    order = [F(stage, m) for m in range(warmup)]
    for m in range(warmup, microbatches):
        order += [F(stage, m), B(stage, m - warmup)]
    order += [B(stage, m) for m in range(microbatches - warmup, microbatches)]
    return tuple(order)


ONE_F_ONE_B = ScheduleDescriptor("1f1b", one_f_one_b, one_per_rank)
