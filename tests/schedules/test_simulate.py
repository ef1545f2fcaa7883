"""Times, waiting, memory: against small cases worked out by hand, and properties that any simulation has."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.actions import Kind
from schedules.costs import Costs, Link, StageCosts, stage_costs
from schedules.generators import generate
from schedules.memory import channel_buffers, memory_over_time, parameter_bytes, peaks
from schedules.node_costs import (
    NodeCost,
    backward_slots,
    exposed_communication,
    forward_slots,
    makespan,
    pair_slots,
)
from schedules.simulate import simulate
from tests.schedules.strategies import schedules

UNIT = StageCosts(F=1, I=1, W=1)


def test_two_ranks_by_hand():
    """1F1B, P=2, M=2, a hop of 0.5: rank 0 waits for both gradients, rank 1 for both activations."""
    simulation = simulate(generate("1f1b", 2, 2), Costs((UNIT,), Link(0.5)))
    times = [[(str(t.action), t.start, t.end) for t in timed] for timed in simulation.timeline]
    assert times == [
        [("0F0", 0, 1), ("0F1", 1, 2), ("0B0", 5, 7), ("0B1", 8, 10)],
        [("1F0", 1.5, 2.5), ("1B0", 2.5, 4.5), ("1F1", 4.5, 5.5), ("1B1", 5.5, 7.5)],
    ]
    assert simulation.makespan == 10 and simulation.bubble == (4, 4)
    # Rank 0 stands still from 2 to 5, of which B0's gradient is on its way from 4.5; then 7 to 8, from 7.5.
    assert simulation.exposed == (1, 0.5)
    assert simulation.hidden == (0, 0.5)
    path = [(step.rank, str(step.action), step.end, step.hop) for step in simulation.critical_path()]
    assert path == [
        (0, "0F0", 1, 0),
        (1, "1F0", 2.5, 0.5),
        (1, "1B0", 4.5, 0),
        (1, "1F1", 5.5, 0),
        (1, "1B1", 7.5, 0),
        (0, "0B1", 10, 0.5),
    ]


def test_messages_queue_for_bandwidth_but_not_for_latency():
    """Two sends at times 1 and 2 of 12 bytes at 4 bytes per unit: the link is taken 1-4 and 4-7, arrivals 10
    later."""
    costs = Costs((UNIT,), Link(10, 4), hop_bytes=3, streams=4)
    transfers = simulate(generate("gpipe", 2, 2), costs).transfers
    forward = [(t.produced, t.leaves, t.arrives) for t in transfers if t.message.payload is Kind.F]
    assert forward == [(1, 1, 14), (2, 4, 17)]


def test_a_link_of_its_own():
    slow = Costs((UNIT,), links={(0, 1): Link(2)})
    assert simulate(generate("gpipe", 2, 1), slow).makespan == 3 + 2 + 3
    assert (
        simulate(generate("gpipe", 2, 1), replace(slow, links={(0, 1): Link(2), (1, 0): Link(3)})).makespan
        == 11
    )


def test_uneven_stages():
    """GPipe with one micro-batch is the sum of all stages, with many it is ruled by the slowest."""
    stages = tuple(StageCosts(F=f, I=f, W=f) for f in (1, 2, 4, 1))
    assert simulate(generate("gpipe", 4, 1), Costs(stages)).makespan == 3 * 8
    assert simulate(generate("1f1b", 4, 50), Costs(stages)).makespan >= 50 * 12
    with pytest.raises(ValueError, match="costs of 4 stages for a schedule of 8"):
        simulate(generate("zb_v", 4, 8), Costs(stages))


@pytest.mark.parametrize(
    ("lead", "gradient", "expected"),
    [
        # forward half ends, backward half starts, end; F=1, B=2, FB=2.4
        (0.0, 0.0, (2.4, 0.0, 2.4)),
        (0.5, 0.0, (0.5 + 1.2, 0.5, 1.7 + 1.0)),
        (1.0, 0.0, (1.0, 1.0, 3.0)),
        (0.0, 0.5, (1.7, 0.5, 2.7)),  # the gradient comes late: F goes on alone until it is there
        (0.0, 1.0, (1.0, 1.0, 3.0)),
        (0.25, 5.0, (1.0, 5.0, 7.0)),
    ],
)
def test_lead_inside_a_pair(lead, gradient, expected):
    from schedules.simulate import _run_pair, _Value

    stage = StageCosts(F=1, B=2, FB=2.4)
    action = next(a for a in generate("dualpipev", 1, 3).actions[0] if a.kind is Kind.FB)
    inputs = [_Value(0.0, None), _Value(gradient, None)]
    timed = _run_pair(
        action, action.overlapped, inputs, 0.0, None, Costs((stage,), lead=lead), (stage, stage)
    )
    assert (timed.forward_end, timed.backward_start, timed.end) == pytest.approx(expected)
    assert timed.busy == pytest.approx(timed.end - max(0.0, gradient - 1.0))


@st.composite
def any_costs(draw):
    """Multiples of 1/4, so that sums are exact."""
    F, I, W, hop = (draw(st.integers(low, 8)) / 4 for low in (1, 1, 0, 0))
    early = draw(st.booleans())
    return Costs((StageCosts(F=F, I=I, W=W),), Link(hop), early=early, lead=1.0)


@settings(max_examples=80, deadline=None)
@given(schedules(ranks=6), any_costs())
def test_every_simulation_is_consistent(schedule, costs):
    simulation = simulate(schedule, costs)
    stage = costs.stages[0]
    ended = {}
    for timeline in simulation.timeline:
        for before, after in itertools.pairwise(timeline):
            assert after.start >= before.end
        for timed in timeline:
            assert timed.busy == sum(getattr(stage, part.kind.value) for part in timed.action.parts)
            for part in timed.action.parts:
                kind = "F" if part.kind is Kind.F else part.kind.value
                ended[kind, part.stage, part.microbatch] = timed.forward_end if kind == "F" else timed.end
    for transfer in simulation.transfers:
        assert transfer.arrives == transfer.leaves + costs.link.latency
    assert all(e >= 0 for e in simulation.exposed) and all(h >= 0 for h in simulation.hidden)
    assert all(e <= b for e, b in zip(simulation.exposed, simulation.bubble, strict=True))
    longest_path = sum(
        stage.F + getattr(stage, "B" if ("B", s, m) in ended else "I")
        for s in range(schedule.placement.model_stages)
        for m in [0]
    )
    assert simulation.makespan >= max(max(simulation.busy), longest_path)


@settings(max_examples=80, deadline=None)
@given(schedules(ranks=6), any_costs())
def test_the_critical_path_accounts_for_the_whole_makespan(schedule, costs):
    path = simulate(schedule, costs).critical_path()
    stage, at = costs.stages[0], 0.0
    for step in path:
        kinds = [part.kind for part in step.action.parts]
        if len(kinds) == 2 and costs.early:
            # Either half may be the reason; a path that leaves a pair by its end has passed both halves, or
            # waited.
            took = step.end - at - step.hop
            assert took in ({stage.F} if step.half is Kind.F else {stage.B, stage.F + stage.B})
        else:
            took = sum(getattr(stage, kind.value) for kind in kinds)
        at += step.hop + took
        assert step.end == at
    assert at == simulate(schedule, costs).makespan


@settings(max_examples=40, deadline=None)
@given(schedules(ranks=5), any_costs())
def test_slower_links_never_help(schedule, costs):
    slower = replace(costs, link=Link(costs.link.latency + 0.5))
    free = simulate(schedule, costs.with_free_links())
    assert free.makespan <= simulate(schedule, costs).makespan <= simulate(schedule, slower).makespan
    assert free.exposed == (0.0,) * schedule.ranks


def test_memory_by_hand():
    """ZB-H1, P=1, M=2: F0 I0 W0 F1 I1 W1 at times 0..6. 10 bytes live, 4 of them between I and W, 100 of
    parameters."""
    stage = StageCosts(F=1, I=1, W=1, activation=10, pending=4, parameters=100)
    simulation = simulate(generate("zb_h1", 1, 2), Costs((stage,)))
    assert memory_over_time(simulation) == ([(0, 110), (2, 104), (3, 110), (5, 104), (6, 100)],)
    assert peaks(simulation)[0] == (110, 0, 1, 0)


def test_receive_buffers_count_from_the_first_byte_to_the_use():
    """GPipe, P=2, M=3, B twice as long as F: rank 0's gradients are used at once, rank 1's activations too;
    with a slow rank 1 they pile up."""
    slow = (UNIT, StageCosts(F=3, I=1, W=1))
    costs = Costs(slow, Link(0, 10), hop_bytes=5)
    simulation = simulate(generate("gpipe", 2, 3), costs)
    # Activations leave rank 0 at 1, 2, 3 and take 0.5; they are used at 1.5, 4.5 and 7.5.
    assert peaks(simulation)[1].buffers == 2
    assert channel_buffers(simulation) == {(0, 1): 2, (1, 0): 1}


def test_dualpipe_holds_two_copies_of_the_parameters():
    stage = StageCosts(parameters=8)
    for name, per_rank, copies in (("1f1b", 8, 1), ("dualpipe", 16, 2)):
        simulation = simulate(generate(name, 4, 8), Costs((stage,)))
        assert [parameter_bytes(simulation, r) for r in range(4)] == [per_rank] * 4
        assert len(simulation.schedule.placement.paths) == copies


@settings(max_examples=30, deadline=None)
@given(schedules(ranks=5))
def test_memory_returns_to_the_parameters(schedule):
    costs = Costs((StageCosts(activation=8, pending=2, parameters=64),), Link(0.25), hop_bytes=4)
    simulation = simulate(schedule, costs)
    for rank, curve in enumerate(memory_over_time(simulation)):
        assert curve[-1][1] == parameter_bytes(simulation, rank)
        assert max(held for _, held in curve) == peaks(simulation)[rank].bytes
        assert min(held for _, held in curve) >= parameter_bytes(simulation, rank)


MOE = [
    NodeCost("attention", "compute", 3, 4, 2),
    NodeCost("dispatch", "communication", 2, 2),
    NodeCost("experts", "compute", 3, 3, 3),
    NodeCost("combine", "communication", 2, 2),
]
DENSE = [NodeCost("attention", "compute", 3, 4, 2), NodeCost("experts", "compute", 3, 3, 3)]


def test_all_to_alls_are_exposed_alone_and_hidden_in_a_pair():
    """Alone a forward layer takes 10, 4 of it all-to-all. Its pair with a backward computes for 18 and hides
    the 8 units of four all-to-alls but the first combine and the last."""
    assert makespan(forward_slots([MOE])) == 10 and exposed_communication(forward_slots([MOE])) == 4
    pair = pair_slots([MOE] * 4, [MOE] * 4)
    assert makespan(pair) < makespan(forward_slots([MOE] * 4)) + makespan(backward_slots([MOE] * 4))
    computing = sum(slot.end - slot.start for slot in pair if slot.lane == "compute")
    assert computing == 4 * 18
    assert exposed_communication(pair) == makespan(pair) - computing <= 4 * 2


def test_published_order_inside_a_pair():
    """combine(B) attn(F) mlp(B) dispatch(F) dispatch(B) mlp(W) mlp(F) attn(B) attn(W) combine(F)."""
    order = [(slot.role, slot.phase) for slot in pair_slots([MOE], [MOE])]
    assert order == [
        ("combine", "I"),
        ("attention", "F"),
        ("experts", "I"),
        ("dispatch", "F"),
        ("dispatch", "I"),
        ("experts", "W"),
        ("experts", "F"),
        ("attention", "I"),
        ("attention", "W"),
        ("combine", "F"),
    ]


@pytest.mark.parametrize(("forward", "backward"), [(3, 1), (1, 3), (0, 2), (2, 0)])
@pytest.mark.parametrize("lead", [0, 1, 5])
def test_pairs_of_unequal_stages_do_all_their_work_in_order(forward, backward, lead):
    layers = [MOE, DENSE, MOE]
    slots = pair_slots(layers[:forward], layers[:backward], lead)
    work = sum(node.forward for layer in layers[:forward] for node in layer)
    work += sum(node.dgrad + node.wgrad for layer in layers[:backward] for node in layer)
    assert sum(slot.end - slot.start for slot in slots) == work
    for phase in "FI":
        chain = [slot for slot in slots if slot.phase == phase]
        assert all(a.end <= b.start for a, b in itertools.pairwise(chain))
    for lane in ("compute", "communication"):
        busy = sorted((slot.start, slot.end) for slot in slots if slot.lane == lane)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(busy))


def test_costs_of_a_stage_from_its_nodes():
    costs = stage_costs([DENSE, DENSE], parameters=7)
    assert (costs.F, costs.I, costs.W, costs.B, costs.FB, costs.parameters) == (12, 14, 10, 24, 36, 7)
    moe = stage_costs([MOE] * 4)
    assert moe.F == 40 and moe.I == 44 and moe.W == 20
    assert max(moe.F, moe.B) < moe.FB < moe.F + moe.B


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StageCosts(F=-1), "F=-1: a cost is a finite number"),
        (lambda: StageCosts(W=math.inf), "W=inf"),
        (lambda: StageCosts(FB=4), "FB=4 is more than F \\+ B"),
        (lambda: StageCosts(FB=1), "FB=1 is less than the longer"),
        (lambda: StageCosts(pending=2), "pending=2 is more than activation"),
        (lambda: Link(latency=-1), "latency=-1"),
        (lambda: Link(bandwidth=0), "bandwidth=0"),
        (lambda: Costs(lead=2), "lead=2"),
        (lambda: Costs(streams=0), "streams=0"),
        (lambda: Costs(hop_bytes=-1), "hop_bytes=-1"),
        (lambda: Costs(()), "stages: at least one"),
        (lambda: NodeCost("mlp", "compute", 1, 1), "node 'mlp'"),
        (lambda: NodeCost("experts", "gpu", 1, 1), "lane 'gpu'"),
        (lambda: NodeCost("experts", "compute", -1, 1), "forward=-1"),
    ],
)
def test_impossible_costs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_invalid_schedule_stops_the_simulation_in_words():
    schedule = generate("1f1b", 2, 2)
    broken = replace(schedule, actions=(schedule.actions[0], (schedule.actions[1][0],)))
    with pytest.raises(ValueError, match="rank 0 cannot run 0B0"):
        simulate(broken, Costs())


@pytest.mark.parametrize("lead", [0, 1, 2, 3, 4])
def test_the_linear_model_of_a_lead_agrees_with_the_nodes(lead):
    """``simulate`` spreads a pair's overlap evenly over F; laying out 4 layers' nodes with that many layers
    of lead ends within 2% of it, and F within one layer."""
    from schedules.simulate import _run_pair, _Value

    stage = stage_costs([MOE] * 4)
    action = next(a for a in generate("dualpipev", 1, 3).actions[0] if a.kind is Kind.FB)
    inputs = [_Value(0.0, None)] * 2
    timed = _run_pair(
        action, action.overlapped, inputs, 0.0, None, Costs((stage,), lead=lead / 4), (stage, stage)
    )
    slots = pair_slots([MOE] * 4, [MOE] * 4, lead)
    assert timed.end == pytest.approx(makespan(slots), rel=0.02)
    assert timed.forward_end == pytest.approx(max(s.end for s in slots if s.phase == "F"), abs=stage.F / 4)
