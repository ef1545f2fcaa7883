"""What comes and goes in a step: the planner's beside the storages that are really alive."""

import pytest

from tools import planned_memory

# At any moment, too, on the rank without a loss: what runs there are a CPU's kernels, and the plan takes a GPU's.
USUAL = ("1f1b none mhc", "1f1b selective mhc")
# One of each recomputation, schedules with I and W, several chunks on a rank, overlapped pairs. The whole table:
# python -m tools.planned_memory --activations
OTHERS = (
    "dualpipev block shc",
    "1f1b full residual",
    "zb_v full mhc",
    "zb_h1 selective dfc",
    "dualpipe none residual",
)


@pytest.mark.ranks
def test_activations_over_a_step_are_those_planned():
    """To 5% between actions, for every rank; most during an action of the planned kind and stage."""
    cases = [case for case in planned_memory.moving_cases() if case.name in USUAL + OTHERS]
    assert len(cases) == len(USUAL + OTHERS)
    for case, ratios in zip(cases, planned_memory.compare_moving(cases), strict=True):
        for found in ratios:
            assert found.held == pytest.approx(1, abs=0.05), (case.name, found)
            if case.name in USUAL and found.rank == 0:
                assert found.most == pytest.approx(1, abs=0.05), (case.name, found)
                planned, real = found.during
                assert planned[:2] == real[:2], (case.name, found)
