"""A large machine's schedule is generated, validated and simulated in seconds."""

import time

from schedules.costs import Costs, Link, StageCosts
from schedules.generators import generate
from schedules.simulate import simulate
from schedules.validate import validate
from tests.pace import pace


def test_64_ranks_512_microbatches():
    """Processor time, so that a busy machine does not fail it; 10 seconds are promised."""
    start = time.process_time()
    schedule = generate("dualpipev", 64, 512)
    validate(schedule)
    simulation = simulate(schedule, Costs((StageCosts(),), Link(0.25)))
    took = time.process_time() - start
    assert simulation.makespan > simulation.busy[0] == 512 * 6
    assert took < 10 * pace(), took
