"""Nothing is launched for the first time while a receive is posted, where it would wait for ever on a GPU."""

import re

import pytest

from tests.pipeline import warm_workers
from tests.ranks import observe_ranks, run_ranks
from tests.small_configs import small_config

pytestmark = pytest.mark.ranks
TARGET = warm_workers.runs
RUN = {"preload": ("tests.pipeline.warm_workers",), "timeout": 100}


def config_for(schedule, moe, overlap=False, **sections):
    config = small_config("mhc", moe, **sections)
    p = config.parallel
    p.schedule, p.pipeline, p.overlap = schedule, 2, overlap
    p.virtual = 2 if schedule == "interleaved" else None
    p.transport = "gloo"  # as GPUs' receives, its are posted into buffers
    config.training.global_batch, config.training.micro_batch = 8, 1
    return config


CONFIGS = [
    config_for("gpipe", False),
    config_for("1f1b", True),
    config_for("interleaved", True),
    config_for("zb_h1", False),
    config_for("zb_v", True, training={"dtype": "bf16"}),
    config_for("dualpipev", True, True),
    config_for("dualpipev", False, True, recompute={"mode": "block"}),
    config_for("dualpipe", True, True),
    config_for("dualpipe", False, training={"dtype": "bf16"}, model={"hidden_dropout": 0.1}),
]


def test_no_kernel_is_loaded_beside_a_posted_receive():
    """It would raise in the rank."""
    for config, *ranks in zip(CONFIGS, *run_ranks(2, TARGET, CONFIGS, **RUN), strict=True):
        for rank in ranks:
            assert rank.rehearsed > 60, config.parallel.schedule
            (line,) = rank.said
            assert re.fullmatch(r"warm start: every stage and communicator once, .* in \d+\.\d s", line)


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[5]], ids=["1f1b", "dualpipev"])
def test_without_the_warm_start_there_is_one(config):
    """What the test above looks for is there to be found."""
    outcomes = observe_ranks(2, TARGET, [config], False, **RUN)
    assert any("for the first time beside" in (outcome.error or "") for outcome in outcomes)


def test_every_communicator_of_megatrons_carries_a_message():
    config = config_for("1f1b", True, parallel={"tensor": 2, "sequence": True, "expert": 2})
    assert run_ranks(4, warm_workers.untouched, config, **RUN) == [[]] * 4
