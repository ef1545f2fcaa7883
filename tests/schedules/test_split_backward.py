"""Backwards that are split where their gradient leaves the rank: what is computed stays, and time only falls."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import generate
from schedules.actions import FB, B, F, I, Kind, W
from schedules.costs import Costs, Link, StageCosts
from schedules.csv_form import from_csv
from schedules.generators import SCHEDULES
from schedules.simulate import simulate
from schedules.split_backward import split_backward
from schedules.validate import live_chunks, problems
from tests.schedules.strategies import schedules, smallest


def joined(actions):
    """Plain actions, with every I and the W right after it as a B again."""
    found = []
    for action in (part for each in actions for part in each.parts):
        if action.kind is Kind.W and found and found[-1] == I(action.stage, action.microbatch):
            found[-1] = B(action.stage, action.microbatch)
        else:
            found.append(action)
    return found


def test_1f1b_of_two_ranks_by_hand():
    first, last = split_backward(generate("1f1b", 2, 2)).actions
    assert first == (F(0, 0), F(0, 1), B(0, 0), B(0, 1))  # nobody waits for its gradients
    assert last == (F(1, 0), I(1, 0), W(1, 0), F(1, 1), I(1, 1), W(1, 1))


def test_an_fb_becomes_f_i_and_w_unless_its_halves_overlap():
    """DualPipeV on two ranks, whose second has stages 1 and 2: gradients of stage 1 leave it."""
    whole = generate("dualpipev", 2, 4)
    pairs = FB(F(2, 2), B(1, 0)), FB(F(1, 3), B(2, 1)), FB(F(2, 3), B(1, 1))
    middle = whole.actions[1][6:9]
    assert middle == pairs
    assert split_backward(whole, overlapped=True).actions[1][6:9] == pairs
    apart = F(2, 2), I(1, 0), W(1, 0), pairs[1], F(2, 3), I(1, 1), W(1, 1)
    assert split_backward(whole).actions[1][6:13] == apart


def test_a_gradient_that_stays_on_the_rank_leaves_a_backward_whole():
    """DualPipeV's last stage is on the rank of the one before it, and its first stage sends none."""
    schedule = split_backward(generate("dualpipev", 1, 2))
    assert Kind.B in {
        part.kind for actions in schedule.actions for action in actions for part in action.parts
    }
    assert schedule == generate("dualpipev", 1, 2)


def test_behind_a_w_that_is_still_to_come_a_backward_stays_whole():
    """Stages compute weights' gradients in the order of the I."""
    text = "0F0,0F1,0B0,0B1\n1F0,1F1,1I0,1B1,1W0\n"
    schedule = from_csv(text, "mixed")
    assert problems(schedule) == [] and split_backward(schedule) == schedule


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_twice_is_once_and_what_is_split_already_stays(name):
    kind = SCHEDULES[name]
    whole = kind.schedule(P := smallest(kind.misfit, 4), smallest(lambda M: kind.misfit(P, M), 8))
    split = split_backward(whole)
    assert split_backward(split) == split == split_backward(split, overlapped=True)
    assert (split == whole) == (kind.splits and not kind.pairs)


@settings(max_examples=150, deadline=None)
@given(schedules(ranks=8), st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3), st.floats(0.0, 2.0))
def test_valid_as_full_and_never_later(whole, times, hop):
    split = split_backward(whole)
    assert problems(split) == []
    assert [joined(own) for own in split.actions] == [joined(own) for own in whole.actions]
    halves = split_backward(whole, overlapped=True)
    assert [[a for a in own if a.kind is Kind.FB] for own in halves.actions] == [
        [a for a in own if a.kind is Kind.FB] for own in whole.actions
    ]
    for before, after in zip(whole.actions, split.actions, strict=True):
        assert max(live_chunks(after)) == max(live_chunks(before))
    costs = Costs((StageCosts(**dict(zip("FIW", times, strict=True))),), Link(latency=hop))
    times = [simulate(each, costs).makespan for each in (split, halves, whole)]
    assert times[0] <= times[1] * (1 + 1e-9) and times[1] <= times[2] * (1 + 1e-9)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_1f1b_saves_a_w_a_rank_and_the_hops_that_hide_behind_it(ranks):
    """By hand: P - 1 stages' F and I to fill and to drain, and F + I + W for each micro-batch."""
    M, f, i, w = 3 * ranks, 1.0, 1.25, 0.75
    split = split_backward(generate("1f1b", ranks, M))
    cost = Costs((StageCosts(F=f, I=i, W=w),))
    assert simulate(split, cost).makespan == pytest.approx((ranks - 1) * (f + i) + M * (f + i + w))
    whole = simulate(generate("1f1b", ranks, M), cost).makespan
    assert whole == pytest.approx((ranks - 1 + M) * (f + i + w))
