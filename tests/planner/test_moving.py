"""What comes and goes in a step: the planner's beside the storages that are really alive."""

import pytest

from tools import planned_memory


@pytest.mark.ranks
def test_activations_over_a_step_are_those_planned():
    """To 5%, at any moment and between actions, for every rank; most during an action of the planned kind and stage."""
    names = ("1f1b none mhc", "1f1b selective mhc")
    cases = [case for case in planned_memory.moving_cases() if case.name in names]
    assert len(cases) == len(names)
    for case, ratios in zip(cases, planned_memory.compare_moving(cases), strict=True):
        for found in ratios:
            assert found.held == pytest.approx(1, abs=0.05), (case.name, found)
            assert found.most == pytest.approx(1, abs=0.05), (case.name, found)
            planned, real = found.during
            assert planned[:2] == real[:2], (case.name, found)
