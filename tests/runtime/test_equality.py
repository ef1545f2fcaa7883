"""Every schedule gives the losses and gradients of one process, executes what it says, in bounded memory."""

import pytest

from schedules import GENERATORS, generate
from schedules.costs import Link
from schedules.runtime import InProcessWorld, step_all
from schedules.runtime.program import forward_only
from tests.ranks import run_ranks
from tests.runtime import workers
from tests.runtime.equality import PRELOAD, SIZES, check, check_in_process, lengths_for
from tests.runtime.stages import losses, reference, stages_of
from tests.runtime.workers import runtime


@pytest.mark.parametrize("late", [False, True], ids=["", "late receives"])
@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("name", GENERATORS)
def test_in_process(name, ranks, late, tmp_path):
    check_in_process(name, ranks, tmp_path, late=late)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("link", [None, Link(1e-3, 1e6)], ids=["free", "emulated link"])
@pytest.mark.parametrize("shared", [False, True], ids=["gloo", "shared memory"])
def test_between_processes(ranks, link, shared):
    """Two steps, of which the second has to be like the first."""
    cases = [(name, lengths_for(name, ranks)) for name in GENERATORS]
    results = run_ranks(ranks, workers.train, cases, 2, link, shared, preload=PRELOAD)
    for (name, lengths), *own in zip(cases, *results, strict=True):
        check(generate(name, ranks, len(lengths)), lengths, own, shared=shared)


def test_forward_only_gives_the_losses_and_keeps_nothing(tmp_path):
    ranks, lengths = 4, lengths_for("dualpipev", 4)
    schedule = generate("dualpipev", ranks, len(lengths))
    world = InProcessWorld(ranks)
    stages = [stages_of(schedule, rank, lengths) for rank in range(ranks)]
    runtimes = [
        runtime(schedule, r, stages[r], world.transport(r), lengths, evaluate=True) for r in range(ranks)
    ]
    records = step_all(world, runtimes, limit=20, directory=tmp_path)
    expected, _ = reference(schedule.placement.model_stages, lengths)
    assert losses(stages[0]) == pytest.approx(expected, rel=1e-13)
    for rank, record in enumerate(records):
        assert record.actions == forward_only(schedule).actions[rank]
        assert record.peaks.live == 1
        assert runtimes[rank]._pool.in_use == 0
