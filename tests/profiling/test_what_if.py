"""What a profile says that another schedule would take: with backwards as the profiled one has them."""

from dataclasses import replace

import pytest

from hcmegatron.profiling.measured_costs import MeasuredCosts
from hcmegatron.profiling.what_if import what_if
from schedules import generate, split_backward
from schedules.costs import Link, StageCosts

COST = StageCosts(F=1.0, I=1.0, W=1.0)
MEASURED = MeasuredCosts((COST,) * 8, Link(), 0.0, 1.0, (), True, 0.0, False)


@pytest.mark.parametrize(("overlaps", "dualpipe"), [(False, 66.0), (True, 66.75)])
def test_pairs_of_others_are_split_unless_they_overlap(overlaps, dualpipe):
    """docs/pipeline.md's figures, of hops of a quarter of F; DualPipeV's stages are half as long."""
    half = StageCosts(F=0.5, I=0.5, W=0.5)
    measured = replace(MEASURED, stages=(half,) * 16, link=Link(latency=0.25), overlaps=overlaps)
    found = what_if(split_backward(generate("dualpipev", 8, 20), overlaps), measured, 0.0)
    assert {change.what: change.seconds for change in found}["parallel.schedule=dualpipe"] == pytest.approx(
        dualpipe
    )


@pytest.mark.parametrize(
    ("schedule", "gpipe", "one"),
    [
        (generate("1f1b", 8, 20), 81.0, None),
        (split_backward(generate("1f1b", 8, 20)), 74.0, None),
        (generate("zb_h1", 8, 20), 74.0, 74.0),
    ],
    ids=["whole", "split", "zb_h1"],
)
def test_of_eight_ranks_by_hand(schedule, gpipe, one):
    """7 stages' F and B, or F and I, beside 20 of F and B."""
    found = {change.what: change.seconds for change in what_if(schedule, MEASURED, 0.0)}
    assert found["parallel.schedule=gpipe"] == pytest.approx(gpipe)
    assert found.get("parallel.schedule=1f1b") == (None if one is None else pytest.approx(one))
