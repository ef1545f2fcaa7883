"""Every generator, over its whole range of sizes: valid, all work exactly once, within the published
bounds."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.actions import Action, Kind, parse_action
from schedules.csv_form import from_csv, to_csv
from schedules.generators import SCHEDULES, generate
from schedules.schedule import Schedule, lower
from schedules.validate import live_chunks, problems
from tests.schedules.strategies import schedules, smallest

PUBLISHED = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v", "dualpipe", "dualpipev")


def work(schedule: Schedule) -> Counter:
    return Counter(part for actions in schedule.actions for a in actions for part in a.parts)


def check(schedule: Schedule) -> None:
    assert problems(schedule) == []
    done = work(schedule)
    M, placement = schedule.microbatches, schedule.placement
    passes = [
        (stage, m)
        for path in range(len(placement.paths))
        for stage in range(path * placement.model_stages, (path + 1) * placement.model_stages)
        for m in range(path * M // len(placement.paths), (path + 1) * M // len(placement.paths))
    ]
    for kinds in ((Kind.F,), (Kind.B, Kind.I), (Kind.B, Kind.W)):
        assert sorted(done[Action(k, s, m)] for s, m in passes for k in kinds).count(1) == len(passes)
    assert sum(done.values()) == sum(1 for a in done)
    assert {(a.stage, a.microbatch) for a in done} == set(passes)


def published_bound(schedule: Schedule, rank: int) -> int:
    """Live chunks, from the papers; the schedule's own ``live_limit`` is not trusted."""
    P, M = schedule.ranks, schedule.microbatches
    match schedule.name:
        case "gpipe":
            return M
        case "1f1b":
            return min(P - rank, M)
        case "zb_h1":  # 1F1B's on rank 0
            return min(P, M)
        case "zb_v":  # 1F1B's in all, in chunks of half the size
            return 2 * min(P, M)
        case "dualpipe":
            return P + 1
        case "dualpipev":
            return 2 * P + 1
        case "interleaved":  # Megatron's warm-up, and one more
            v, rounds = len(schedule.placement.stages_of(rank)), max(1, M // P)
            return min((v - 1) * -(-M // rounds) + 2 * (P - rank - 1) + 1, v * M)
    return schedule.live_limit[rank]  # of one that no paper bounds


@settings(max_examples=300, deadline=None)
@given(schedules())
def test_every_schedule_is_valid_and_complete(schedule):
    check(schedule)
    for rank, actions in enumerate(schedule.actions):
        assert max(live_chunks(actions)) <= published_bound(schedule, rank)
        assert schedule.live_limit[rank] <= published_bound(schedule, rank)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_all_small_sizes(name):
    """What a schedule can take is what its descriptor says, and the smallest above is taken."""
    for P in range(1, 5):
        for M in range(1, 4 * P + 1):
            if found := SCHEDULES[name].misfit(P, M):
                with pytest.raises(ValueError, match=f"the smallest .*{found.smallest}$"):
                    generate(name, P, M)
                if found.what == "microbatches":
                    check(generate(name, P, found.smallest))
            else:
                check(generate(name, P, M))


def test_sizes_as_published():
    """DualPipe: P and M even, M of 2P or more; DualPipeV M of 2P or more; all others any (their papers)."""
    for P, M in itertools.product(range(1, 7), range(1, 20)):
        taken = {name for name in PUBLISHED if SCHEDULES[name].misfit(P, M) is None}
        refused = {"dualpipev"} if M < 2 * P else set()
        refused |= {"dualpipe"} if P % 2 or M % 2 or M < 2 * P else set()
        assert taken == set(PUBLISHED) - refused, (P, M)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_descriptors_say_what_their_schedules_do(name):
    kind = SCHEDULES[name]
    P = smallest(kind.misfit, 3)
    schedule = kind.schedule(P, smallest(lambda M: kind.misfit(P, M), 9))
    kinds = {action.kind for actions in schedule.actions for action in actions}
    assert schedule.name == kind.name == name and schedule.placement == kind.placement(P)
    assert (Kind.W in kinds) == kind.splits and (Kind.FB in kinds) == kind.pairs


@settings(max_examples=40, deadline=None)
@given(schedules(ranks=6), st.booleans())
def test_csv_returns_the_same_schedule(schedule, messages):
    read = from_csv(to_csv(schedule, messages), schedule.name)
    assert (read.actions, read.placement) == (schedule.actions, schedule.placement)
    assert read.microbatches == schedule.microbatches


@settings(max_examples=40, deadline=None)
@given(schedules(ranks=6))
def test_lowering_pairs_every_send_with_one_receive(schedule):
    steps = [step for rank in lower(schedule) for step in rank]
    sends = Counter(m for step in steps for m in step.sends)
    assert sends == Counter(m for step in steps for m in step.receives)
    hops = sum(a != b for path in schedule.placement.paths for a, b in itertools.pairwise(path))
    assert sum(sends.values()) == 2 * hops * schedule.microbatches // len(schedule.placement.paths)
    assert set(sends.values()) <= {1}
    for step in steps:
        for message in step.receives + step.sends:
            assert message.source_rank != message.target_rank
            assert abs(message.source - message.target) == 1


def test_every_action_reads_back_what_it_writes():
    for a in work(generate("dualpipe", 4, 8)):
        assert parse_action(str(a)) == a


def test_stage_ids_of_bidirectional_dualpipe():
    """Id S+s is the copy of model stage s on the mirror rank, micro-batches M/2 .. M-1 take it; no edge joins
    the two paths."""
    schedule = generate("dualpipe", 4, 8)
    placement = schedule.placement
    assert placement.rank_of == (0, 1, 2, 3, 3, 2, 1, 0)
    assert placement.stages_of(1) == (1, 6)
    assert [placement.model_stage(s) for s in (1, 6)] == [1, 2]
    assert placement.copies(1) == placement.copies(5) == (1, 5)
    assert placement.next(3) is None and placement.previous(4) is None
    assert schedule.microbatches_of(0) == range(4) and schedule.microbatches_of(4) == range(4, 8)
