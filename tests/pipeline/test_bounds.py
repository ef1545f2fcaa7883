"""What a rank of the trainer holds and computes during a step: as its schedule says, and no weight gradient in I."""

import pytest

from schedules import GENERATORS
from schedules.actions import Kind
from tests.pipeline.test_layouts import network, run

pytestmark = pytest.mark.ranks

SCHEDULES = ("gpipe", "1f1b", "zb_h1", "zb_v", "dualpipev")


def distinct(architecture, schedule):
    """Tokens so few (4) that no activation has a weight's shape."""
    config = network(architecture, "mhc", 5, schedule=schedule, pipeline=2)
    config.training.global_batch, config.data.sequence_length = 9, 4
    if architecture == "moe":
        config.moe.experts, config.mla.kv_rank = 18, 14
    return config


def test_held_as_planned_and_no_weight_gradient_during_I():
    configs = [distinct(a, schedule) for a in ("dense", "moe") for schedule in SCHEDULES]
    for rank, found in enumerate(run(2, "held", configs)):
        for config, held in zip(configs, found, strict=True):
            name = config.parallel.schedule
            where = rank, name
            assert held.counted == held.planned, where
            assert held.counted.live == held.simulated_chunks, where
            assert held.kept.live <= held.counted.live and held.kept.pending == held.counted.pending, where
            assert 0 < held.kept.buffers <= held.counted.buffers, where
            assert held.live_limit is None or held.kept.live <= held.live_limit, where
            split = _split(name, rank)
            assert held.weight_matmuls_in_I == 0, where
            assert held.weight_matmuls_in_W == held.separable_in_W, where
            assert (held.separable_in_W > 0) == (split > 0) == (held.kept.pending > 0), where
            if name == "dualpipev":
                assert held.kept.pending <= rank + 1 and held.kept.live <= 5


def _split(name, rank):
    """Backwards that the schedule splits on this rank."""
    schedule = GENERATORS[name.replace("_", "-")](2, 9)
    return sum(part.kind is Kind.I for action in schedule.actions[rank] for part in action.parts)
