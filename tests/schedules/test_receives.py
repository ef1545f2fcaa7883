"""How early receives have to be posted where they wait on the device: by hand, and against a run with late receives."""

import pytest

from schedules import GENERATORS, Kind, generate
from schedules.costs import Costs, Link, StageCosts
from schedules.receives import most_ahead, receive_leads
from schedules.simulate import simulate


def leads(name, ranks, microbatches, hop, **stage):
    costs = Costs(stages=(StageCosts(**stage),), link=Link(latency=hop))
    return most_ahead(receive_leads(simulate(generate(name, ranks, microbatches), costs)))


@pytest.mark.parametrize(
    ("name", "hop", "expected"),
    [
        # F = I = W = 1, B = 2. Rank 1 of GPipe runs one F after another, each needing a message: posted when the F
        # before the last one ends, a message has as long as one F takes.
        ("gpipe", 1.0, {(0, 1): 1, (1, 0): 1}),
        ("gpipe", 1.5, {(0, 1): 2, (1, 0): 1}),
        ("gpipe", 3.0, {(0, 1): 3, (1, 0): 2}),
        # Rank 1 of 1F1B waits through a B of 2 before an F, rank 0 through an F of 1 before a B.
        ("1f1b", 1.0, {(0, 1): 1, (1, 0): 1}),
        ("1f1b", 1.5, {(0, 1): 1, (1, 0): 2}),
        ("1f1b", 2.5, {(0, 1): 2, (1, 0): 2}),
        # An FB takes 3, and F runs first: it is the fill and drain that need more than one.
        ("dualpipev", 1.0, {(0, 1): 1, (1, 0): 1, (2, 3): 1, (3, 2): 1}),
        ("dualpipev", 1.5, {(0, 1): 2, (1, 0): 1, (2, 3): 2, (3, 2): 1}),
    ],
)
def test_two_ranks_by_hand(name, hop, expected):
    assert leads(name, 2, 8, hop) == expected


@pytest.mark.parametrize("name", GENERATORS)
def test_one_action_is_enough_for_hops_no_longer_than_any(name):
    for hop in (0.0, 0.25, 1.0):
        assert set(leads(name, 4, 16, hop).values()) == {1}


def test_what_counts_is_the_hop_beside_the_action():
    assert leads("zb-h1", 4, 16, 1.5) == leads("zb-h1", 4, 16, 0.15, F=0.1, I=0.1, W=0.1)
    assert set(leads("zb-h1", 4, 16, 1.5).values()) == {2}


@pytest.mark.parametrize(("name", "steady"), [("1f1b", 1), ("dualpipev", 1), ("zb-h1", 2)])
def test_fill_and_drain_may_need_more_than_the_steady_state(name, steady):
    """1F1B's first backwards come one by one; later an F of another micro-batch hides the hop."""
    costs = Costs(link=Link(latency=1.5))
    found = receive_leads(simulate(generate(name, 4, 32), costs))
    middle = {lead for (_, _, microbatch), lead in found.items() if 12 <= microbatch < 20}
    assert max(found.values()) == 2 and steady in middle


def ends(schedule, costs, ahead):
    """Of every action, with each message's receive posted so many actions ahead, when the action before ends."""
    hops = {
        (*t.message.channel, t.message.microbatch): t.arrives - t.leaves
        for t in simulate(schedule, costs).transfers
    }
    took = {Kind.F: 1.0, Kind.B: 2.0, Kind.I: 1.0, Kind.W: 1.0}
    ended, produced, moved = [[] for _ in range(schedule.ranks)], {}, True
    while moved:
        moved = False
        for own, steps in zip(ended, schedule.steps, strict=True):
            while len(own) < len(steps):
                action, receives, sends = steps[len(own)]
                arrivals = {}
                for message in receives:
                    key = *message.channel, message.microbatch
                    if key not in produced:
                        break
                    post = len(own) - ahead[key]
                    posted = own[post - 1] if post > 0 else 0.0
                    arrivals[message.payload] = max(produced[key], posted) + hops[key]
                if len(arrivals) < len(receives):
                    break
                at, outputs = own[-1] if own else 0.0, {}
                for part in action.parts:
                    payload = Kind.F if part.kind is Kind.F else Kind.B
                    at = outputs[payload] = max(at, arrivals.get(payload, 0.0)) + took[part.kind]
                for message in sends:
                    produced[*message.channel, message.microbatch] = outputs[message.payload]
                own.append(at)
                moved = True
    assert [len(own) for own in ended] == [len(steps) for steps in schedule.steps]
    return ended


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("hop", [0.5, 1.5, 3.0])
def test_as_advised_nothing_is_later_and_any_later_something_is(name, hop):
    schedule, costs = generate(name, 4, 12), Costs(link=Link(latency=hop))
    advised = receive_leads(simulate(schedule, costs))
    always = ends(schedule, costs, dict.fromkeys(advised, 10_000))
    assert max(own[-1] for own in always) == pytest.approx(simulate(schedule, costs).makespan)
    assert ends(schedule, costs, advised) == always
    for key in [key for key, lead in advised.items() if lead > 1][::7]:
        assert ends(schedule, costs, advised | {key: advised[key] - 1}) != always
