"""What a rank holds at most under each schedule: micro-batches that wait, and weight gradients left for later."""

import pytest

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES
from hcmegatron.config.schema import Config
from hcmegatron.pipeline.configured_schedule import least_micro_batches, most_held, training_schedule


def held(schedule, pipeline, microbatches, virtual=None):
    config = Config()
    config.parallel.schedule, config.parallel.pipeline, config.parallel.virtual = schedule, pipeline, virtual
    return [tuple(most_held(config, microbatches, rank)) for rank in range(pipeline)]


def test_one_rank_holds_one_at_a_time():
    assert held("megatron_1f1b", 1, 16) == [(1, 0)]


@pytest.mark.parametrize("schedule", ["megatron_1f1b", "1f1b"])
def test_1f1b(schedule):
    assert held(schedule, 4, 16) == [(4, 0), (3, 0), (2, 0), (1, 0)]
    assert held(schedule, 4, 2) == [(2, 0), (2, 0), (2, 0), (1, 0)]


def test_interleaved():
    assert held("megatron_interleaved", 4, 16, 2) == [(11, 0), (9, 0), (7, 0), (5, 0)]


def test_gpipe_holds_all():
    assert held("gpipe", 2, 6) == [(6, 0), (6, 0)]


def test_split_backward_defers_where_fewer_wait():
    assert held("zb_h1", 4, 16) == [(4, 0), (3, 1), (2, 2), (1, 3)]


@pytest.mark.parametrize("pipeline", [1, 2, 4])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - MEGATRONS))
def test_no_schedule_takes_fewer_than_its_least(schedule, pipeline):
    config = Config()
    config.parallel.schedule, config.parallel.pipeline = schedule, pipeline
    found = [m for m in range(1, 17) if taken(config, m)]
    if pipeline > 1 or schedule != "dualpipe":  # whose ranks come in pairs
        assert least_micro_batches(config.parallel) == found[0]


def taken(config, microbatches):
    try:
        return bool(training_schedule(config, microbatches).actions)
    except ConfigError:
        return False
