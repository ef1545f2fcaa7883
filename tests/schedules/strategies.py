"""Schedules of every generator and size."""

from hypothesis import strategies as st

from schedules.generators import GENERATORS, generate
from schedules.generators.interleaved import interleaved


@st.composite
def schedules(draw, ranks=16):
    name = draw(st.sampled_from(sorted(GENERATORS)))
    P = draw(st.integers(1, ranks))
    if name == "dualpipe":
        P += P % 2
        return generate(name, P, 2 * draw(st.integers(P, 2 * P)))
    M = draw(st.integers(2 * P if name == "dualpipev" else 1, 4 * P))
    return interleaved(P, M, draw(st.integers(1, 4))) if name == "interleaved" else generate(name, P, M)
