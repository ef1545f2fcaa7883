"""Dropout inside the Triton kernels, over ranks: other masks than torch's, of the same identity.

Ranks inherit TRITON_INTERPRET, which conftest.py has set before any of them was started.
"""

import pytest
import torch

from tests.layouts.table import largest_error
from tests.pipeline.test_dropout import LIMIT, RUN, V, network
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
    ),
]


def outcomes(ranks, config, **options):
    found = run_ranks(ranks, "tests.pipeline.dropout_workers:steps", [config], kwargs=options, **RUN)
    return [steps[0].outcome for steps in found]


def test_a_v_with_recomputed_blocks_has_the_result_of_one_process():
    reference, v = network("dense"), network("dense", recompute={"mode": "block"}, **V)
    for config in (reference, v):
        config.kernels, config.training.micro_batch, config.training.global_batch = "triton", 1, 4
    (alone,) = outcomes(1, reference)
    assert largest_error(alone, outcomes(2, v)) < LIMIT
    assert largest_error(alone, outcomes(2, v, shared=True)) > 100 * LIMIT
