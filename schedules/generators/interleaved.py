"""Interleaved 1F1B: several stages per rank, round robin (Narayanan et al., arXiv:2104.04473, section 2.2).

Micro-batches advance in groups. A group passes through all of a rank's chunks before the next group starts.
The paper wants M to be a multiple of P and groups of P. Here M is shared out into max(1, M // P) groups as
evenly as possible, larger ones first, so that any M works; the paper's case is unchanged.
"""

from schedules.actions import Action, B, F
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import round_robin
from schedules.schedule import Schedule

CHUNKS = 2  # where none are given


def interleaved(ranks: int, microbatches: int, chunks: int = CHUNKS) -> Schedule:
    """``chunks`` stages per rank: stages r, P+r, 2P+r, ... on rank r.

    Where groups are larger than P, stages run ahead of the ranks that wait for them, and each rank has to
    keep as many more receives posted.

    Live chunks on rank r: the warm-up's (chunks-1) * largest group + 2(P-r-1) forwards, and one more.
    ValueError unless ranks, micro-batches and chunks are at least 1.
    """
    INTERLEAVED.check(ranks, microbatches)
    if chunks < 1:
        raise ValueError(f"interleaved: chunks={chunks}; the smallest that works is 1")
    sizes = _groups(ranks, microbatches)
    warmups = [
        min((chunks - 1) * sizes[0] + 2 * (ranks - r - 1), chunks * microbatches) for r in range(ranks)
    ]
    actions = tuple(_rank(r, ranks, chunks, sizes, warmups[r]) for r in range(ranks))
    live = tuple(min(warmup + 1, chunks * microbatches) for warmup in warmups)
    posted = 1 + max(0, sizes[0] - ranks) if chunks > 1 and len(sizes) > 1 else 1
    return Schedule("interleaved", round_robin(ranks, chunks), microbatches, actions, live, posted)


def _groups(ranks: int, microbatches: int) -> list[int]:
    """Sizes of the groups of micro-batches: each at least P, unless M itself is smaller."""
    groups = max(1, microbatches // ranks)
    return [microbatches // groups + (g < microbatches % groups) for g in range(groups)]


def _rank(rank: int, P: int, chunks: int, sizes: list[int], warmup: int) -> tuple[Action, ...]:
    forwards, backwards, first = [], [], 0
    for size in sizes:
        group = range(first, first + size)
        first += size
        forwards += [F(c * P + rank, m) for c in range(chunks) for m in group]
        backwards += [B(c * P + rank, m) for c in reversed(range(chunks)) for m in group]
    order = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [forward, backward]
    return tuple(order + backwards[len(forwards) - warmup :])


INTERLEAVED = ScheduleDescriptor(
    "interleaved", interleaved, lambda ranks, chunks=CHUNKS: round_robin(ranks, chunks), chosen=True
)
