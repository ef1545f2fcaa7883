"""Schedules over layers of Transformer Engine, which keep weight gradients to themselves. A stub stands in for it."""

import pytest

from hcmegatron.config.schema import SPLIT_BACKWARD, Config
from hcmegatron.pipeline.placement import is_megatrons, training_schedule
from schedules.actions import Kind
from schedules.generators import SCHEDULES
from tests.ranks import run_ranks

RUN = {"preload": ("tests.pipeline.stub_engine",), "timeout": 120}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_that_split_backward_are_those_with_w(schedule):
    config = Config()
    config.parallel.schedule, config.parallel.pipeline = schedule, 2
    config.parallel.virtual = 2 if SCHEDULES[schedule].chosen else None
    assert not is_megatrons(config)
    actions = training_schedule(config, 8).actions
    kinds = {part.kind for rank in actions for action in rank for part in action.parts}
    assert (schedule in SPLIT_BACKWARD) == (Kind.W in kinds)


@pytest.mark.ranks
def test_whole_backwards_run_over_engine_layers():
    """Equal to local layers bit for bit, for the stub computes the same; and nothing was put into its layers."""
    results = run_ranks(2, "tests.pipeline.stub_engine:whole_backwards", **RUN)
    for local, engine in results:
        assert engine.untouched > 0 and local.untouched == 0
        assert local.bits == engine.bits
    assert [engine.separable for _, engine in results] == [0, 1]  # the head, which is Megatron's own


@pytest.mark.ranks
def test_split_backwards_take_local_layers_and_say_so():
    for said, engine_layers, refusal in run_ranks(1, "tests.pipeline.stub_engine:split_backwards", **RUN):
        (line,) = said
        assert "local layers" in line and "parallel.schedule = zb_v" in line
        assert engine_layers == 0
        assert "Transformer Engine's Engine" in refusal and "implementation: local" in refusal
