"""Megatron's own overlap of a forward with a backward (TransformerModelChunkSchedulePlan) is the reference where both
run: layers with the plain residual. Its streams are one on CPU, as ours are."""

import pytest
import torch

from tests.pipeline import plan_workers
from tests.ranks import run_ranks


@pytest.mark.ranks
def test_plain_layers_equal_megatron_s_schedule_plan():
    ((theirs, ours, pairs),) = run_ranks(
        1,
        plan_workers.compare,
        process_group=False,
        preload=("tests.pipeline.plan_workers",),
        timeout=120,
    )
    assert pairs > 0
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, expected in theirs.gradients.items():
        scale = expected.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(
            ours.gradients[name] / scale, expected / scale, rtol=0, atol=2e-6, msg=name
        )
