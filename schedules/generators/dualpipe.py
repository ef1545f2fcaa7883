"""DualPipe: micro-batches enter at both ends (DeepSeek-AI, arXiv:2412.19437, section 3.2.1)."""

from schedules.actions import Action
from schedules.descriptor import ScheduleDescriptor
from schedules.generators.eight_phases import eight_phases
from schedules.placement import bidirectional
from schedules.schedule import Schedule


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """``microbatches`` counts both directions together. Two copies of every parameter.

    Live chunks: P+1 on every rank, counted until W. ValueError unless P and M are even and M >= 2P.
    """
    DUALPIPE.check(ranks, microbatches)
    actions = tuple(_rank(r, ranks, microbatches // 2) for r in range(ranks))
    return Schedule("dualpipe", bidirectional(ranks), microbatches, actions, (ranks + 1,) * ranks)


def _rank(r: int, P: int, Mh: int) -> tuple[Action, ...]:
    """Path 0 enters at rank 0: it is direction 0 for the first half of the ranks, 1 for the second."""
    stages, first = (r, 2 * P - 1 - r), (0, Mh)
    if r >= P // 2:
        stages, first = stages[::-1], first[::-1]
    return eight_phases(P // 2, min(r, P - 1 - r), Mh, stages, first)


DUALPIPE = ScheduleDescriptor(
    "dualpipe",
    dualpipe,
    bidirectional,
    splits=True,
    pairs=True,
    ranks_multiple=2,
    ranks_why="every rank is paired with its mirror (dualpipev takes any number)",
    microbatches_least=lambda P: 2 * P,
    microbatches_multiple=lambda P: 2,
    microbatches_why="half of them enter at each end",
)
