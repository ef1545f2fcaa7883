"""DualPipeV: DualPipe cut in half, one copy of the parameters, the pipeline folded into a V
(Sea AI Lab's "cut-in-half"; github.com/deepseek-ai/DualPipe)."""

from schedules.descriptor import ScheduleDescriptor
from schedules.generators.eight_phases import eight_phases
from schedules.placement import v_shape
from schedules.schedule import Schedule


def dualpipev(ranks: int, microbatches: int) -> Schedule:
    """Rank r runs stage r in direction 0 and stage 2P-1-r in direction 1; the last rank is the middle.

    Live chunks: 2P+1 on every rank, counted until W. ValueError unless M >= 2P.
    """
    P = ranks
    DUALPIPEV.check(P, microbatches)
    actions = tuple(eight_phases(P, r, microbatches, (r, 2 * P - 1 - r), (0, 0)) for r in range(P))
    return Schedule("dualpipev", v_shape(P), microbatches, actions, (2 * P + 1,) * P)


DUALPIPEV = ScheduleDescriptor(
    "dualpipev", dualpipev, v_shape, splits=True, pairs=True, microbatches_least=lambda P: 2 * P
)
