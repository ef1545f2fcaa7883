"""ZB-V: two stages per rank in a V, every backward split (Qi et al., arXiv:2401.10241, section 6;
2405.15362).

No bubble inside a rank's own span where F = I = W, with the memory of 1F1B.
"""

from schedules.actions import Action, F, I, W
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import v_shape
from schedules.schedule import Schedule


def zb_v(ranks: int, microbatches: int) -> Schedule:
    """Rank r runs stages r ("down") and 2P-1-r ("up").

    Live chunks, counted until W: min(2P, 2M) on every rank, half the size of 1F1B's. Fewer than 2P-1
    micro-batches run as 2P-1 would, the missing ones left out. ValueError unless ranks and micro-batches are
    at least 1.
    """
    ZB_V.check(ranks, microbatches)
    full = max(microbatches, 2 * ranks - 1)
    actions = tuple(
        tuple(a for a in _rank(r, ranks, full) if a.microbatch < microbatches) for r in range(ranks)
    )
    live = (2 * min(ranks, microbatches),) * ranks
    return Schedule("zb_v", v_shape(ranks), microbatches, actions, live)


def _rank(r: int, P: int, M: int) -> list[Action]:
    down, up = r, 2 * P - 1 - r
    # Warm-up: fill the pipeline down to the turn and back up to this rank.
    lead = 2 * (P - r) - 1
    order = [F(down, m) for m in range(lead)]
    for m in range(r):
        order += [F(up, m), F(down, lead + m)]
    for m in range(P - r):
        order += [F(up, r + m), I(up, m), W(up, m)]
    # Steady state: F I W of the stage going down, then of the stage going up.
    downs = lead + r  # forwards already issued
    ahead_up = P - r  # backwards of ``up`` already issued; its forwards are r ahead of them
    for m in range(M - P):
        if downs + m < M:
            order.append(F(down, downs + m))
        order += [I(down, m), W(down, m), F(up, P + m), I(up, ahead_up + m), W(up, ahead_up + m)]
    # Drain: input gradients first, as ranks wait for them; weight gradients fill what is left.
    next_down, next_up = M - P, M - r
    for m in range(r):
        order += [I(down, next_down + m), I(up, next_up + m)]
    for m in range(P - r):
        order += [I(down, next_down + r + m), W(down, next_down + m)]
    order += [W(up, m) for m in range(next_up, M)]
    order += [W(down, m) for m in range(M - r, M)]
    return order


ZB_V = ScheduleDescriptor("zb_v", zb_v, v_shape, splits=True)
