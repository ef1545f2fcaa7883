"""Parameters that the distributed optimizer's ranks send each other during the next forward are awaited there."""

import copy

import pytest

from tests.model import gather_workers
from tests.ranks import run_ranks
from tests.small_configs import small

pytestmark = pytest.mark.ranks


def test_every_parameter_is_awaited_before_it_is_used():
    plain = {"distributed_optimizer": True, "overlap_grad_reduce": True}
    configs = [
        small(architecture, kind, **plain)
        for architecture, kind in (("dense", "mhc"), ("dense", "dhc"), ("dense", "dfc"), ("moe", "mhc"))
    ]
    configs.append(small("dense", "mhc", **plain))
    configs[-1].recompute.mode = "block"
    late = copy.deepcopy(configs)
    for config in late:
        config.parallel.overlap_param_gather = True
    for found in run_ranks(2, gather_workers.train, configs + late, 3, preload=("tests.model.workers",)):
        for config, early, gathered in zip(configs, found, found[len(configs) :], strict=False):
            buckets, losses = gathered
            assert buckets > 4
            assert losses[2] != losses[1] != losses[0]
            assert losses == early[1], config.connection.kind
