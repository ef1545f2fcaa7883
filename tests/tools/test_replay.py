"""A step with the times that its stages took: the simulator's where they are alike, by hand where they are not."""

import pytest
from hypothesis import given, settings

from schedules import generate
from schedules.actions import Kind
from schedules.costs import Costs, StageCosts
from schedules.simulate import simulate
from tests.schedules.strategies import schedules
from tools.replay import replayed

COST = StageCosts(F=1.0, I=1.25, W=0.5)


def taken(schedule):
    return [
        [getattr(COST, part.kind.value) for action in actions for part in action.parts]
        for actions in schedule.actions
    ]


@settings(max_examples=60, deadline=None)
@given(schedules(ranks=6))
def test_of_stages_that_are_all_alike_the_simulators(schedule):
    simulation = simulate(schedule, Costs((COST,)))
    ends = [own[-1].end for own in simulation.timeline]
    assert replayed(schedule, taken(schedule)) == pytest.approx(ends)


def test_one_late_forward_by_hand():
    """1F1B of two ranks and two micro-batches: F1 of rank 0 takes 5 instead of 1, so that rank 1 has it at 6."""
    schedule = generate("1f1b", 2, 2)
    times = [[1.0] * 4, [1.0] * 4]
    assert [part.kind for part in schedule.actions[0]] == [Kind.F, Kind.F, Kind.B, Kind.B]
    assert replayed(schedule, times) == [6.0, 5.0]
    times[0][1] = 5.0
    assert replayed(schedule, times) == [9.0, 8.0]
