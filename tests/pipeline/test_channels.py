"""Both ends of every NCCL channel meet, whatever groups each rank has made before, in the emulated NCCL's groups."""

import pytest

from hcmegatron.config.schema import Config
from hcmegatron.pipeline.configured_schedule import placement
from schedules.runtime.torch_distributed import channels
from tests.pipeline import channel_workers
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks
RUN = {"preload": ("tests.pipeline.channel_workers",), "timeout": 100, "process_group": False}
SCHEDULES = ("1f1b", "interleaved", "dualpipev", "dualpipe")  # a placement each


def config_for(schedule, pipeline, tensor=1):
    config = Config()
    p = config.parallel
    p.schedule, p.pipeline, p.tensor = schedule, pipeline, tensor
    p.virtual = 2 if schedule == "interleaved" else None
    return config


@pytest.mark.parametrize(
    ("world", "layouts"),
    [(2, [(2, 1)]), (4, [(4, 1), (2, 1)]), (8, [(8, 1), (4, 2), (2, 2)])],
    ids=["2 ranks", "4 ranks", "8 ranks"],
)
def test_the_ends_of_every_channel_meet(world, layouts):
    configs = [config_for(schedule, *layout) for layout in layouts for schedule in SCHEDULES]
    results = run_ranks(world, channel_workers.channels_of, configs, 20.0, **RUN)
    for number, config in enumerate(configs):
        where = placement(config.parallel)
        everyones = [rank[number][1] for rank in results]
        for channel in channels(where):
            ends = sum(channel in own for own in everyones)
            assert ends == 2 * world // where.ranks, (config.parallel, channel)
    if world >= 4:  # which is what makes a group's name by a rank's own count differ
        assert len({rank[0][0] for rank in results}) > 1
