"""Exposed and hidden communication of measured steps, beside what the emulation of link, stages and lanes knows.

The profile does not know the link: it sees when messages are sent and when they are waited for. Other load on the
machine delays whoever sleeps: one attempt that is within five parts in a hundred is proof.
"""

import pytest

from hcmegatron.profiling.summary import summarise
from hcmegatron.profiling.timeline import joined
from hcmegatron.profiling.trace import to_trace
from schedules import generate
from schedules.accounting import Interval, idle, length
from tests.pace import too_busy
from tests.profiling import lane_workers, link_workers, traces
from tests.profiling.truth import exposed_and_hidden
from tests.ranks import run_ranks
from tools.bench_link import LinkCase
from tools.bench_overlap import OverlapCase

pytestmark = [pytest.mark.ranks, pytest.mark.alone]
LINK = ("torch.distributed", "tests.profiling.link_workers")
LANES = ("torch.distributed", "tests.profiling.lane_workers")
ATTEMPTS = 5


def attempts(once):
    """Until one is right."""
    for _ in range(ATTEMPTS):
        wrong = once()
        if not wrong:
            return
    if words := too_busy():
        pytest.skip(f"no timing possible: {words}")
    pytest.fail(f"{ATTEMPTS} attempts, the last: {wrong}")


def differ(what, found, true):
    return (
        [] if abs(found - true) <= 0.05 * true else [f"{what}: {1e3 * found:.2f} ms, truly {1e3 * true:.2f}"]
    )


def adds_up(timeline, schedule, lockstep=False):
    """What holds whatever the machine does; the summary."""
    for own in timeline.accounts():
        assert own.computing + sum(own.bubble.values()) == pytest.approx(timeline.seconds, rel=1e-6)
        assert own.bubble["waiting"] == pytest.approx(sum(own.exposed.values()), abs=1e-9)
    traces.check(to_trace([timeline], schedule))
    return summarise(timeline.records, schedule, lockstep)


@pytest.mark.parametrize(
    "case",
    [
        LinkCase("dualpipev", 2, 6, hop=0.5),
        LinkCase("dualpipev", 4, 8, hop=0.5, lockstep=True),
        LinkCase("dualpipe", 4, 8, hop=0.5),
        LinkCase("1f1b", 2, 6, hop=0.5, wire="bandwidth"),
    ],
    ids=["dualpipev", "lockstep", "dualpipe", "1f1b"],
)
def test_messages_on_an_emulated_link(case):
    schedule = generate(case.schedule, case.ranks, case.microbatches)

    def once():
        found = run_ranks(case.ranks, link_workers.profiled, case, preload=LINK)
        timeline = joined([record for record, _ in found], 0)
        summary = adds_up(timeline, schedule, case.lockstep)
        truth = exposed_and_hidden(schedule, [truths[0] for _, truths in found], case.lockstep)
        own = timeline.accounts()
        return [
            *differ("exposed", sum(a.exposed["hop"] for a in own), sum(exposed for exposed, _ in truth)),
            *differ("hidden", sum(a.hidden["hop"] for a in own), sum(hidden for _, hidden in truth)),
            *differ("step", 1e-3 * summary["step_ms"], case.simulated()),
            *differ("simulated", 1e-3 * summary["simulated_step_ms"], 1e-3 * summary["step_ms"]),
        ]

    attempts(once)


@pytest.mark.parametrize(
    "case",
    [OverlapCase("dualpipev", 2, 4, unit=0.006), OverlapCase("dualpipe", 4, 8, unit=0.006)],
    ids=["dualpipev", "dualpipe"],
)
def test_all_to_alls_and_hops_on_emulated_lanes(case):
    """All-to-alls as long as attention, hops a quarter of F: overlapped, some of each are hidden."""
    schedule = generate(case.schedule, case.ranks, case.microbatches)

    def once():
        found = run_ranks(case.ranks, lane_workers.profiled, case, preload=LANES)
        timeline = joined([record for record, _ in found], 0)
        adds_up(timeline, schedule)
        wrong, hops = [], []
        for rank, (own, (_, truth)) in enumerate(zip(timeline.accounts(), found, strict=True)):
            computed, moved = ([Interval(*one) for one in lane] for lane in (truth.computed, truth.moved))
            alone = idle(computed, timeline.begin, timeline.end)
            still = idle([*computed, *moved], timeline.begin, timeline.end)
            exposed = length(alone) - length(still)
            flights = [
                Interval(left, arrived)
                for _, other in found
                for target, left, arrived in other.sent
                if target == rank
            ]
            waited = length(still) - length(idle([*computed, *moved, *flights], timeline.begin, timeline.end))
            hops.append((own.exposed["hop"], own.hidden["hop"], waited, length(flights) - waited))
            all_to_alls = [
                sum(what[kind] for kind in ("dispatch", "combine")) for what in (own.exposed, own.hidden)
            ]
            wrong += differ(f"exposed all-to-alls of rank {rank}", all_to_alls[0], exposed)
            wrong += differ(f"hidden all-to-alls of rank {rank}", all_to_alls[1], length(moved) - exposed)
            wrong += differ(f"computation of rank {rank}", own.computing, length(computed))
        exposed, hidden, true_exposed, true_hidden = map(sum, zip(*hops, strict=True))
        return [
            *wrong,
            *differ("exposed hops", exposed, true_exposed),
            *differ("hidden hops", hidden, true_hidden),
        ]

    attempts(once)
