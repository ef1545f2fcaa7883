"""What is worked out before the first step: receives ahead, buffers, handovers."""

from collections import Counter, defaultdict

import pytest

from schedules import GENERATORS, Kind, generate
from schedules.costs import Costs, Link
from schedules.receives import most_ahead, receive_depths, receive_leads
from schedules.runtime.program import compile_rank, forward_only
from schedules.simulate import simulate

SIZES = [(2, 5), (2, 16), (4, 11), (4, 32), (8, 24)]


def cases():
    for name in GENERATORS:
        for ranks, microbatches in SIZES:
            yield name, ranks, microbatches + (name == "dualpipe" and microbatches % 2)


def times(schedule):
    """Per channel, (produced, taken up) of each message in order, read off the simulated timeline."""
    simulation = simulate(schedule, Costs())
    start = {}
    for timed in (timed for own in simulation.timeline for timed in own):
        for part in timed.action.parts:
            payload = Kind.F if part.kind is Kind.F else Kind.B
            if part.kind is not Kind.W:
                start[payload, part.stage, part.microbatch] = (
                    timed.start if payload is Kind.F else timed.backward_start
                )
    channels = defaultdict(list)
    for transfer in simulation.transfers:
        message = transfer.message
        taken = start[message.payload, message.target, message.microbatch]
        channels[message.channel].append((transfer.produced, taken))
    return {channel: sorted(pairs) for channel, pairs in channels.items()}


@pytest.mark.parametrize(("name", "ranks", "microbatches"), [*cases()])
def test_every_message_finds_its_receive_posted_and_no_depth_is_more_than_that_takes(
    name, ranks, microbatches
):
    schedule = generate(name, ranks, microbatches)
    depths = receive_depths(schedule)
    for channel, pairs in times(schedule).items():

        def late(depth, pairs=pairs):
            """Messages produced no sooner than the receive for them is posted."""
            return [k for k in range(depth, len(pairs)) if pairs[k - depth][1] >= pairs[k][0]]

        assert not late(depths[channel])
        assert depths[channel] == 1 or late(depths[channel] - 1)


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "interleaved"])
def test_depths_do_not_grow_with_the_number_of_micro_batches(name):
    assert receive_depths(generate(name, 4, 16)) == receive_depths(generate(name, 4, 64))
    assert max(receive_depths(generate(name, 4, 64)).values()) <= 2


@pytest.mark.parametrize("microbatches", [16, 64])
def test_depths_of_interleaved(microbatches):
    assert max(receive_depths(generate("interleaved", 4, microbatches)).values()) <= 4


def test_parts_say_where_values_come_from_and_go():
    schedule = generate("dualpipev", 2, 5)
    program = compile_rank(schedule, 1)
    parts = {str(part.action): part for op in program.ops for part in op.parts}
    bottom = parts["1F0"]  # the last stage on the way down: its output stays on the rank
    assert str(bottom.receive) == "activation of micro-batch 0 from stage 0 to stage 1"
    assert bottom.send is None and bottom.give == (Kind.F, 2, 0) == parts["2F0"].take
    assert not bottom.is_last_use
    assert [part.is_last_use for part in parts.values()] == [
        part.action.kind in (Kind.B, Kind.W) for part in parts.values()
    ]
    assert list(program.receives) == [(0, 1), (3, 2)]
    assert [message.microbatch for message in program.receives[0, 1]] == list(range(5))


def test_peaks_of_one_rank_by_hand():
    """1F1B, rank 1 of 2: one receive ahead, one buffer held by the only live chunk."""
    peaks = compile_rank(generate("1f1b", 2, 5), 1).peaks
    assert peaks == (1, 0, 2)
    # Rank 0: two chunks live, but its inputs are data: one receive ahead, one gradient in use.
    assert compile_rank(generate("1f1b", 2, 5), 0).peaks == (2, 0, 2)


def test_forward_only_has_every_forward_once():
    schedule = forward_only(generate("dualpipev", 2, 5))
    found = sorted((part.stage, part.microbatch) for own in schedule.actions for part in own)
    assert found == [(stage, microbatch) for stage in range(4) for microbatch in range(5)]
    assert all(part.kind is Kind.F for own in schedule.actions for part in own)


def finishes(schedule, room):
    """Whether all ranks get to their ends if a send waits until its channel holds fewer than
    ``room[channel]`` messages that have not been taken up."""
    programs = [compile_rank(schedule, rank) for rank in range(schedule.ranks)]
    parts = [[part for op in program.ops for part in op.parts] for program in programs]
    done, taken = [0] * len(parts), [False] * len(parts)  # taken: the part's input is in, its result not out
    waiting = defaultdict(int)
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(parts):
            while done[rank] < len(own):
                part = own[done[rank]]
                if not taken[rank]:
                    if part.receive and not waiting[part.receive.channel]:
                        break
                    if part.receive:
                        waiting[part.receive.channel] -= 1
                    taken[rank] = True
                if part.send:
                    if waiting[part.send.channel] >= room[part.send.channel]:
                        break
                    waiting[part.send.channel] += 1
                done[rank], taken[rank], moved = done[rank] + 1, False, True
    return done == [len(own) for own in parts]


@pytest.mark.parametrize(("name", "ranks", "microbatches"), [*cases()])
def test_bounded_sends_cannot_deadlock(name, ranks, microbatches):
    """Room for ``depth`` messages is enough, and the runtime leaves more."""
    schedule = generate(name, ranks, microbatches)
    depths = receive_depths(schedule)
    assert finishes(schedule, depths)
    assert not finishes(schedule, dict.fromkeys(depths, 0))


@pytest.mark.parametrize("hop", [0.0, 0.25, 1.5, 40.0])
@pytest.mark.parametrize(("name", "ranks", "microbatches"), [case for case in cases() if case[1:] <= (4, 12)])
def test_late_receives_are_posted_as_early_as_they_have_to_be(name, ranks, microbatches, hop):
    """As many actions ahead as the simulator advises, one or more; no more than `depths` of a channel, or two."""
    schedule, costs = generate(name, ranks, microbatches), Costs(link=Link(latency=hop))
    for executed in (schedule, forward_only(schedule)):
        advised = most_ahead(receive_leads(simulate(executed, costs)))
        for rank in range(ranks):
            early, late = compile_rank(executed, rank), compile_rank(executed, rank, costs)
            assert early.posts is None and not early.leads and late.ops == early.ops
            waiting = {channel: iter(messages) for channel, messages in late.receives.items()}
            ahead, outstanding, most = defaultdict(list), Counter(), Counter()
            posted = {}
            for index, op in enumerate(late.ops):
                for channel in late.posts[index]:
                    posted[next(waiting[channel])] = index
                    outstanding[channel] += 1
                    most[channel] = max(most[channel], outstanding[channel])
                for part in op.parts:
                    if part.receive is not None:
                        ahead[part.receive.channel].append((posted[part.receive], index))
                        outstanding[part.receive.channel] -= 1
            assert not outstanding.total() and late.leads == {
                channel: max(1, *(index - post for post, index in own)) for channel, own in ahead.items()
            }
            for channel, own in ahead.items():
                assert most[channel] <= max(2, late.depths[channel])
                assert late.leads[channel] <= advised[channel]
                assert all(post <= max(index - 1, 0) for post, index in own)
                if hop <= 1:  # less than the shortest action
                    assert [post for post, _ in own] == [max(index - 1, 0) for _, index in own]
            assert late.peaks.live == early.peaks.live
            assert late.peaks.buffers <= early.peaks.buffers + 2 * len(late.receives)
