"""Traces are well-formed, complete, and true to what was recorded."""

import json
from collections import Counter

import pytest

from hcmegatron.profiling.kineto import ANCHOR, host_events
from hcmegatron.profiling.timeline import joined
from hcmegatron.profiling.trace import MESSAGES, TRACKS, to_trace
from schedules import generate
from schedules.costs import Costs, Link
from schedules.generators import GENERATORS
from schedules.simulate import simulate
from tests.profiling import traces
from tests.profiling.simulated import records


@pytest.mark.parametrize("early", [True, False], ids=["early", "lockstep"])
@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_every_action_and_message_is_in_the_trace(name, early):
    simulated = simulate(generate(name, 4, 8), Costs(link=Link(0.25), early=early))
    trace = to_trace([joined(records(simulated, clocks=[0, 3, -2, 9]), 0)], simulated.schedule)
    slices, arrows = traces.check(json.loads(json.dumps(trace)))
    assert len(arrows) == len(simulated.transfers)
    for rank, timeline in enumerate(simulated.timeline):
        actions = {name: start for start, _, name in slices[rank, 0]}
        for timed in timeline:
            assert actions[str(timed.action)] == pytest.approx(20e3 * timed.start, abs=0.01)
        on_tracks = [own for (pid, tid), own in slices.items() if pid == rank and tid >= MESSAGES]
        there = Counter(name for own in on_tracks for *_, name in own)
        assert there == Counter(
            t.message.send_text for t in simulated.transfers if t.message.target_rank == rank
        )
    events = trace["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} >= set(TRACKS)


def event(name, start, length, category="cpu_op", thread=7, **args):
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "ts": start,
        "dur": length,
        "pid": 1,
        "tid": thread,
        "args": args,
    }


def test_what_the_profiler_saw_is_laid_beside_it():
    """Microseconds since the profiler's own zero, where the annotation at 1,000 is second 100 of the host's clock."""
    found = host_events(
        {
            "traceEvents": [
                event(ANCHOR, 1000.0, 1.0, "user_annotation"),
                event("aten::mm", 3000.0, 500.0),
                event("gemm", 3500.0, 250.0, "kernel", 7, stream=7),
                event("gloo:recv", 2000.0, 5000.0, "user_annotation"),
                {"ph": "i", "name": "an instant", "ts": 3.0, "cat": "cpu_op"},
                event("python", 1.0, 1.0, "python_function"),
            ]
        },
        anchor=100.0,
    )
    at = {e.name: (e.track, round(e.start, 6), round(e.end, 6)) for e in found}
    assert at == {
        ANCHOR: ("host thread 7", 100.0, 100.000001),
        "aten::mm": ("host thread 7", 100.002, 100.0025),
        "gemm": ("stream 7", 100.0025, 100.00275),
        "gloo:recv": ("begun by the host", 100.001, 100.006),
    }
    simulated = simulate(generate("1f1b", 1, 1), Costs())
    own = records(simulated, start=100.0)
    late = [
        e._replace(name="late", start=e.start + 1e-4, end=e.end + 1.0) for e in found if e.name == "aten::mm"
    ]
    trace = to_trace([joined(own, 0)], simulated.schedule, [[*found, *late]])
    traces.check(trace)
    names = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    places = {e["name"]: (names[e["pid"], e["tid"]], e["ts"]) for e in trace["traceEvents"] if e["ph"] == "X"}
    assert places["aten::mm"] == ("host thread 7", 2000.0)
    assert places["late"] == ("host thread 7, beside it 1", 2100.0)


def test_the_check_finds_faults():
    simulated = simulate(generate("1f1b", 2, 2), Costs(link=Link(0.25)))
    whole = to_trace([joined(records(simulated), 0)], simulated.schedule)
    for fault in (
        lambda events: events.append({**next(e for e in events if e["ph"] == "X"), "ts": 1.0, "dur": 1e6}),
        lambda events: events.remove(next(e for e in events if e["ph"] == "f")),
        lambda events: next(e for e in events if e["ph"] == "s").update(ts=-5e6),
        lambda events: next(e for e in events if e["ph"] == "X").pop("dur"),
    ):
        trace = json.loads(json.dumps(whole))
        fault(trace["traceEvents"])
        with pytest.raises((AssertionError, KeyError)):
            traces.check(trace)
