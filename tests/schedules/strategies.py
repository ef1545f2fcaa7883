"""Schedules of every generator and size."""

from hypothesis import strategies as st

from schedules.generators import SCHEDULES
from schedules.split_backward import split_backward


@st.composite
def schedules(draw, ranks=16):
    """Any schedule of sizes that its descriptor says it takes, those drawn or the smallest above them; with backwards
    as they are, or split."""
    kind = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    P = smallest(kind.misfit, draw(st.integers(1, ranks)))
    M = smallest(lambda M: kind.misfit(P, M), draw(st.integers(1, 4 * P)))
    schedule = kind.schedule(P, M, draw(st.integers(1, 4)) if kind.chosen else None)
    return split_backward(schedule) if draw(st.booleans()) else schedule


def smallest(misfit, size):
    found = misfit(size)
    return found.smallest if found else size
