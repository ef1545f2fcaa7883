"""What a rank of the trainer holds and computes during a step: as its schedule says, and no weight gradient in I."""

import pytest

from tests.pipeline import workers
from tests.pipeline.layouts import network, run

pytestmark = pytest.mark.ranks

SCHEDULES = ("gpipe", "1f1b", "zb_h1", "zb_v", "dualpipev", "dualpipe", "interleaved")


def distinct(architecture, schedule, pipeline=2):
    """Tokens so few (4) that no activation has a weight's shape; and gloo, whose receives take their buffers when they
    are posted, as NCCL's do and the plan counts them, where shared memory lends them with the message."""
    virtual = 2 if schedule == "interleaved" else None
    config = network(architecture, "mhc", 5, schedule=schedule, pipeline=pipeline, virtual=virtual)
    config.training.global_batch, config.data.sequence_length = 10 if schedule == "dualpipe" else 9, 4
    config.parallel.transport = "gloo"
    if pipeline == 4:
        config.model.layers = 8
    if architecture == "moe":
        config.moe.experts, config.mla.kv_rank = 18, 14
    return config


def expected(name, P, M, r):
    """The most live chunks of rank r, counted until W, and the most of them between I and W, with M of at least 2P
    micro-batches: as the papers and pipeline.md have them, reached and not passed."""
    h, sends = (
        min(r, P - 1 - r),
        min(r, 1),
    )  # whose gradient another rank waits for is W, right after it, behind I
    group = -(-M // (M // P))  # interleaved: the largest, P where that divides M
    return {
        "gpipe": (M, sends),
        "1f1b": (P - r, sends),
        "interleaved": (group + 2 * (P - r - 1) + 1, 1),  # of its second chunk, if not of its first
        "zb_h1": (P, r + 1),  # W is r micro-batches behind I
        "zb_v": (2 * P, 2 * r + 1),  # r pairs of I begin the drain, and one more I comes before the next W
        "dualpipev": (2 * P + 1, r + 1),
        "dualpipe": (P + 1, h + 1),
    }[name]


def check(pipeline, architectures):
    configs = [distinct(a, schedule, pipeline) for schedule in SCHEDULES for a in architectures]
    for rank, found in enumerate(run(pipeline, workers.held, configs)):
        for config, held in zip(configs, found, strict=True):
            name = config.parallel.schedule
            where = rank, name
            live, pending = expected(name, pipeline, config.training.global_batch, rank)
            assert held.counted[:2] == (live, pending), where
            assert held.kept.live <= live and held.kept.pending == pending, where
            assert held.counted == held.planned, where
            assert held.counted.live == held.simulated_chunks, where
            assert 0 < held.kept.buffers <= held.counted.buffers, where
            assert held.live_limit is None or held.kept.live <= held.live_limit, where
            assert held.weight_matmuls_in_I == 0, where
            assert held.weight_matmuls_in_W == held.separable_in_W, where
            assert (held.separable_in_W > 0) == (pending > 0) == (held.kept.pending > 0), where


def test_held_as_planned_and_no_weight_gradient_during_I():
    check(2, ("dense", "moe"))


def test_on_four_ranks():
    check(4, ("dense",))
