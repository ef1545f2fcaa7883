"""One process and two pipeline ranks: the same loss, gradients and updated parameters."""

import pytest

from tests.model import workers
from tests.model.compare import largest_errors
from tests.ranks import run_ranks
from tests.small_configs import small_config

KINDS = ("residual", "dhc", "dfc", "mhc", "ihc", "gr")
MICRO_BATCHES = 5


def errors(worker, cases, **sections):
    """Per case, the largest errors of two pipeline ranks against one process."""
    target = workers.steps
    run = {"preload": ("tests.model.workers",), "timeout": 120}
    configs = [small_config(kind, moe, **sections) for kind, moe in cases]
    (alone,) = run_ranks(1, target, worker, configs, MICRO_BATCHES, **run)
    for config in configs:
        config.parallel.pipeline = 2
    two = run_ranks(2, target, worker, configs, MICRO_BATCHES, **run)
    return {
        case: largest_errors(one, [rank[index] for rank in two])
        for index, (case, one) in enumerate(zip(cases, alone, strict=True))
    }


@pytest.mark.ranks
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_fp64_with_own_loss(moe):
    for case, found in errors("fp64_step", [(kind, moe) for kind in KINDS]).items():
        assert max(found.values()) < 1e-10, (case, found)


@pytest.mark.ranks
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_fp32_through_megatron(moe):
    for case, found in errors("fp32_step", [(kind, moe) for kind in KINDS]).items():
        assert max(found.values()) < 1e-5, (case, found)


@pytest.mark.ranks
def test_tied_embeddings():
    for case, found in errors("fp32_step", [("mhc", False)], model={"tie_embeddings": True}).items():
        assert max(found.values()) < 1e-5, (case, found)
