"""ZB-H1, also called ZB1P: 1F1B whose weight gradients fill the drain (Qi et al., arXiv:2401.10241, section
2.2)."""

from schedules.actions import Action, F, I, W
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import one_per_rank
from schedules.schedule import Schedule


def zb_h1(ranks: int, microbatches: int) -> Schedule:
    """Live chunks, counted until W: min(P, M) on every rank, as much as 1F1B needs on rank 0.

    Rank r holds P-r micro-batches between F and I, as 1F1B does, and lets W lag r micro-batches behind I:
    later ranks fill the memory that they have left. ValueError unless ranks and micro-batches are at least 1.
    """
    ZB_H1.check(ranks, microbatches)
    actions = tuple(_rank(r, ranks, microbatches) for r in range(ranks))
    return Schedule("zb_h1", one_per_rank(ranks), microbatches, actions, (min(ranks, microbatches),) * ranks)


def _rank(r: int, P: int, M: int) -> tuple[Action, ...]:
    warmup = min(P - r - 1, M)
    order = [F(r, m) for m in range(warmup)]
    for m in range(M):
        if m + warmup < M:
            order.append(F(r, m + warmup))
        order.append(I(r, m))
        if m >= r:
            order.append(W(r, m - r))
    order += [W(r, m) for m in range(max(0, M - r), M)]
    return tuple(order)


ZB_H1 = ScheduleDescriptor("zb_h1", zb_h1, one_per_rank, splits=True)
