"""DualPipe: micro-batches enter at both ends (DeepSeek-AI, arXiv:2412.19437, section 3.2.1)."""

from schedules.actions import Action
from schedules.generators.checks import check_ranks, check_sizes
from schedules.generators.eight_phases import eight_phases
from schedules.placement import bidirectional
from schedules.plan import Schedule


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """``microbatches`` counts both directions together. Two copies of every parameter.

    Live chunks: P+1 on every rank, counted until W. ValueError unless P and M are even and M >= 2P.
    """
    check_ranks("dualpipe", ranks, least=2)
    if ranks % 2:
        raise ValueError(
            f"dualpipe: ranks={ranks} is odd, and the two directions need an even number; "
            f"the smallest above it that works is {ranks + 1} (dualpipev takes odd numbers)"
        )
    check_sizes("dualpipe", ranks, microbatches, least=2 * ranks)
    if microbatches % 2:
        raise ValueError(
            f"dualpipe: microbatches={microbatches} is odd, and each direction takes half of them; "
            f"the smallest above it that works is {microbatches + 1}"
        )
    actions = tuple(_rank(r, ranks, microbatches // 2) for r in range(ranks))
    return Schedule("dualpipe", bidirectional(ranks), microbatches, actions, (ranks + 1,) * ranks)


def _rank(r: int, P: int, Mh: int) -> tuple[Action, ...]:
    """Path 0 enters at rank 0: it is direction 0 for the first half of the ranks, 1 for the second."""
    stages, first = (r, 2 * P - 1 - r), (0, Mh)
    if r >= P // 2:
        stages, first = stages[::-1], first[::-1]
    return eight_phases(P // 2, min(r, P - 1 - r), Mh, stages, first)
