"""Dropout inside the Triton kernels, over ranks: other masks than torch's, of the same identity.

Ranks inherit TRITON_INTERPRET, which conftest.py has set before any of them was started.
"""

import pytest
import torch

from tests.layouts.table import largest_error
from tests.pipeline import dropout_workers
from tests.pipeline.dropout_cases import LIMIT, PIPELINE, RUN, network
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU is here: test_cuda.py runs the kernels on it"
    ),
]


def outcomes(ranks, config, **options):
    found = run_ranks(ranks, dropout_workers.steps, [config], kwargs=options, **RUN)
    return [steps[0].outcome for steps in found]


def test_a_pipeline_with_recomputed_blocks_has_the_result_of_one_process():
    reference, pipeline = network("dense"), network("dense", recompute={"mode": "block"}, **PIPELINE)
    for config in (reference, pipeline):  # as little as shows it: the interpreter is slow
        config.kernels, config.model.layers, config.connection.n = "triton", 2, 2
        config.training.micro_batch, config.training.global_batch = 1, 2
    (alone,) = outcomes(1, reference)
    assert largest_error(alone, outcomes(2, pipeline)) < LIMIT
    assert largest_error(alone, outcomes(2, pipeline, shared=True)) > 100 * LIMIT
