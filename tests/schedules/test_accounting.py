"""Where a rank's time goes: by hand, and complete for every schedule."""

import pytest
from hypothesis import given, settings

from schedules import generate
from schedules.accounting import Interval, RankTimeline, Travel, Wait, account, idle
from schedules.costs import Costs, Link, StageCosts
from schedules.simulate import simulate
from tests.schedules.strategies import schedules


def bubbles(name, ranks, microbatches, costs):
    return [own.bubble for own in simulate(generate(name, ranks, microbatches), costs).accounts]


def parts(fill=0.0, drain=0.0, waiting=0.0, imbalance=0.0, host=0.0):
    return {"fill": fill, "drain": drain, "waiting": waiting, "imbalance": imbalance, "host": host}


def test_1f1b_by_hand():
    """F = 1, B = 2, two ranks. Rank 0 has done two forwards when the first one's gradient is begun, which takes
    2; at the end it waits for 1. Rank 1 waits for one forward, and is done while rank 0 runs its last backward."""
    first, last = bubbles("1f1b", 2, 4, Costs())
    assert first == parts(fill=2.0, drain=1.0) and last == parts(fill=1.0, drain=2.0)


def test_a_slow_link_is_waited_for():
    """GPipe, one micro-batch, hops of 1: rank 1 starts at 2, of which its own hop is 1; rank 0 waits from 1 to 6 for a
    gradient that is on its way from 5 on."""
    first, last = bubbles("gpipe", 2, 1, Costs(link=Link(1.0)))
    assert first == parts(fill=4.0, waiting=1.0)
    assert last == parts(fill=1.0, waiting=1.0, drain=3.0)


def test_a_slow_stage_is_imbalance():
    """Stage 1 takes twice as long: between its first backward and its last forward, rank 0 waits for it five
    times, 3 each time, and rank 1 for nobody."""
    slow = StageCosts(F=2.0, I=2.0, W=2.0)
    first, last = bubbles("1f1b", 2, 8, Costs((StageCosts(), slow)))
    assert first["imbalance"] == 15.0 and last["imbalance"] == 0.0


def test_every_cause_by_hand():
    """Computes 1-3 and 6-8 of a step of 10. From 3 it waits for a hop that leaves at 4 and is there at 5; within 6-8
    an all-to-all travels, half of it behind computation."""
    hop, late = Travel("hop", 4.0, 5.0, "0SEND_F1"), Travel("hop", 0.5, 0.9, "0SEND_F0")
    moved = Travel("dispatch", 7.5, 8.5, "dispatch")
    rank = RankTimeline(
        computing=[Interval(1.0, 3.0), Interval(6.0, 7.0), Interval(6.5, 8.0)],
        waits=[Wait(7.5, 8.5, moved), Wait(0.0, 1.0, late), Wait(3.0, 5.5, hop)],
        travels=[late, hop, moved],
        end=8.5,
        first_backward=2.0,
        last_forward=6.0,
    )
    own = account(rank, 0.0, 10.0)
    assert own.computing == 4.0
    assert own.bubble == pytest.approx(parts(fill=0.5, waiting=1.9, imbalance=1.0, host=1.1, drain=1.5))
    assert own.exposed == pytest.approx({"hop": 1.4, "dispatch": 0.5})
    assert own.hidden == pytest.approx({"hop": 0.0, "dispatch": 0.5})
    assert own.waited_for == pytest.approx({"0SEND_F0": 0.4, "0SEND_F1": 1.0, "dispatch": 0.5})


def test_gaps():
    busy = [Interval(3, 5), Interval(-1, 1), Interval(4, 4.5), Interval(8, 12)]
    assert idle(busy, 0, 10) == [(1, 3), (5, 8)]
    assert idle([], 0, 1) == [(0, 1)] and idle([Interval(0, 2)], 0, 1) == []


@settings(max_examples=80, deadline=None)
@given(schedules(ranks=5))
def test_the_parts_are_the_whole(schedule):
    for costs in (
        Costs(link=Link(0.5)),
        Costs(link=Link(0.25), early=False),
        Costs((StageCosts(FB=2.5),), lead=0),
    ):
        simulation = simulate(schedule, costs)
        for own, busy, bubble in zip(simulation.accounts, simulation.busy, simulation.bubble, strict=True):
            assert own.computing == pytest.approx(busy)
            assert sum(own.bubble.values()) == pytest.approx(bubble)
            assert own.bubble["host"] == pytest.approx(0.0)
            assert own.bubble["waiting"] == pytest.approx(sum(own.exposed.values()))
