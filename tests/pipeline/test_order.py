"""What a rank's stages are called for, in which order: the schedule, and nothing else."""

import pytest

from hcmegatron.pipeline.configured_schedule import training_schedule
from schedules.generators import SCHEDULES as descriptors
from tests.pipeline import overlap_workers
from tests.pipeline.cases import config_for, flat
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

RUN = {"preload": ("tests.pipeline.overlap_workers",), "timeout": 200}
MICRO_BATCHES = 10  # which DualPipe takes on 4 ranks, and no multiple of them
# those with chosen chunks last: their process groups are others
SCHEDULES = sorted(descriptors, key=lambda name: descriptors[name].chosen)


@pytest.mark.parametrize("pipeline", [2, 4])
def test_the_executed_order_is_the_schedules(pipeline):
    """Of each stage by what it was called for, and by the runtime's record, which maps positions to actions."""
    configs = [config_for("mhc", False, schedule, pipeline) for schedule in SCHEDULES]
    for schedule in (name for name in SCHEDULES if descriptors[name].pairs):
        config = config_for("mhc", False, schedule, pipeline)
        config.parallel.overlap = True
        configs.insert(-1, config)  # interleaved stays last
    results = run_ranks(pipeline, overlap_workers.steps, configs, MICRO_BATCHES, **RUN)
    for rank, steps in enumerate(results):
        for config, step in zip(configs, steps, strict=True):
            actions = training_schedule(config, MICRO_BATCHES).actions[rank]
            where = config.parallel.schedule, config.parallel.overlap, rank
            assert step.recorded == actions, where
            assert step.called == (actions if config.parallel.overlap else flat(actions)), where
