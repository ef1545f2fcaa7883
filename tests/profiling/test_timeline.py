"""What ranks record of a step is accounted for as the simulator accounts for its own: no clock, no noise."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from hcmegatron.profiling.critical_path import critical_path
from hcmegatron.profiling.measured_costs import measured_costs
from hcmegatron.profiling.rank_step import NodeRan, from_json
from hcmegatron.profiling.summary import summarise
from hcmegatron.profiling.timeline import joined
from schedules import generate
from schedules.accounting import CAUSES
from schedules.costs import Costs, Link, StageCosts
from schedules.generators import GENERATORS
from schedules.simulate import simulate
from tests.profiling.simulated import records

UNIT = 0.02  # seconds


def simulation(name, ranks=4, microbatches=8, hop=0.25, early=True):
    return simulate(generate(name, ranks, microbatches), Costs(link=Link(hop), early=early))


@pytest.mark.parametrize("early", [True, False], ids=["early", "lockstep"])
@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_recorded_step_comes_to_what_was_simulated(name, early):
    simulated = simulation(name, early=early)
    timeline = joined(records(simulated, clocks=[0.0, 5.0, -3.0, 1e3]), 0)
    assert timeline.seconds == pytest.approx(UNIT * simulated.makespan)
    for own, expected in zip(timeline.accounts(), simulated.accounts, strict=True):
        assert own.computing == pytest.approx(UNIT * expected.computing)
        for cause in CAUSES:
            assert own.bubble[cause] == pytest.approx(UNIT * expected.bubble[cause], abs=1e-9), cause
        assert own.exposed.get("hop", 0.0) == pytest.approx(UNIT * expected.exposed.get("hop", 0.0), abs=1e-9)
        assert own.hidden["hop"] == pytest.approx(UNIT * expected.hidden["hop"], abs=1e-9)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_measured_costs_simulate_to_the_step_that_they_are_of(name):
    simulated = simulation(name)
    measured = measured_costs([joined(records(simulated), 0)], simulated.schedule)
    assert simulate(simulated.schedule, measured.costs()).makespan == pytest.approx(UNIT * simulated.makespan)
    assert measured.link.latency == pytest.approx(0.25 * UNIT) and measured.host == pytest.approx(0.0)
    taken = [(stage.F, stage.B) for stage in measured.stages]
    assert taken == [pytest.approx((UNIT, 2 * UNIT))] * len(taken)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_critical_path_is_as_long_as_the_pipeline(name):
    simulated = simulation(name)
    timeline = joined(records(simulated), 0)
    path = critical_path(timeline)
    assert path[0].start == pytest.approx(timeline.begin)
    assert path[-1].start + path[-1].seconds == pytest.approx(timeline.end)
    hops = sum(a.rank != b.rank for a, b in pairwise(path))
    on_path = sum(at.seconds for at in path) + hops * 0.25 * UNIT
    assert on_path == pytest.approx(timeline.seconds)


def test_a_summary_by_hand():
    """GPipe, two ranks, one micro-batch, hops of 1: F0 0-1, F1 2-3, B1 3-5, B0 6-8. Bytes are the fixture's."""
    simulated = simulate(generate("gpipe", 2, 1), Costs(link=Link(1.0)))
    found = summarise(records(simulated, unit=1.0), simulated.schedule)
    assert (found["step_ms"], found["simulated_step_ms"], found["hop_ms"]) == (8000.0, 8000.0, 1000.0)
    first, last = found["per_rank"]
    assert (first["compute_ms"], last["compute_ms"]) == (3000.0, 3000.0)
    assert first["bubble_ms"] == {
        "fill": 4000.0,
        "drain": 0.0,
        "waiting": 1000.0,
        "imbalance": 0.0,
        "host": 0.0,
    }
    assert last["bubble_ms"] == {
        "fill": 1000.0,
        "drain": 3000.0,
        "waiting": 1000.0,
        "imbalance": 0.0,
        "host": 0.0,
    }
    assert found["communication"] == {"hop": {"hidden_ms": 0.0, "exposed_ms": 2000.0, "bytes": 16}}
    assert [(at["rank"], at["action"]) for at in found["critical_path"]] == [
        (0, "0F0"),
        (1, "1F0"),
        (1, "1B0"),
        (0, "0B0"),
    ]
    change = {entry["change"]: entry["step_ms"] for entry in found["what_if"]}
    assert change["messages between stages take no time"] == 6000.0
    assert change["all stages take equally long"] == 8000.0
    assert {(a["action"], a["stage"]): a["measured_ms"] for a in found["actions"]} == {
        ("F", 0): 1000.0,
        ("F", 1): 1000.0,
        ("B", 0): 2000.0,
        ("B", 1): 2000.0,
    }


def test_another_balance_is_what_helps():
    slow = StageCosts(F=3.0, I=3.0, W=3.0)
    costs = Costs((StageCosts(), slow, StageCosts(), StageCosts()))
    simulated = simulate(generate("1f1b", 4, 16), costs)
    found = summarise(records(simulated), simulated.schedule)
    best = next(entry for entry in found["what_if"] if not entry["change"].startswith("parallel.schedule"))
    assert best["change"] == "all stages take equally long"
    even = simulate(simulated.schedule, Costs((StageCosts(F=1.5, I=1.5, W=1.5),))).makespan
    assert best["step_ms"] == pytest.approx(1e3 * UNIT * even, rel=1e-6)


def test_all_to_alls_are_exposed_where_nothing_computes():
    """One action of 10 s. An all-to-all from 2 to 6, beside it a node on the high-priority lane from 5 to 7."""
    simulated = simulate(generate("gpipe", 1, 1), Costs((StageCosts(F=10.0, I=5.0, W=5.0),)))
    (record,) = records(simulated, unit=1.0)
    nodes = (
        NodeRan("F", "attention", "compute", 100.0, 102.0, 8),
        NodeRan("F", "dispatch", "communication", 102.0, 106.0, 64),
        NodeRan("F", "merge", "high priority", 105.0, 107.0, 8),
    )
    record = replace(record, steps=(replace(record.steps[0], nodes=nodes),))
    found = summarise([record], simulated.schedule)
    assert found["communication"] == {"dispatch": {"hidden_ms": 1000.0, "exposed_ms": 3000.0, "bytes": 128}}
    own = found["per_rank"][0]
    assert own["compute_ms"] == 17000.0 and own["bubble_ms"]["waiting"] == 3000.0
    assert own["lanes"]["communication"] == {"busy_ms": 4000.0, "hidden_ms": 1000.0, "exposed_ms": 3000.0}
    assert own["lanes"]["high priority"]["busy_ms"] == 2000.0
    assert {e["change"]: e["step_ms"] for e in found["what_if"]}["all-to-alls take no time"] < 20000.0


def test_records_are_read_as_they_were_written():
    record = records(simulation("dualpipev", 2, 4))[1]
    assert from_json(json.loads(json.dumps(record.as_json()))) == record
    with pytest.raises(ValueError, match="format 2 of a rank's profile; this version reads 1"):
        from_json({**record.as_json(), "format": 2})


def test_the_step_of_median_length_is_shown_and_those_under_the_profiler_do_not_count():
    units = {5: 3.0, 6: 1.0, 7: 2.0, 8: 0.5}
    of_steps = {number: records(simulation("1f1b", 2, 4), unit=unit) for number, unit in units.items()}
    together = [
        replace(
            record,
            steps=tuple(replace(own[record.rank].steps[0], step=number) for number, own in of_steps.items()),
        )
        for record in of_steps[5]
    ]
    schedule = generate("1f1b", 2, 4)
    whole = 1e3 * simulation("1f1b", 2, 4).makespan
    found = summarise(together, schedule, timed=3)
    assert (found["step"], found["step_ms"]) == (7, pytest.approx(2 * whole))
    assert found["steps_ms"] == pytest.approx([3 * whole, whole, 2 * whole, whole / 2])
    assert summarise(together, schedule)["step"] == 6  # the shorter one of the middle two
